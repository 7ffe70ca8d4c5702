"""Model folders: safetensors and JSON, written whole or not at all, read without executing anything."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

FORMAT = "isodiff-model"
FORMAT_VERSION = 1
MODEL_FILE, WEIGHTS_FILE, FEATURES_FILE, ADATA_FILE = "model.json", "weights.safetensors", "features.json", "adata.h5ad"


def isd_version() -> str:
    """Installed version of the distribution ``isodiff``."""
    try:
        return version("isodiff")
    except PackageNotFoundError:
        return "unknown"


def to_jsonable(obj: Any) -> Any:
    """Turn registries and histories into JSON values from which :func:`from_jsonable` makes them again."""
    if isinstance(obj, Mapping):
        return {"__dict__": [[to_jsonable(k), to_jsonable(v)] for k, v in obj.items()]}
    if isinstance(obj, pd.DataFrame):
        columns = {str(c): to_jsonable(obj[c].to_numpy()) for c in obj.columns}
        return {"__frame__": columns, "index": to_jsonable(obj.index.to_numpy()), "index_name": obj.index.name}
    if isinstance(obj, pd.Index):
        return to_jsonable(obj.to_numpy())
    if isinstance(obj, torch.Tensor):
        return to_jsonable(obj.detach().cpu().numpy())
    if isinstance(obj, np.ndarray):
        dtype = "object" if obj.dtype.kind in "OUST" else str(obj.dtype)
        return {"__array__": [to_jsonable(v) for v in obj.tolist()], "dtype": dtype}
    if isinstance(obj, tuple):
        return {"__tuple__": [to_jsonable(v) for v in obj]}
    if isinstance(obj, list):
        return [to_jsonable(v) for v in obj]
    if isinstance(obj, np.generic):
        return obj.item()
    if isinstance(obj, Path):
        return str(obj)
    if obj is None or isinstance(obj, (str, int, float, bool)):
        return obj
    raise TypeError(f"a value of type {type(obj).__name__} cannot be saved with a model: {obj!r}")


def from_jsonable(obj: Any) -> Any:
    """Inverse of :func:`to_jsonable`."""
    if isinstance(obj, list):
        return [from_jsonable(v) for v in obj]
    if not isinstance(obj, dict):
        return obj
    if "__dict__" in obj:
        return {from_jsonable(k): from_jsonable(v) for k, v in obj["__dict__"]}
    if "__frame__" in obj:
        index = pd.Index(from_jsonable(obj["index"]), name=obj["index_name"])
        return pd.DataFrame({k: from_jsonable(v) for k, v in obj["__frame__"].items()}, index=index)
    if "__array__" in obj:
        values = [from_jsonable(v) for v in obj["__array__"]]
        if obj["dtype"] == "object":
            out = np.empty(len(values), dtype=object)
            out[:] = values
            return out
        return np.asarray(values, dtype=np.dtype(obj["dtype"]))
    if "__tuple__" in obj:
        return tuple(from_jsonable(v) for v in obj["__tuple__"])
    raise ValueError(f"model.json holds an entry of unknown form with keys {sorted(obj)}.")


def _digest(path: Path) -> str:
    h = hashlib.blake2b(digest_size=16)
    with path.open("rb") as f:
        while block := f.read(1 << 22):
            h.update(block)
    return h.hexdigest()


def write_folder(path: str | Path, fill: Callable[[Path], None], *, overwrite: bool) -> None:
    """Write a model folder under another name and put it in place when it is whole.

    Parameters
    ----------
    path
        Folder to make.
    fill
        Writes the files into the folder that it is given.
    overwrite
        Whether an older model may be replaced. A folder that is no model is never replaced.
    """
    check_target(path, overwrite=overwrite)
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-", dir=path.parent))
    try:
        umask = os.umask(0)
        os.umask(umask)
        new.chmod(0o777 & ~umask)
        fill(new)
        if not path.exists():
            os.replace(new, path)
            return
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old-", dir=path.parent))
        os.replace(path, old / path.name)
        try:
            os.replace(new, path)
        except OSError:
            os.replace(old / path.name, path)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def check_target(path: str | Path, *, overwrite: bool) -> None:
    """Raise when a folder cannot be written to: it holds something else, or a model that may not be replaced.

    Raises
    ------
    ValueError
        Saying which.
    """
    path = Path(path).resolve()
    if path.exists():
        is_model = path.is_dir() and ((path / MODEL_FILE).exists() or not any(path.iterdir()))
        if not is_model:
            raise ValueError(f"{path} exists and is not a saved model; choose another folder.")
        if not overwrite and any(path.iterdir()):
            raise ValueError(f"{path} already holds a model; give overwrite=True to replace it, or another folder.")


def write_model(
    path: Path, meta: dict[str, Any], tensors: Mapping[str, torch.Tensor], features: dict[str, Any]
) -> None:
    """Write ``weights.safetensors``, ``features.json`` and, last, ``model.json`` with their digests."""
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path / WEIGHTS_FILE)
    (path / FEATURES_FILE).write_text(json.dumps(features))
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "isodiff_version": isd_version(),
        "digests": {name: _digest(path / name) for name in (WEIGHTS_FILE, FEATURES_FILE)},
        **to_jsonable_values(meta),
    }
    (path / MODEL_FILE).write_text(json.dumps(document, indent=1))


def to_jsonable_values(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Encode the values of a mapping and keep its (string) keys readable."""
    return {k: to_jsonable(v) for k, v in meta.items()}


def read_model(path: str | Path, class_name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, Any]]:
    """Read a model folder: metadata, tensors, features.

    Raises
    ------
    FileNotFoundError
        If the folder is no saved model.
    ValueError
        If a file was changed or cut short, the format is newer than this package, or it is another class's model.
    """
    path = Path(path)
    if not (path / MODEL_FILE).is_file():
        raise FileNotFoundError(f"{path} has no {MODEL_FILE}: it is not a folder that isd's save() wrote.")
    try:
        document = json.loads((path / MODEL_FILE).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path / MODEL_FILE} is not valid JSON ({e}); the file is damaged.") from e
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{path / MODEL_FILE} is not the description of an isodiff model.")
    if document.get("format_version", 0) > FORMAT_VERSION:
        raise ValueError(
            f"{path} was written by isodiff {document.get('isodiff_version')} in format "
            f"{document['format_version']}; this version reads up to {FORMAT_VERSION}. Update isodiff."
        )
    if document.get("class") != class_name:
        raise ValueError(
            f"{path} holds a {document.get('class')}, not a {class_name}: use isd.model.{document.get('class')}.load."
        )
    for name, digest in document["digests"].items():
        if name not in (WEIGHTS_FILE, FEATURES_FILE):
            continue
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} lacks {name}; the model was not saved whole.")
        if _digest(path / name) != digest:
            raise ValueError(f"{path / name} does not match its digest in {MODEL_FILE}: it was changed or cut short.")
    try:
        tensors = load_file(path / WEIGHTS_FILE)
    except SafetensorError as e:
        raise ValueError(f"{path / WEIGHTS_FILE} cannot be read ({e}).") from e
    features = json.loads((path / FEATURES_FILE).read_text())
    meta = {k: from_jsonable(v) for k, v in document.items() if k != "digests"}
    return meta, tensors, features
