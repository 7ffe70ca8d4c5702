"""Parts that several processes generated, put together again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from isd._atomic import disk_errors, swap, sync, sync_tree
from isd._constants import UNS_KEY
from isd._progress import track
from isd._target import checked_target
from isd.tl._stream import chunk_size, new_store, read_backed, remove

#: Entries of the provenance that parts of one call need not share.
_OWN = {"part", "n_network_calls", "acceptance", "acceptance_rate"}
_EXTRAPOLATED = "isd_extrapolated"


def join_parts(
    parts: Sequence[str | Path], backed: str | Path, *, overwrite: bool = False, progress: bool | None = None
) -> AnnData:
    """Put files that ``generate(..., part=(k, n), backed=...)`` wrote one below the other: the whole, as one call makes it.

    Memory does not grow with the number of cells, beyond ``obs`` and latents.

    Parameters
    ----------
    parts
        Files of all parts, in any order.
    backed
        Name of the file to write, in ``.h5ad`` or ``.zarr``. It is there when it is whole.
    overwrite
        Whether a file of that name may be replaced.
    progress
        Progress bar.

    Returns
    -------
    AnnData of all cells, opened with ``X`` left on disk.

    Raises
    ------
    ValueError
        If a file is no part, parts are missing or given twice, or belong to different calls; says which.
    FileNotFoundError
        If a file is not there.
    FileExistsError
        If the file to write is there, without ``overwrite``.

    Examples
    --------
    >>> import isd, pathlib, tempfile
    >>> adata = isd.datasets.simulated(n_obs=80, n_vars=60, n_labels=2)
    >>> isd.model.LatentDiffusion.setup_anndata(adata)
    >>> model = isd.model.LatentDiffusion(adata)
    >>> model.train(max_steps=5, vae_kwargs={"max_steps": 5}, progress=False)
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for k in (1, 2):  # each in a process of its own
    ...     fake = isd.tl.generate(model, n_obs=300, part=(k, 2), backed=folder / f"part_{k}.h5ad", seed=0)
    >>> isd.tl.join_parts(sorted(folder.glob("part_*.h5ad")), folder / "fake.h5ad").shape
    (300, 60)
    """
    path = checked_target(backed, overwrite=overwrite)
    with ExitStack() as stack:
        ordered = _in_order([(Path(p), stack.enter_context(_lazy(Path(p)))) for p in parts])
        new = path.with_name(f"{path.stem}.{os.getpid()}.joining{path.suffix}")
        try:
            with disk_errors(path):
                _write(ordered, new, progress)
                sync_tree(new)
            swap(new, path)
            sync(path.parent)
        finally:
            remove(new)
    return read_backed(path)


@contextmanager
def _lazy(path: Path) -> Iterator[AnnData]:
    """A file whose counts stay on disk, those in layers too, which anndata would read."""
    from anndata.io import read_elem, sparse_dataset

    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give the files of all parts.")
    if path.suffix == ".zarr":
        yield read_backed(path)
        return
    import h5py

    with h5py.File(path, "r") as store:
        kept = {name: read_elem(store[name]) for name in ("obs", "var", "obsm", "uns")}
        layers = {name: sparse_dataset(store["layers"][name]) for name in store["layers"]}
        yield AnnData(X=sparse_dataset(store["X"]), layers=layers, **kept)


def _in_order(opened: Sequence[tuple[Path, AnnData]]) -> list[AnnData]:
    """Parts in the order of the cells, checked to be all parts of one call."""
    if not opened:
        raise ValueError("parts is empty; give the files of all parts.")
    numbers: dict[int, tuple[Path, AnnData]] = {}
    first_path, first = opened[0]
    for path, adata in opened:
        told = adata.uns.get(UNS_KEY, {})
        if "part" not in told:
            raise ValueError(f"{path} is no part: it was not written by isd.tl.generate(..., part=(k, n)).")
        ours, theirs = _shared(told), _shared(first.uns[UNS_KEY])
        differ = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
        k, n = (int(i) for i in told["part"])
        if differ or n != int(first.uns[UNS_KEY]["part"][1]) or not adata.var_names.equals(first.var_names):
            what = ", ".join(differ) or "number of parts or features"
            raise ValueError(f"{path} and {first_path} are of different calls ({what}); join parts of one call.")
        if k in numbers:
            raise ValueError(f"{path} and {numbers[k][0]} are both part {k} of {n}.")
        numbers[k] = path, adata
    missing = sorted(set(range(1, n + 1)) - set(numbers))
    if missing:
        raise ValueError(
            f"part{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))} of {n} are not among the files."
        )
    return [numbers[k][1] for k in sorted(numbers)]


def _shared(told: Mapping[str, Any]) -> dict[str, str]:
    """Entries that all parts of a call have in common, in a form that can be compared."""
    return {
        k: np.asarray(v).tobytes().hex() if isinstance(v, np.ndarray) else str(v)
        for k, v in told.items()
        if k not in _OWN
    }


def _write(parts: Sequence[AnnData], path: Path, progress: bool | None) -> None:
    from anndata.io import sparse_dataset, write_elem

    first, frames = parts[0], [part.obs for part in parts]
    if any(_EXTRAPOLATED in frame for frame in frames):
        # written only where a part has such cells
        frames = [frame if _EXTRAPOLATED in frame else frame.assign(**{_EXTRAPOLATED: False}) for frame in frames]
    whole = AnnData(
        obs=pd.concat(frames),
        var=first.var,
        obsm={key: np.concatenate([part.obsm[key] for part in parts]) for key in first.obsm},
        uns={**first.uns, UNS_KEY: _provenance([part.uns[UNS_KEY] for part in parts])},
    )
    step = chunk_size(whole.n_vars)
    rows = [(part, slice(i, min(i + step, part.n_obs))) for part in parts for i in range(0, part.n_obs, step)]
    with new_store(path, whole) as store:
        for i, (part, some) in enumerate(track(rows, "Joining", progress=progress)):
            for element, matrix in {"X": part.X, **{f"layers/{k}": part.layers[k] for k in part.layers}}.items():
                values = sparse.csr_matrix(matrix[some])
                if i:
                    sparse_dataset(store[element]).append(values)
                else:
                    values.indptr = values.indptr.astype(np.int64)
                    write_elem(store, element, values)


def _provenance(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the whole: what a call without parts writes."""
    out = {k: v for k, v in told[0].items() if k not in {"part", "n_obs"}}
    if "n_network_calls" in out:
        out["n_network_calls"] = max(int(part["n_network_calls"]) for part in told)
    if "acceptance" in out:
        table = pd.concat([part["acceptance"][["drawn", "accepted"]] for part in told])
        table = table.groupby(level=0, sort=False).sum()
        out["acceptance"] = table.assign(rate=table["accepted"] / table["drawn"])
        out["acceptance_rate"] = float(table["accepted"].sum() / table["drawn"].sum())
    return out
