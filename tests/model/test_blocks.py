"""Batches from blocks of rows, as annbatch reads them."""

import sys
import warnings

import anndata
import numpy as np
import pytest
from scipy import sparse

import isd
from isd.model import VAE
from isd.model._blocks import Windows, check_annbatch, window_size

ROWS = np.flatnonzero(np.arange(1000) % 7)  # training rows: not all of a file's


def batches(windows):
    return [rows[batch] for rows, parts in windows for batch in parts]


def test_each_row_comes_once_in_batches_of_one_size():
    found = batches(Windows(ROWS, 20, window=4, block=16))
    assert {len(batch) for batch in found} == {20}
    assert len(found) == len(ROWS) // 20 == len(Windows(ROWS, 20, window=4))
    rows = np.concatenate(found)
    assert len(set(rows.tolist())) == len(rows)
    assert set(rows.tolist()) <= set(ROWS.tolist())


def test_a_window_is_read_in_rising_order_and_mostly_from_neighbours():
    windows = list(Windows(ROWS, 20, window=8, block=40))
    for rows, _ in windows:
        assert (np.diff(rows) > 0).all()
    # of 160 rows in blocks of 40 at most every 20th has no neighbour before it; of rows at random nearly all have none
    steps = np.concatenate([np.diff(np.searchsorted(ROWS, rows)) for rows, _ in windows])
    assert (steps == 1).mean() > 0.9


