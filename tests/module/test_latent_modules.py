import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.preprocessing import QuantileTransformer

from isd.diffusion import StraightPath
from isd.module import ClassifierModule, LatentDiffusionModule, LatentScaler


def test_scaler_standardises_draws_from_the_aggregate_posterior():
    torch.manual_seed(0)
    mean, std = torch.randn(5000, 3) * torch.tensor([0.1, 1.0, 5.0]) + 2, torch.full((5000, 3), 0.3)
    scaler = LatentScaler(3)
    scaler.fit(mean, std)
    z = scaler(mean + std * torch.randn_like(mean))
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=0.06, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(3), atol=0.05, rtol=0)
    torch.testing.assert_close(scaler.inverse(z, clip=False), scaler.inverse(z))


def test_scaler_keeps_vectors_within_the_range_of_training_and_survives_constant_columns():
    scaler = LatentScaler(2)
    scaler.fit(torch.tensor([[0.0, 3.0], [1.0, 3.0]]), torch.zeros(2, 2))
    far = scaler.inverse(torch.full((1, 2), 100.0))
    torch.testing.assert_close(far, torch.tensor([[1.1, 3.0]]))


def filtered_totals(n):
    """Log totals as of cells that passed a filter at 100 counts, a few of them with many times the median's."""
    totals = np.random.default_rng(0).lognormal(5.0, 0.8, 4 * n)
    totals = np.concatenate([totals[totals > 100][: n - n // 20], np.geomspace(2_000, 20_000, n // 20)])
    return torch.from_numpy(np.log(np.rint(totals))).float()[:, None]


def test_library_sizes_have_normal_scores_whatever_their_shape():
    library = filtered_totals(2000)
    latent = torch.randn(2000, 1)
    x, nothing = torch.cat([latent, library], dim=1), torch.zeros(2000, 2)
    plain, scored = LatentScaler(2), LatentScaler(2, n_quantiles=64)
    for scaler in (plain, scored):
        scaler.fit(x, nothing)
    assert stats.kstest(plain(x)[:, 1].numpy(), "norm").statistic > 0.08
    assert stats.kstest(scored(x)[:, 1].numpy(), "norm").statistic < 0.01
    assert torch.equal(plain(x)[:, 0], scored(x)[:, 0])
    # scores between the outermost two are those that scikit-learn gives
    theirs = QuantileTransformer(n_quantiles=2000, output_distribution="normal").fit_transform(library.double())
    inner = np.abs(theirs[:, 0]) < 2
    np.testing.assert_allclose(scored(x)[inner, 1], theirs[inner, 0], atol=0.1)


def test_normal_noise_becomes_library_sizes_of_the_training_cells():
    library = filtered_totals(2000)
    scaler = LatentScaler(1, n_quantiles=64)
    scaler.fit(library, torch.zeros_like(library))
    torch.testing.assert_close(scaler.inverse(scaler(library)), library, atol=1e-4, rtol=0)
    drawn = scaler.inverse(torch.from_numpy(np.random.default_rng(1).standard_normal((20_000, 1))).float())
    assert stats.ks_2samp(drawn[:, 0].numpy(), library[:, 0].numpy()).pvalue > 0.05
    assert drawn.min() >= library.min() and drawn.max() <= library.max()


@pytest.mark.parametrize("values", [[5.0] * 30, [5.0] * 29 + [9.0], [4.0, 5.0], [3.0]])
def test_equal_library_sizes_have_scores_that_lead_back(values):
    library = torch.tensor(values)[:, None]
    scaler = LatentScaler(1, n_quantiles=64)
    scaler.fit(library, torch.zeros_like(library))
    scores = scaler(library)
    assert torch.isfinite(scores).all()
    torch.testing.assert_close(scaler.inverse(scores), library, atol=1e-2, rtol=0)
    assert torch.isfinite(scaler(library + 3)).all()  # a depth that was never seen


@pytest.mark.parametrize("n_quantiles", [-1, 1])
def test_numbers_of_quantiles_that_make_no_scale_are_refused(n_quantiles):
    with pytest.raises(ValueError, match="n_quantiles"):
        LatentScaler(2, n_quantiles=n_quantiles)


def test_published_scaler_changes_nothing():
    scaler = LatentScaler(2, enabled=False)
    scaler.fit(torch.randn(10, 2), torch.zeros(10, 2))
    x = torch.randn(3, 2)
    assert torch.equal(scaler(x), x)


def batch(n=8):
    return {
        "latent_mean": torch.randn(n, 2),
        "latent_std": torch.zeros(n, 2),
        "log_library": torch.randn(n, 1),
        "codes": torch.zeros(n, 2, dtype=torch.long),
    }


def test_diffusion_loss_of_an_untrained_network_is_the_variance_of_its_target():
    torch.manual_seed(0)
    module = LatentDiffusionModule(2, (3, 1), schedule=StraightPath(), n_hidden=16, n_blocks=1)
    _, _, loss = module(batch(20_000))
    # velocity = eps - x0 of two independent standard normals, and the network starts at zero
    assert loss.loss.item() == pytest.approx(2.0, abs=0.05)


def test_classifier_ignores_cells_without_label():
    torch.manual_seed(0)
    module = ClassifierModule(2, 3, schedule=StraightPath(), hidden=(8,), dropout=0.0)
    data = batch(8)
    data["codes"][4:, 0] = 3
    _, _, loss = module(data)
    per_cell = loss.reconstruction_loss["reconstruction_loss"]
    assert (per_cell[4:] == 0).all()
    torch.testing.assert_close(loss.loss, per_cell[:4].mean())


def test_classifier_rejects_a_start_outside_of_the_diffusion():
    with pytest.raises(ValueError, match="start_guide_time"):
        ClassifierModule(2, 3, schedule=StraightPath(), start_guide_time=500)
