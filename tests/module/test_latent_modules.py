import pytest
import torch

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