def test_batches_mix_the_blocks_of_their_window():
    rows, parts = next(iter(Windows(np.arange(4000), 50, window=20, block=50)))
    blocks = [len(set((rows[batch] // 50).tolist())) for batch in parts]
    assert min(blocks) > 8  # of 20


def test_epochs_differ_and_a_seed_says_which():
    one, same, other = (Windows(ROWS, 20, window=4, seed=s) for s in (0, 0, 1))
    first = batches(one)
    np.testing.assert_array_equal(first, batches(same))
    assert not np.array_equal(first, batches(other))
    one.set_epoch(1)
    assert not np.array_equal(first, batches(one))


@pytest.mark.parametrize("seen", [1, 4, 9, 42])
def test_an_epoch_that_was_cut_short_goes_on_where_it_was(seen):
    whole = Windows(ROWS, 20, window=4, seed=3)
    whole.set_epoch(2)
    rest = Windows(ROWS, 20, window=4, seed=3, start=(2, seen))
    assert len(rest) == len(whole)
    np.testing.assert_array_equal(batches(rest), batches(whole)[seen:])
    whole.set_epoch(3)
    rest.set_epoch(3)
    np.testing.assert_array_equal(batches(rest), batches(whole))


def test_processes_share_windows_and_no_rows():
    shares = [batches(Windows(ROWS, 20, window=4, rank=rank, size=3)) for rank in range(3)]
    assert {len(share) for share in shares} == {len(ROWS) // 20}
    assert {len(batch) for share in shares for batch in share} == {6}
    rows = np.concatenate([np.concatenate(share) for share in shares])
    assert len(set(rows.tolist())) == len(rows)


def test_more_processes_than_rows_of_a_batch_are_refused():
    with pytest.raises(ValueError, match="a batch of 2 cells cannot be split over 3 processes"):
        Windows(ROWS, 2, window=4, size=3)


@pytest.fixture
def small():
    adata = isd.datasets.simulated(n_obs=300, n_vars=40, n_labels=2, seed=0)
    adata.X = sparse.csr_matrix(adata.X, dtype=np.float32)
    return adata


def opened(adata, folder):
    """The same cells, counts left in a zarr store."""
    zarr = pytest.importorskip("zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on formats of zarr
        adata.write_zarr(folder / "cells.zarr")
        lazy = anndata.io.sparse_dataset(zarr.open(folder / "cells.zarr", mode="r")["X"])
    return anndata.AnnData(lazy, obs=adata.obs, var=adata.var)


def test_a_window_takes_so_much_memory_and_at_least_a_batch(small, tmp_path, monkeypatch):
    counts = opened(small, tmp_path).X
    bytes_of_a_batch = 8 * small.X.nnz / small.n_obs * 32
    monkeypatch.setattr("isd.model._blocks.WINDOW_BYTES", 3.5 * bytes_of_a_batch)
    assert window_size(counts, 32) == 3
    monkeypatch.setattr("isd.model._blocks.WINDOW_BYTES", 0.5 * bytes_of_a_batch)
    assert window_size(counts, 32) == 1


def test_counts_that_annbatch_cannot_read_are_refused_before_anything(small, tmp_path):
    VAE.setup_anndata(small)
    model = VAE(small)
    with pytest.raises(TypeError, match=r"csr in a zarr store, and these are csr_matrix.*reader='rows'"):
        model.train(max_steps=1, reader="annbatch")
    with pytest.raises(ValueError, match="reader 'blocks' is unknown; choose 'rows' or 'annbatch'"):
        model.train(max_steps=1, reader="blocks")
    small.write_h5ad(tmp_path / "cells.h5ad")
    backed = anndata.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with pytest.raises(TypeError, match="csr in an HDF5 file"):
        check_annbatch(backed.X)
    assert not model.is_trained


@pytest.mark.parametrize(
    ("version", "message"), [((3, 11), "Python 3.12 or later"), ((3, 12), "isodiff\\[annbatch\\]")]
)
def test_what_is_missing_is_named(small, tmp_path, version, message, monkeypatch):
    counts = opened(small, tmp_path).X
    monkeypatch.setattr(
        "isd.model._blocks.sys.version_info", type("V", (tuple,), {"major": 3, "minor": version[1]})(version)
    )
    monkeypatch.setitem(sys.modules, "annbatch", None)
    with pytest.raises(ImportError, match=message):
        check_annbatch(counts)


def trained(adata, **options):
    VAE.setup_anndata(adata)
    model = VAE(adata, n_hidden=8, n_latent=2, output_rank=4, dispersion_rank=2, seed=0)
    model.train(batch_size=32, seed=0, **options)
    return model


def test_training_through_annbatch_is_that_of_rows(small, tmp_path):
    pytest.importorskip("annbatch")
    small.X = small.X.astype(np.uint32)  # as counts are stored often
    adata = opened(small, tmp_path)
    blocks = trained(adata, max_steps=60, reader="annbatch")
    rows = trained(adata, max_steps=60)
    losses = [m.history["validation_loss"].iloc[-1, 0] for m in (blocks, rows)]
    assert losses[0] == pytest.approx(losses[1], rel=0.03)
    assert blocks.history["validation_loss"].iloc[0, 0] > losses[0] + 1.0
    again = trained(adata, max_steps=60, reader="annbatch")
    np.testing.assert_array_equal(blocks.get_latent_representation(adata), again.get_latent_representation(adata))


def test_a_batch_of_all_rows_gives_the_gradients_of_rows(small, tmp_path):
    """Labels and counts of a row belong together: the first step is that of the other reader."""
    pytest.importorskip("annbatch")
    small.obs["isd_split"] = "train"
    adata = opened(small, tmp_path)
    losses = []
    for reader in ("rows", "annbatch"):
        VAE.setup_anndata(adata)
        model = VAE(adata, n_hidden=8, n_latent=2, output_rank=4, dispersion_rank=2, seed=0)
        model.train(batch_size=300, max_steps=5, reader=reader, seed=0)
        losses.append(model.history["train_loss"].to_numpy())
    np.testing.assert_allclose(*losses, rtol=0.02)  # noise of latents goes to other rows


def test_training_through_annbatch_resumes_to_the_same_weights(small, tmp_path):
    pytest.importorskip("annbatch")
    adata = opened(small, tmp_path)
    whole = trained(adata, max_steps=25, reader="annbatch")
    options = {"max_steps": 25, "reader": "annbatch", "checkpoint_dir": tmp_path / "so_far", "checkpoint_every": 7}

    class Stop(Exception):
        pass

    from lightning.pytorch.callbacks import Callback

    class Break(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 17:
                raise Stop

    with pytest.raises(Stop):
        trained(adata, callbacks=[Break()], **options)
    resumed = trained(adata, resume=True, **options)
    for one, two in zip(whole.module.parameters(), resumed.module.parameters(), strict=True):
        np.testing.assert_array_equal(one.detach().numpy(), two.detach().numpy())
