"""Generated cells straight to disk: chunk by chunk, so that memory does not grow and work that broke off goes on."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from anndata import AnnData
from scipy import sparse

from isd._atomic import disk_errors, swap, sync, sync_tree, whole_file
from isd._progress import track
from isd._target import checked_target, import_zarr
from isd.model._generated import TILE, Cells, decode_counts, log_normalized

#: Values of the dense matrix that a chunk on disk stands for: one tile of wide rows, up to 64 tiles of narrow ones.
CHUNK_VALUES = 2**26
_CALL, _CELLS = "call.json", "cells.npz"
_COUNTS, _TILE_CELLS = "counts_{:09d}.npz", "tile_{:09d}.npz"
#: Names of the files in the folder of what is done so far.
_OURS = re.compile(r".*\.new-.*|cells\.npz|(?:counts|tile)_\d{9,}\.npz|whole\.(?:h5ad|zarr)")


def chunk_size(n_vars: int) -> int:
    """Cells of a chunk: a whole number of tiles."""
    return TILE * min(max(CHUNK_VALUES // (TILE * n_vars), 1), 64)


def part_rows(part: Sequence[int] | None, n_obs: int) -> slice:
    """Rows of the ``k``-th of ``n`` parts, ``part=(k, n)``: whole tiles, so that each cell is what it is in the whole.

    Examples
    --------
    >>> part_rows((2, 2), 600), part_rows(None, 600)
    (slice(256, 600, None), slice(0, 600, None))
    """
    if part is None:
        return slice(0, n_obs)
    given = list(part) if isinstance(part, Sequence) and not isinstance(part, str) else [part]
    if len(given) != 2 or not all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) for i in given):
        raise ValueError(f"part must be two whole numbers, such as (1, 8) for the first of eight; got {part!r}.")
    k, n = (int(i) for i in given)
    if not 1 <= k <= n:
        raise ValueError(f"part={(k, n)} must lie in (1, {n}) ... ({n}, {n}): the first number counts from 1.")
    tiles = -(-n_obs // TILE)
    if n > tiles:
        raise ValueError(
            f"{n_obs} cells are {tiles} tile{'s' if tiles > 1 else ''} of {TILE}, and a part is at least one tile; "
            f"ask for {n} parts of at least {TILE * (n - 1) + 1} cells, or for at most {tiles}."
        )
    return slice(tiles * (k - 1) // n * TILE, min(tiles * k // n * TILE, n_obs))


@dataclass(frozen=True)
class Stream:
    """A file that is being generated, and the folder beside it (``.partial``) in which that happens.

    Parameters
    ----------
    path
        File (h5ad) or folder (zarr) that is there when all is done, and not before.
    overwrite
        Whether a file of that name may be replaced.
    by_tile
        Whether cells come tile by tile, counts together with all else (:meth:`write_tile`), rather than counts last.
    """

    path: Path
    overwrite: bool
    by_tile: bool = False

    @property
    def partial(self) -> Path:
        """Folder of what is done so far."""
        return self.path.with_name(self.path.name + ".partial")

    @classmethod
    def open(cls, path: str | Path, call: Mapping[str, Any], *, overwrite: bool, by_tile: bool = False) -> Stream:
        """Start a file, or go on with one that the same call began.

        Parameters
        ----------
        path
            Name that ends in ``.h5ad`` or ``.zarr``.
        call
            What decides what is generated: a file that another call began is not gone on with.
        overwrite
            Whether to replace a file of that name, and what another call began.
        by_tile
            Whether cells come tile by tile.

        Raises
        ------
        FileExistsError
            If the file is there and is not to be replaced.
        ValueError
            If another call began it, naming what differs.
        """
        self = cls(checked_target(path, overwrite=overwrite), overwrite, by_tile)
        clear_left_over(path)
        told = {name: str(value) for name, value in call.items()}
        note = self.partial / _CALL
        if self.partial.exists():
            if note.exists():
                began = json.loads(note.read_text())
                if began == told:
                    return self
                if not overwrite:
                    names = sorted(set(began) | set(told))
                    differ = [
                        f"{n}: {began.get(n, 'nothing')} then, {told.get(n, 'nothing')} now"
                        for n in names
                        if began.get(n) != told.get(n)
                    ]
                    raise ValueError(
                        f"{self.partial} holds the beginning of other cells ({'; '.join(differ)}). Make the same call "
                        "to go on with it, give overwrite=True to begin anew, or another name."
                    )
            else:
                raise ValueError(
                    f"{self.partial} is not the beginning of a generated file; move it away, or give another name."
                )
            shutil.rmtree(self.partial)
        self.partial.mkdir(parents=True)
        with whole_file(note) as new:
            new.write_text(json.dumps(told, indent=1))
        return self

    def read_cells(self) -> dict[str, np.ndarray] | None:
        """Arrays of the cells, if they were written before."""
        if not (self.partial / _CELLS).exists():
            return None
        with np.load(self.partial / _CELLS) as arrays:
            return dict(arrays)

    def write_cells(self, **arrays: Any) -> None:
        """Keep latents and all else that is known of the cells before they are decoded."""
        self._save(_CELLS, {name: value for name, value in arrays.items() if value is not None})

    def read_tile(self, start: int) -> dict[str, np.ndarray] | None:
        """Arrays of the cells of a tile, without their counts, if it was written before."""
        path = self.partial / _TILE_CELLS.format(start)
        if not path.exists():
            return None
        with np.load(path) as arrays:
            return dict(arrays)

    def write_tile(self, start: int, counts: sparse.csr_matrix, arrays: Mapping[str, Any]) -> None:
        """Keep a tile of cells.

        Parameters
        ----------
        start
            First cell, counted from the first of the file.
        counts
            Counts.
        arrays
            All else that is known of the cells.
        """
        self._save(_COUNTS.format(start), {"data": counts.data, "indices": counts.indices, "indptr": counts.indptr})
        # last: what is there says that the counts are, too
        self._save(_TILE_CELLS.format(start), {name: value for name, value in arrays.items() if value is not None})

    def write_counts(self, module: Any, cells: Cells, *, key: Sequence[int], first: int, progress: bool | None) -> None:
        """Decode the cells whose counts are not there yet.

        Parameters
        ----------
        module
            :class:`isd.module.VAEModule`.
        cells
            All cells of the file.
        key
            Key of the random numbers.
        first
            Number of the first cell among all that are asked for.
        progress
            Progress bar.
        """
        n = len(cells.latents)
        for start, name in track(self._chunks(n, module.n_input), "Decoding", progress=progress):
            if (self.partial / name).exists():
                continue
            rows = np.arange(start, min(start + chunk_size(module.n_input), n))
            counts = decode_counts(
                module, cells.take(rows), key=key, first_tile=(first + start) // TILE, progress=False
            )
            self._save(name, {"data": counts.data, "indices": counts.indices, "indptr": counts.indptr})

    def finish(self, parts: Mapping[str, Any], layer: str | None, *, progress: bool | None) -> None:
        """Put all into one file, and that in its place.

        Parameters
        ----------
        parts
            Arguments of :class:`anndata.AnnData`, without counts.
        layer
            Layer of the counts; ``X`` if ``None``.
        progress
            Progress bar.
        """
        from anndata.io import sparse_dataset, write_elem

        frame = AnnData(**parts)
        whole = self.partial / f"whole{self.path.suffix}"
        remove(whole)
        chunks = self._chunks(frame.n_obs, frame.n_vars)
        with disk_errors(self.path), new_store(whole, frame) as store:
            names = ["X"] if layer is None else ["X", f"layers/{layer}"]
            for i, (_, name) in enumerate(track(chunks, "Writing", progress=progress)):
                counts = self._counts(name, frame.n_vars)
                for element in names:
                    values = log_normalized(counts) if layer is not None and element == "X" else counts
                    if i:
                        sparse_dataset(store[element]).append(values)
                        continue
                    # more counts than 32 bits can number are to fit below the first chunk
                    values.indptr = values.indptr.astype(np.int64)
                    write_elem(store, element, values)
        sync_tree(whole)
        swap(whole, self.path)
        sync(self.path.parent)
        (self.partial / _CALL).unlink()  # from here on the rest is rubbish, whoever finds it
        shutil.rmtree(self.partial)

    def _chunks(self, n_obs: int, n_vars: int) -> list[tuple[int, str]]:
        """First cell and name of each chunk."""
        step = TILE if self.by_tile else chunk_size(n_vars)
        return [(start, _COUNTS.format(start)) for start in range(0, n_obs, step)]

    def _counts(self, name: str, n_vars: int) -> sparse.csr_matrix:
        with np.load(self.partial / name) as arrays:
            data, indices, indptr = arrays["data"], arrays["indices"], arrays["indptr"]
        return sparse.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, n_vars))

    def _save(self, name: str, arrays: Mapping[str, Any]) -> None:
        with whole_file(self.partial / name) as new, new.open("wb") as f:
            np.savez(f, **arrays)


def clear_left_over(path: str | Path) -> None:
    """Delete what a call left beside a file that was killed after it had finished.

    The note of the call is the first to come and to go: files without it belong to no call.
    """
    partial = Stream(Path(path).absolute(), overwrite=False).partial
    if not partial.is_dir() or (partial / _CALL).exists():
        return
    if all(_OURS.match(p.name) for p in partial.iterdir()):
        shutil.rmtree(partial)


def read_backed(path: Path) -> AnnData:
    """Open a file with ``X`` left on disk."""
    if path.suffix == ".h5ad":
        return anndata.read_h5ad(path, backed="r")
    from anndata.io import read_elem, sparse_dataset

    store = import_zarr().open_group(str(path), mode="r")
    parts = {name: read_elem(store[name]) for name in ("obs", "var", "obsm", "uns")}
    layers = {name: sparse_dataset(store["layers"][name]) for name in store["layers"]}
    return AnnData(X=sparse_dataset(store["X"]), layers=layers, **parts)


@contextmanager
def new_store(path: Path, frame: AnnData) -> Iterator[Any]:
    """A new file that holds all but the counts, open."""
    if path.suffix == ".h5ad":
        import h5py

        frame.write_h5ad(path)
        with h5py.File(path, "r+") as f:
            f.pop("X", None)
            yield f
        return
    from anndata.io import write_elem

    # the format that anndata writes by default, of which its own writer warns
    zarr, wanted = import_zarr(), getattr(anndata.settings, "zarr_write_format", None)
    options = {} if wanted is None or zarr.__version__.startswith("2.") else {"zarr_format": wanted}
    group = zarr.open_group(str(path), mode="w", **options)
    frame.strings_to_categoricals()
    write_elem(group, "/", frame)
    for name in ("X", "raw"):
        if name in group:
            del group[name]
    yield group


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
