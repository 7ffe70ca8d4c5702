import numpy as np
import pytest
import torch

import isd
from isd.model import Classifier, LatentDiffusion


def test_it_finds_the_labels_of_held_out_cells(guide):
    test = guide.test_indices
    truth = np.asarray(guide.adata.obs["leiden"].astype(str))[test]
    assert (guide.predict()[test] == truth).mean() > 0.8


def test_soft_predictions_are_probabilities_by_label(guide):
    soft = guide.predict(soft=True)
    assert list(soft.columns) == list(guide.labels)
    np.testing.assert_allclose(soft.sum(1), 1, rtol=1e-5)
    assert (soft.columns[soft.to_numpy().argmax(1)] == guide.predict()).all()


def test_log_prob_is_differentiable_and_normalised(guide):
    x = torch.randn(3, guide.module.network.layers[0].in_features, requires_grad=True)
    t = torch.full((3,), 0.5)
    total = sum(guide.log_prob(torch.full((3,), k))(x, t).exp() for k in range(len(guide.labels)))
    torch.testing.assert_close(total, torch.ones(3))
    guide.log_prob(torch.zeros(3, dtype=torch.long))(x, t).sum().backward()
    assert x.grad.abs().sum() > 0


def test_a_classifier_of_another_model_is_refused(adata, guide):
    LatentDiffusion.setup_anndata(adata)
    other = LatentDiffusion(adata, n_hidden=8)
    other.train(max_steps=2, vae_kwargs={"max_steps": 2})
    with pytest.raises(ValueError, match="another diffusion model"):
        isd.tl.generate(other, n_obs=3, classifier=guide)


def test_it_needs_a_trained_diffusion_model_and_two_labels(adata):
    Classifier.setup_anndata(adata)
    with pytest.raises(TypeError, match="LatentDiffusion"):
        Classifier(adata)
    LatentDiffusion.setup_anndata(adata, labels_key=None)
    model = LatentDiffusion(adata, n_hidden=8)
    with pytest.raises(ValueError, match="not trained"):
        Classifier(adata, model)
    model.train(max_steps=2, vae_kwargs={"max_steps": 2})
    Classifier.setup_anndata(adata, labels_key=None)
    with pytest.raises(ValueError, match="at least 2 labels"):
        Classifier(adata, model)


def test_saved_and_loaded_it_predicts_the_same(guide, tmp_path):
    guide.save(tmp_path / "classifier")
    with pytest.raises(TypeError, match="diffusion"):
        Classifier.load(tmp_path / "classifier")
    again = Classifier.load(tmp_path / "classifier", diffusion=guide.diffusion)
    np.testing.assert_array_equal(again.predict(guide.adata), guide.predict())
