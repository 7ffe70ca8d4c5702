import pytest
import torch

from isd.nn import (
    AdaLNDenoiser,
    CountDecoder,
    CountEncoder,
    LowRankLinear,
    MLPUNet,
    NoiseClassifier,
    timestep_embedding,
)


def test_adaln_denoiser_starts_at_zero_and_learns_to_use_its_conditions():
    torch.manual_seed(0)
    net = AdaLNDenoiser(2, [2], n_hidden=16, n_blocks=1)
    x, t = torch.randn(64, 2), torch.rand(64)
    codes = torch.arange(64)[:, None] % 2
    assert net(x, t, codes).abs().max() == 0
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    target = codes.float().expand(-1, 2)
    for _ in range(200):
        loss = (net(x, t, codes) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.01
    swapped = (net(x, t, 1 - codes) - target).square().mean()
    assert swapped > 0.5


def test_published_unet_has_the_published_widths_and_ignores_labels():
    net = MLPUNet(128, [5], hidden=(512, 512, 256, 128))
    widths = [block.linear.out_features for block in (net.input, *net.down, *net.up)]
    assert widths == [512, 512, 256, 128, 256, 512, 512]
    x, t = torch.randn(4, 128), torch.rand(4)
    zero, one = torch.zeros(4, 1, dtype=torch.long), torch.ones(4, 1, dtype=torch.long)
    assert torch.equal(net(x, t, zero), net(x, t, one))


def test_encoder_can_put_points_on_the_unit_sphere():
    encoder = CountEncoder(5, 0, n_hidden=8, n_layers=1, n_latent=3, deterministic=True, l2_normalize=True)
    mean, std = encoder(torch.randn(6, 5), torch.zeros(6, 0))
    torch.testing.assert_close(mean.norm(dim=1), torch.ones(6))
    assert (std == 0).all()


def test_decoder_heads_start_at_zero():
    decoder = CountDecoder(3, 1, 7, n_hidden=8, n_layers=1, heads=["dispersion"])
    out = decoder(torch.randn(4, 3), torch.randn(4, 1))
    assert out["mean"].shape == (4, 7)
    assert (out["dispersion"] == 0).all()


def test_classifier_depends_on_time():
    torch.manual_seed(0)
    net = NoiseClassifier(3, 2, hidden=(8, 8)).eval()
    x = torch.randn(4, 3)
    assert not torch.allclose(net(x, torch.zeros(4)), net(x, torch.ones(4)))


def test_timestep_embedding_of_odd_width_is_refused():
    with pytest.raises(ValueError, match="even"):
        timestep_embedding(torch.zeros(1), 3)


def test_low_rank_layer_is_the_product_and_starts_heads_at_nought():
    layer = LowRankLinear(5, 7, 2)
    h = torch.randn(3, 5)
    weight = layer.loadings.T @ layer.scores.weight
    expected = torch.nn.functional.linear(h, weight, layer.bias + layer.scores.bias @ layer.loadings)
    torch.testing.assert_close(layer(h), expected)
    decoder = CountDecoder(3, 1, 20, n_hidden=8, n_layers=1, heads=["dispersion"], output_rank=4, head_rank=2)
    out = decoder(torch.randn(6, 3), torch.randn(6, 1))
    assert out["mean"].shape == out["dispersion"].shape == (6, 20)
    assert out["mean"].std() > 0
    assert (out["dispersion"] == 0).all()
    out["dispersion"].sum().backward()
    assert decoder.heads["dispersion"].scores.weight.grad.abs().max() > 0  # and can leave it


def test_the_spread_of_a_low_rank_layer_is_the_mean_square_of_its_outputs():
    layer = LowRankLinear(6, 40, 3)
    h = torch.randn(17, 6)
    with torch.no_grad():
        layer.bias.normal_()
    want = (layer(h) - layer.bias).square().mean(dim=0).sum()
    torch.testing.assert_close(layer.spread(h), want)


def test_the_penalty_is_a_normal_prior_on_logits_and_heads_and_only_in_training():
    shape = {"n_hidden": 8, "n_layers": 1, "heads": ["dispersion"], "output_rank": 3, "head_rank": 2}
    decoder = CountDecoder(4, 0, 30, **shape, shrinkage=2.0, head_shrinkage=7.0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_()
    z = torch.randn(11, 4)
    out = decoder(z, z.new_zeros(11, 0))
    head = decoder.heads["dispersion"]
    deviation = out["dispersion"] - head.bias
    want = 0.5 * 2.0 * (out["mean"] - decoder.mean.bias).square().mean(0).sum()
    want = want + 0.5 * 7.0 * (deviation.square().mean(0).sum() + head.bias.square().sum())
    torch.testing.assert_close(out["penalty"], want)
    assert "penalty" not in decoder.eval()(z, z.new_zeros(11, 0))
