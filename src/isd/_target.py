"""Where a file of cells may be written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isd._atomic import recover


def checked_target(path: str | Path, *, overwrite: bool) -> Path:
    """Absolute path of a file to write.

    Raises
    ------
    ValueError
        If its name ends in neither ``.h5ad`` nor ``.zarr``.
    FileExistsError
        If it is there and not to be replaced.
    """
    path = Path(path).absolute()
    recover(path)
    if path.suffix not in (".h5ad", ".zarr"):
        raise ValueError(f"backed must be a name that ends in .h5ad or .zarr, got {str(path.name)!r}.")
    if path.suffix == ".zarr":
        import_zarr()
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; give another name, or overwrite=True to replace it.")
    if path.exists() and path.is_dir() != (path.suffix == ".zarr"):
        raise FileExistsError(
            f"{path} is a {'folder' if path.is_dir() else 'file'}, and is not replaced; move it away."
        )
    if path.is_dir() and not any((path / name).exists() for name in (".zgroup", "zarr.json")):
        raise FileExistsError(f"{path} is not a zarr store, and is not replaced; move it away.")
    return path


def import_zarr() -> Any:
    """The package zarr, or an error that says how to get it."""
    try:
        import zarr
    except ImportError:
        raise ImportError("zarr files need the package zarr: pip install zarr, or give a name in .h5ad.") from None
    return zarr
