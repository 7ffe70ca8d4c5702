import anndata
import numpy as np
import pandas as pd
import pytest

import isd
from isd.tl import _stream

OPTIONS = {"labels": {"1": 400, "0": 300}, "seed": 2}


@pytest.fixture
def parts(trained, tmp_path):
    """Three parts on disk, one of them as zarr."""
    paths = [tmp_path / f"part_{k}.{suffix}" for k, suffix in ((3, "h5ad"), (1, "zarr"), (2, "h5ad"))]
    for path in paths:
        isd.tl.generate(trained, **OPTIONS, part=(int(path.stem[-1]), 3), backed=path)
    return paths


@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_joined_parts_are_the_file_of_one_call(trained, parts, tmp_path, monkeypatch, suffix):
    whole = isd.tl.generate(trained, **OPTIONS, backed=tmp_path / "whole.h5ad").to_memory()
    monkeypatch.setattr(_stream, "CHUNK_VALUES", 1)  # several chunks a part
    joined = isd.tl.join_parts(parts, tmp_path / f"joined.{suffix}")
    assert not isinstance(joined.X, type(whole.X)), "X stays on disk"
    joined = joined.to_memory()
    assert (joined.X != whole.X).nnz == 0
    pd.testing.assert_frame_equal(joined.obs, whole.obs)
    pd.testing.assert_frame_equal(joined.var, whole.var)
    np.testing.assert_array_equal(joined.obsm["X_isd_vae"], whole.obsm["X_isd_vae"])
    assert set(joined.uns) == set(whole.uns) and set(joined.uns["isd"]) == set(whole.uns["isd"])
    for key, value in whole.uns["isd"].items():
        np.testing.assert_array_equal(joined.uns["isd"][key], value)
    assert not list(tmp_path.glob("*joining*"))


def test_layers_acceptance_and_marks_of_some_parts_are_joined(trained, guide, tmp_path, monkeypatch):
    monkeypatch.setattr(type(trained), "layer", "counts")
    options = {**OPTIONS, "classifier": guide, "classifier_scale": 0, "accept": "classified"}
    paths = [tmp_path / f"{k}.h5ad" for k in (1, 2)]
    for k, path in enumerate(paths, 1):
        isd.tl.generate(trained, **options, part=(k, 2), backed=path)
    with_marks = anndata.read_h5ad(paths[1])
    with_marks.obs["isd_extrapolated"] = True
    with_marks.write_h5ad(paths[1])
    joined = isd.tl.join_parts(paths, tmp_path / "joined.h5ad").to_memory()
    whole = isd.tl.generate(trained, **options)
    assert (joined.X != whole.X).nnz == 0 and (joined.layers["counts"] != whole.layers["counts"]).nnz == 0
    table, expected = joined.uns["isd"]["acceptance"], whole.uns["isd"]["acceptance"]
    pd.testing.assert_frame_equal(table.sort_index(), expected.sort_index(), check_names=False)
    assert joined.uns["isd"]["acceptance_rate"] == pytest.approx(whole.uns["isd"]["acceptance_rate"])
    assert joined.obs["isd_extrapolated"].tolist() == [False] * 256 + [True] * 444


def test_what_does_not_belong_together_is_refused(trained, parts, tmp_path):
    target = tmp_path / "joined.h5ad"
    with pytest.raises(ValueError, match=r"part 2 of 3 .* not among"):
        isd.tl.join_parts(parts[:2], target)
    with pytest.raises(ValueError, match="both part 3 of 3"):
        isd.tl.join_parts([*parts, parts[0]], target)
    other = tmp_path / "other.h5ad"
    isd.tl.generate(trained, **{**OPTIONS, "seed": 3}, part=(2, 3), backed=other)
    with pytest.raises(ValueError, match=r"different calls \(seed\)"):
        isd.tl.join_parts([*parts[:2], other], target)
    isd.tl.generate(trained, n_obs=3, backed=tmp_path / "plain.h5ad")
    with pytest.raises(ValueError, match="is no part"):
        isd.tl.join_parts([tmp_path / "plain.h5ad"], target)
    with pytest.raises(ValueError, match="parts is empty"):
        isd.tl.join_parts([], target)
    assert not target.exists()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        isd.tl.join_parts(parts, other)
    assert isd.tl.join_parts(parts, other, overwrite=True).n_obs == 700
