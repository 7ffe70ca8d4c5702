import anndata
import numpy as np
import pandas as pd
import pytest

import isd
from isd.tl import _stream
from isd.tl._stream import part_rows


@pytest.fixture
def small_chunks(monkeypatch):
    """One tile a chunk."""
    monkeypatch.setattr(_stream, "CHUNK_VALUES", 1)


def assert_same(one, two):
    """All that two AnnData hold."""
    for matrix, other in [(one.X, two.X), *((one.layers[k], two.layers[k]) for k in one.layers)]:
        assert matrix.shape == other.shape and matrix.dtype == other.dtype == np.float32
        assert (matrix != other).nnz == 0
    pd.testing.assert_frame_equal(one.obs, two.obs)
    pd.testing.assert_frame_equal(one.var, two.var)
    np.testing.assert_array_equal(one.obsm["X_isd_vae"], two.obsm["X_isd_vae"])
    assert list(one.layers) == list(two.layers)
    assert set(one.uns) == set(two.uns) and set(one.uns["isd"]) == set(two.uns["isd"])
    for key, value in one.uns["isd"].items():
        np.testing.assert_array_equal(value, two.uns["isd"][key])


def stop_after(monkeypatch, n):
    """Interrupt the decoding before the ``n``-th chunk is written."""
    write, written = _stream.Stream._save, []

    def save(self, name, arrays):
        if name.startswith("counts"):
            written.append(name)
            if len(written) == n:
                raise KeyboardInterrupt
        write(self, name, arrays)

    monkeypatch.setattr(_stream.Stream, "_save", save)
    return written


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
@pytest.mark.parametrize("chunk_values", [1, 2**26])
def test_the_file_is_what_memory_would_hold(trained, tmp_path, monkeypatch, suffix, chunk_values):
    monkeypatch.setattr(_stream, "CHUNK_VALUES", chunk_values)
    options = {"n_obs": 600, "guidance_scale": {"0": 1.5}, "seed": 4}
    held = isd.tl.generate(trained, **options)
    held.write_h5ad(tmp_path / "held.h5ad")
    path = tmp_path / "new" / f"fake.{suffix}"
    on_disk = isd.tl.generate(trained, **options, backed=path)
    assert not isinstance(on_disk.X, type(held.X)), "X stays on disk"
    assert_same(on_disk.to_memory(), anndata.read_h5ad(tmp_path / "held.h5ad"))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_zarr_and_h5ad_are_read_by_anndata(trained, tmp_path):
    held = isd.tl.generate(trained, n_obs=5, seed=0)
    isd.tl.generate(trained, n_obs=5, seed=0, backed=tmp_path / "fake.zarr")
    again = anndata.read_zarr(tmp_path / "fake.zarr")
    assert (again.X != held.X).nnz == 0


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_counts_in_a_layer_and_log_normalised_x(trained, tmp_path, suffix, monkeypatch, small_chunks):
    monkeypatch.setattr(
        trained, "setup_args", {**trained.setup_args, "layer": "counts"}, raising=False
    ) if False else None
    monkeypatch.setattr(type(trained), "layer", "counts")
    held = isd.tl.generate(trained, n_obs=300, seed=0)
    assert list(held.layers) == ["counts"]
    on_disk = isd.tl.generate(trained, n_obs=300, seed=0, backed=tmp_path / f"fake.{suffix}")
    held.write_h5ad(tmp_path / "held.h5ad")
    assert_same(on_disk.to_memory(), anndata.read_h5ad(tmp_path / "held.h5ad"))


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_the_same_call_goes_on_after_an_interruption(trained, tmp_path, monkeypatch, suffix, small_chunks):
    path = tmp_path / f"fake.{suffix}"
    options = {"n_obs": 900, "seed": 4, "guidance_scale": 1.5, "backed": path}
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            isd.tl.generate(trained, **options)
    assert not path.exists() and path.with_name(path.name + ".partial").is_dir()
    with monkeypatch.context() as patch:
        written = stop_after(patch, 99)
        patch.setattr("isd.tl._generate.sample_diffusion", lambda *a, **k: pytest.fail("latents are drawn again"))
        on_disk = isd.tl.generate(trained, **options)
    assert len(written) == 2, "two of four chunks were there"
    held = isd.tl.generate(trained, n_obs=900, seed=4, guidance_scale=1.5)
    held.write_h5ad(tmp_path / "held.h5ad")
    assert_same(on_disk.to_memory(), anndata.read_h5ad(tmp_path / "held.h5ad"))
    assert not path.with_name(path.name + ".partial").exists()


