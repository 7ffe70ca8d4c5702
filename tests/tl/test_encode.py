import numpy as np
import pytest

import isd


def test_latents_go_to_their_slot_whatever_the_order_of_features(trained, adata):
    isd.tl.encode(adata, trained)
    shuffled = adata[:, np.random.default_rng(0).permutation(adata.n_vars)].copy()
    del shuffled.obsm["X_isd_vae"]
    isd.tl.encode(shuffled, trained.vae)
    np.testing.assert_allclose(shuffled.obsm["X_isd_vae"], adata.obsm["X_isd_vae"], atol=1e-5)
    assert shuffled.var_names[0] != adata.var_names[0]


def test_cells_without_labels_can_be_encoded(trained, adata):
    expected = isd.tl.encode(adata, trained, copy=True).obsm["X_isd_vae"]
    del adata.obs["leiden"]
    isd.tl.encode(adata, trained)
    np.testing.assert_array_equal(adata.obsm["X_isd_vae"], expected)


def test_a_copy_leaves_the_input_alone(trained, adata):
    out = isd.tl.encode(adata, trained, copy=True, key_added="latent")
    assert "latent" in out.obsm and "latent" not in adata.obsm


def test_views_and_backed_data_can_be_encoded(trained, adata, tmp_path):
    import anndata

    expected = isd.tl.encode(adata, trained, copy=True).obsm["X_isd_vae"]
    view = adata[20:40]
    isd.tl.encode(view, trained)
    np.testing.assert_allclose(view.obsm["X_isd_vae"], expected[20:40], atol=1e-5)
    adata[:, ::-1].copy().write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r+")
    isd.tl.encode(backed, trained)
    np.testing.assert_allclose(backed.obsm["X_isd_vae"], expected, atol=1e-5)


def test_backed_data_are_encoded_in_the_order_asked_for(trained, adata, tmp_path):
    """A file that may only be read, in chunks that do not fit: rows out of order and twice come back as asked."""
    import anndata

    expected = isd.tl.encode(adata, trained, copy=True).obsm["X_isd_vae"]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    isd.tl.encode(backed, trained, batch_size=64)
    np.testing.assert_allclose(backed.obsm["X_isd_vae"], expected, atol=1e-5)
    assert backed.isbacked
    rows = [250, 3, 120, 3, 0]
    mean, std = trained.vae.encode_distribution(backed, indices=rows, batch_size=2)
    np.testing.assert_allclose(mean, expected[rows], atol=1e-5)
    assert std.shape == mean.shape and (std > 0).all()
    latents = trained.vae.get_latent_representation(backed, indices=rows, batch_size=2)
    np.testing.assert_allclose(latents, expected[rows], atol=1e-5)


def test_generated_files_can_be_encoded_from_disk(trained, tmp_path):
    fake = isd.tl.generate(trained, n_obs=40, seed=0, backed=tmp_path / "fake.h5ad")
    expected = isd.tl.encode(fake.to_memory(), trained, copy=True).obsm["X_isd_vae"]
    isd.tl.encode(fake, trained, key_added="again")
    np.testing.assert_allclose(fake.obsm["again"], expected, atol=1e-5)


def test_missing_features_are_counted(trained, adata):
    with pytest.raises(ValueError, match="lacks 30 of the model's 200 features"):
        isd.tl.encode(adata[:, 30:].copy(), trained)


def test_other_things_are_refused(adata):
    with pytest.raises(TypeError, match="VAE"):
        isd.tl.encode(adata, "model")
