import warnings

import anndata
import numpy as np
import pytest
import torch
from scipy import sparse

import isd
from isd.model import VAE
from isd.model._loading import SparseDataSplitter
from isd.model._statistics import density


def layouts(monkeypatch):
    """Layouts of the minibatches that the module sees, and whether its first layer gets them sparse."""
    from isd.module import VAEModule

    seen, whole = set(), VAEModule._encoder_input

    def watched(self, x, rows):
        out = whole(self, x, rows)
        seen.add((x.layout, not torch.is_tensor(out)))
        return out

    monkeypatch.setattr(VAEModule, "_encoder_input", watched)
    return seen


def stored(adata, kind, folder):
    """The same data: csr or dense, in memory, in an h5ad file or in a zarr store."""
    adata = adata.copy()
    if kind == "dense":
        adata.X = adata.X.toarray()
        return adata
    if kind == "csr":
        return adata
    if kind == "zarr":
        zarr = pytest.importorskip("zarr")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on formats of zarr
            adata.write_zarr(folder / "cells.zarr")
            lazy = anndata.io.sparse_dataset(zarr.open(folder / "cells.zarr", mode="r")["X"])
        return anndata.AnnData(lazy, obs=adata.obs, var=adata.var)
    adata.write_h5ad(folder / "cells.h5ad")
    return anndata.read_h5ad(folder / "cells.h5ad", backed="r")


def trained(adata, **options):
    VAE.setup_anndata(adata)
    model = VAE(adata, n_hidden=8, n_latent=2, output_rank=4, dispersion_rank=2, seed=0)
    model.train(max_steps=4, batch_size=32, seed=0, **options)
    return model


@pytest.mark.parametrize("kind", ["dense", "h5ad", "zarr"])
def test_however_counts_are_stored_the_training_is_the_same(adata, kind, tmp_path, monkeypatch):
    expected = trained(adata.copy(), sparse=True)
    other = stored(adata, kind, tmp_path)
    seen = layouts(monkeypatch)
    model = trained(other)
    assert {layout for layout, _ in seen} == {torch.strided if kind == "dense" else torch.sparse_csr}
    # rows of a minibatch come in another order from a file: the noise that each cell gets differs
    first = [m.history["train_loss_step"].iloc[0, 0] for m in (expected, model)]
    assert first[1] == pytest.approx(first[0], rel=0.1 if kind == "h5ad" else 1e-4)
    latents = [expected.get_latent_representation(a) for a in (expected.adata, model.adata)]
    np.testing.assert_allclose(*latents, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("choice", [True, False])
def test_the_first_layer_reads_csr_or_dense_as_asked_with_the_same_result(adata, choice, monkeypatch):
    automatic = trained(adata.copy())
    seen = layouts(monkeypatch)
    model = trained(adata.copy(), sparse=choice)
    assert seen == {(torch.sparse_csr, choice)}
    losses = [m.history["train_loss_step"].to_numpy() for m in (automatic, model)]
    np.testing.assert_allclose(*losses, rtol=1e-3)


@pytest.mark.parametrize(("share", "as_they_are"), [(0.1, True), (0.6, False)])
def test_density_of_the_training_cells_chooses(adata, share, as_they_are, monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.poisson(20.0, adata.shape) * (rng.random(adata.shape) < share)
    x[:, 0] += 1
    adata.X = sparse.csr_matrix(x.astype(np.float32))
    seen = layouts(monkeypatch)
    trained(adata)
    assert seen == {(torch.sparse_csr, as_they_are)}


def test_density_counts_what_is_not_zero_in_the_rows_asked_for():
    x = np.zeros((1000, 8))
    x[:500, :2] = 1
    stored = sparse.csr_matrix(np.where(x > 0, x, 1.0))
    stored.data[:] = x.ravel()  # zeros that are stored are zeros
    assert density(stored, np.arange(500)) == density(x, np.arange(500)) == 0.25
    assert density(x, np.arange(1000)) == pytest.approx(0.125, abs=0.01)


def test_minibatches_stay_sparse_after_the_transfer(adata):
    """Trap: scvi's splitter makes them dense again in this hook."""
    VAE.setup_anndata(adata)
    model = VAE(adata, n_hidden=8, n_latent=2)
    rows = np.arange(300)
    data = SparseDataSplitter(model.adata_manager, external_indexing=[rows[:200], rows[200:], rows[:0]], batch_size=16)
    data.setup()
    batch = next(iter(data.train_dataloader()))
    assert data.on_after_batch_transfer(batch, 0)["X"].layout == torch.sparse_csr


def test_mixed_precision_reads_sparse_minibatches(adata):
    model = trained(adata, sparse=True, precision="bf16-mixed")
    assert np.isfinite(model.history["train_loss"].to_numpy()).all()


def test_counts_that_are_stored_in_parts_are_added_up(adata):
    """A csr matrix may hold a value twice; dense matrices made of it hold the sum."""
    whole = trained(adata.copy())
    parts = adata.copy()
    csr = parts.X.tocsr()
    row = np.repeat(np.arange(csr.shape[0]), np.diff(csr.indptr))
    order = np.argsort(np.concatenate([row, row]), kind="stable")
    data = np.concatenate([csr.data - 1, np.ones_like(csr.data)])[order]
    indices = np.concatenate([csr.indices, csr.indices])[order]
    parts.X = sparse.csr_matrix((data, indices, 2 * csr.indptr), shape=csr.shape)
    VAE.setup_anndata(parts)
    assert parts.X.nnz == csr.nnz
    latents = [whole.get_latent_representation(a) for a in (whole.adata, parts)]
    np.testing.assert_allclose(*latents, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_from_a_file_to_a_file(adata, kind, tmp_path):
    """All of a pipeline with counts left on disk gives what it gives from memory."""
    adata.obs["isd_split"] = np.where(np.arange(adata.n_obs) % 5 == 0, "test", "train")
    models, fakes = [], []
    for data in (adata, stored(adata, kind, tmp_path)):
        counts = data.X
        isd.model.LatentDiffusion.setup_anndata(data)
        model = isd.model.LatentDiffusion(data, n_hidden=8, seed=0)
        model.train(max_steps=20, vae_kwargs={"max_steps": 20, "batch_size": 240}, batch_size=240, seed=0)
        models.append(model)
        fakes.append(isd.tl.generate(model, n_obs=60, backed=tmp_path / f"fake_{len(fakes)}.{kind}", seed=0))
        assert type(data.X) is type(counts), "counts stay where they are"
    # a batch of all training cells: rows of a file come in another order, and noise differs from cell to cell
    assert models[1].vae.history["train_loss"].iloc[-1, 0] == pytest.approx(
        models[0].vae.history["train_loss"].iloc[-1, 0], rel=0.02
    )
    np.testing.assert_array_equal(models[0].template_log_library_, models[1].template_log_library_)
    totals = [np.asarray(fake.to_memory().X.sum(1)).ravel() for fake in fakes]
    assert np.median(totals[1]) == pytest.approx(np.median(totals[0]), rel=0.1)