def test_an_interruption_of_the_last_step_leaves_no_file(trained, tmp_path, monkeypatch):
    path = tmp_path / "fake.h5ad"
    with monkeypatch.context() as patch:
        patch.setattr(_stream.Stream, "_counts", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            isd.tl.generate(trained, n_obs=5, seed=0, backed=path)
    assert not path.exists()
    held = isd.tl.generate(trained, n_obs=5, seed=0)
    assert (isd.tl.generate(trained, n_obs=5, seed=0, backed=path).to_memory().X != held.X).nnz == 0


@pytest.mark.parametrize("overwrite", [True, False])
def test_what_a_finished_call_left_behind_goes_with_the_next(trained, tmp_path, monkeypatch, overwrite):
    """Killed while it cleared up: the file is whole, and chunks of it lie beside."""
    path, partial = tmp_path / "fake.h5ad", tmp_path / "fake.h5ad.partial"

    def killed(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_stream.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            isd.tl.generate(trained, n_obs=20, seed=0, backed=path)
    whole = anndata.read_h5ad(path)
    assert any(partial.glob("counts_*.npz"))
    if overwrite:
        isd.tl.generate(trained, n_obs=20, seed=0, backed=path, overwrite=True)
    else:
        with pytest.raises(FileExistsError, match="overwrite=True"):
            isd.tl.generate(trained, n_obs=20, seed=0, backed=path)
    assert not partial.exists()
    assert_same(anndata.read_h5ad(path), whole)


def test_another_call_does_not_go_on_with_it_unless_told_to(trained, guide, tmp_path, monkeypatch):
    path = tmp_path / "fake.h5ad"
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            isd.tl.generate(trained, n_obs=5, seed=0, backed=path)
    for other, message in [
        ({"seed": 1}, r"seed: 0 then, 1 now"),
        ({"sampler": "ddim"}, r"n_steps: 12 then, 25 now; sampler: heun then, ddim now"),
        ({"labels": "0"}, "labels"),
        ({"library_size": 100}, "library_size: None then"),
        ({"classifier": guide}, "classifier"),
    ]:
        with pytest.raises(ValueError, match=message + r"(.|\n)*overwrite=True"):
            isd.tl.generate(trained, **{"n_obs": 5, "seed": 0, **other}, backed=path)
    fake = isd.tl.generate(trained, n_obs=5, seed=1, backed=path, overwrite=True)
    assert fake.uns["isd"]["seed"] == 1


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_a_finished_file_is_replaced_only_if_told_to(trained, tmp_path, suffix):
    path = tmp_path / f"fake.{suffix}"
    isd.tl.generate(trained, n_obs=3, seed=0, backed=path).file.close()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        isd.tl.generate(trained, n_obs=4, seed=0, backed=path)
    assert isd.tl.generate(trained, n_obs=4, seed=0, backed=str(path), overwrite=True).n_obs == 4
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_is_not_ours_is_left_alone(trained, tmp_path):
    (tmp_path / "a.h5ad.partial").mkdir()
    (tmp_path / "a.h5ad.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not the beginning of a generated file"):
        isd.tl.generate(trained, n_obs=3, backed=tmp_path / "a.h5ad", overwrite=True)
    (tmp_path / "b.zarr").mkdir()
    with pytest.raises(FileExistsError, match="not a zarr store"):
        isd.tl.generate(trained, n_obs=3, backed=tmp_path / "b.zarr", overwrite=True)
    assert (tmp_path / "a.h5ad.partial" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backed": "fake.csv"}, r"\.h5ad or \.zarr"),
        ({"part": (0, 2)}, "counts from 1"),
        ({"part": (3, 2)}, "counts from 1"),
        ({"part": 2}, "two whole numbers"),
        ({"part": (1, 2.0)}, "two whole numbers"),
        ({"part": (1, 2)}, "at most 1"),
    ],
)
def test_what_cannot_be_done_is_said(trained, guide, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        isd.tl.generate(trained, n_obs=10, classifier=guide, classifier_scale=0, **arguments)
    assert not list(tmp_path.glob("fake*"))


@pytest.mark.parametrize("latents", ["diffusion", "gaussian"])
def test_parts_are_the_whole(trained, tmp_path, latents):
    options = {"labels": {"1": 400, "0": 300}, "latents": latents, "seed": 2}
    if latents == "diffusion":
        options |= {"guidance_scale": np.linspace(1, 2, 700), "library_size": np.linspace(200, 400, 700)}
    whole = isd.tl.generate(trained, **options)
    parts = [isd.tl.generate(trained, **options, part=(k, 3)) for k in (1, 2)]
    parts.append(isd.tl.generate(trained, **options, part=(3, 3), backed=tmp_path / "part.h5ad").to_memory())
    assert [p.uns["isd"]["part"][0] for p in parts] == [1, 2, 3]
    joined = anndata.concat(parts)
    assert (joined.X != whole.X).nnz == 0
    np.testing.assert_array_equal(joined.obsm["X_isd_vae"], whole.obsm["X_isd_vae"])
    pd.testing.assert_frame_equal(joined.obs, whole.obs)


@pytest.mark.parametrize(("n_obs", "n"), [(256 * 7 + 3, 3), (100, 1), (2000, 8)])
def test_parts_cover_all_cells_once(n_obs, n):
    slices = [part_rows((k, n), n_obs) for k in range(1, n + 1)]
    assert [i for s in slices for i in range(n_obs)[s]] == list(range(n_obs))
    assert all(s.start % 256 == 0 and s.stop > s.start for s in slices)
