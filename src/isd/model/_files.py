"""Model folders: safetensors and JSON, written whole or not at all, read without executing anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from isd._atomic import recover, whole_folder
from isd.model._bounds import DTYPES, check_h5ad, check_json
from isd.model._pickled import PICKLED_FILE

FORMAT = "isodiff-model"
FORMAT_VERSION = 3
MODEL_FILE, WEIGHTS_FILE, FEATURES_FILE, ADATA_FILE = "model.json", "weights.safetensors", "features.json", "adata.h5ad"
_NEEDED = (WEIGHTS_FILE, FEATURES_FILE)
_DIGESTED = (*_NEEDED, ADATA_FILE)


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
        if obj["dtype"] not in DTYPES:
            raise ValueError(f"an array has the type {str(obj['dtype'])[:40]!r}, which isd never writes.")
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
    with whole_folder(path) as new:
        fill(new)


def check_target(path: str | Path, *, overwrite: bool) -> None:
    """Raise when a folder cannot be written to: it holds something else, or a model that may not be replaced.

    Raises
    ------
    ValueError
        Saying which.
    """
    path = Path(path).absolute()
    recover(path)
    if path.exists():
        is_model = path.is_dir() and ((path / MODEL_FILE).exists() or not any(path.iterdir()))
        if not is_model:
            raise ValueError(f"{path} exists and is not a saved model; choose another folder.")
        if not overwrite and any(path.iterdir()):
            raise ValueError(f"{path} already holds a model; give overwrite=True to replace it, or another folder.")


def write_model(
    path: Path, meta: dict[str, Any], tensors: Mapping[str, torch.Tensor], features: dict[str, Any]
) -> None:
    """Write ``weights.safetensors``, ``features.json`` and, last, ``model.json`` with the digests of all files beside."""
    save_tensors(tensors, path / WEIGHTS_FILE)
    (path / FEATURES_FILE).write_text(json.dumps(features))
    document = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "isodiff_version": isd_version(),
        "digests": {name: _digest(path / name) for name in _DIGESTED if (path / name).exists()},
        **to_jsonable_values(meta),
    }
    (path / MODEL_FILE).write_text(json.dumps(document, indent=1))


def save_tensors(tensors: Mapping[str, torch.Tensor], path: str | Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, with the rights that the user's mask gives.

    Raises
    ------
    OSError
        If there is no room for it.
    """
    # safetensors' own files are for their owner only
    Path(path).touch()
    mode = Path(path).stat().st_mode
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path, metadata)
    except SafetensorError as e:
        raise OSError(f"{path} could not be written: {e}") from e
    Path(path).chmod(mode)


def to_jsonable_values(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Encode the values of a mapping and keep its (string) keys readable."""
    return {k: to_jsonable(v) for k, v in meta.items()}


def read_document(path: str | Path) -> dict[str, Any]:
    """``model.json`` of a model folder, of a format that this version knows; nothing else is read.

    Raises
    ------
    FileNotFoundError
        If the folder is no saved model.
    ValueError
        If it is damaged, or the format is newer than this package.
    """
    path = Path(path)
    recover(path)
    file = path / MODEL_FILE
    if not file.is_file():
        if (path / PICKLED_FILE).is_file():
            raise ValueError(
                f"{path} holds a pickled model ({PICKLED_FILE}) as scvi-tools writes it, and reading one can run any code that its "
                "author put there. If you trust where it is from, load it with allow_pickle=True, and save() it again."
            )
        raise FileNotFoundError(f"{path} has no {MODEL_FILE}: it is not a folder that isd's save() wrote.")
    document = _read_json(file)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError(f"{file} is not the description of an isodiff model.")
    written, by = document.get("format_version"), document.get("isodiff_version")
    if isinstance(written, bool) or not isinstance(written, int) or written < 1:
        raise ValueError(f"{file} has the format_version {written!r}, which is no number that isd ever wrote.")
    if written > FORMAT_VERSION:
        raise ValueError(
            f"{path} was written by isodiff {by} in format {written}; this version ({isd_version()}) reads up to "
            f"{FORMAT_VERSION}. Update isodiff."
        )
    for older in range(written, FORMAT_VERSION):
        document = _MIGRATIONS[older](document)
    digests = document.get("digests")
    if not isinstance(digests, dict) or not all(isinstance(v, str) for v in digests.values()):
        raise ValueError(f"{file} has no digests of the files beside it; the file is damaged.")
    missing = [name for name in _NEEDED if name not in digests]
    if missing:
        raise ValueError(f"{file} has no digest of {', '.join(missing)}; the file is damaged.")
    return document


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
    document = read_document(path)
    check_class(path, document, class_name)
    for name in _NEEDED:
        if not (path / name).is_file():
            raise FileNotFoundError(f"{path} lacks {name}; the model was not saved whole.")
        check_digest(path, name, document)
    try:
        tensors = load_file(path / WEIGHTS_FILE)
    except (SafetensorError, KeyError) as e:  # KeyError: a type of number that torch does not have
        raise ValueError(f"{path / WEIGHTS_FILE} cannot be read ({e}).") from e
    features = _read_json(path / FEATURES_FILE)
    try:
        _check_features_file(features)
        meta = {k: from_jsonable(v) for k, v in document.items() if k != "digests"}
        _check_meta(meta)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as e:
        raise ValueError(
            f"{path} was changed by something else than isd, or is damaged: {type(e).__name__}: {str(e)[:300]}"
        ) from e
    return meta, tensors, features


def check_class(path: Path, document: dict[str, Any], class_name: str) -> None:
    """Raise when a folder holds a model of another class.

    Raises
    ------
    ValueError
        Naming the class that reads it.
    """
    found = document.get("class")
    if found != class_name:
        known = f": use isd.model.{found}.load" if found in ("VAE", "LatentDiffusion", "Classifier") else ""
        raise ValueError(f"{path} holds a {str(found)[:80]}, not a {class_name}{known}.")


def check_digest(path: Path, name: str, document: dict[str, Any]) -> None:
    """Raise when a file of a model folder is not the one that was saved.

    Raises
    ------
    ValueError
        Naming the file.
    """
    digest = document["digests"].get(name)
    if digest is not None and _digest(path / name) != digest:
        raise ValueError(f"{path / name} does not match its digest in {MODEL_FILE}: it was changed or cut short.")


def check_adata_file(path: Path) -> None:
    """Raise when the AnnData beside a model is not the one that was saved, or stands for more than it can hold.

    Raises
    ------
    ValueError
        Saying what to do.
    """
    try:
        check_digest(path, ADATA_FILE, read_document(path))
        check_h5ad(path / ADATA_FILE)
    except (ValueError, OSError) as e:
        raise ValueError(f"{e} Give the data yourself (load(folder, adata)), or none (load(folder, False)).") from e


def read_info(dir_path: str | Path) -> dict[str, Any]:
    """What a model folder holds, without loading the model.

    Parameters
    ----------
    dir_path
        Folder that ``save`` wrote.

    Returns
    -------
    ``"class"``, ``"format_version"``, ``"isodiff_version"`` (which version wrote it), ``"fingerprint"`` (``None`` for a model
    that is not trained), ``"n_vars"``, ``"labels_key"``, ``"labels"``, ``"size"`` (bytes of the weights) and ``"has_adata"``.

    Raises
    ------
    FileNotFoundError
        If the folder holds no model.
    ValueError
        If its description is damaged, or of a newer format.

    Examples
    --------
    >>> import isd, tempfile
    >>> adata = isd.datasets.simulated(n_obs=60, n_vars=50, n_labels=2)
    >>> isd.model.VAE.setup_anndata(adata)
    >>> folder = tempfile.mkdtemp()
    >>> isd.model.VAE(adata, n_latent=4, n_hidden=16).save(folder)
    >>> info = isd.model.read_info(folder)
    >>> info["class"], info["format_version"], info["n_vars"], info["labels"]
    ('VAE', 3, 50, ['0', '1'])
    """
    path = Path(dir_path)
    document = read_document(path)
    try:
        registry = from_jsonable(document["registry"])
        features = _read_json(path / FEATURES_FILE)
        return {
            "class": document["class"],
            "format_version": document["format_version"],
            "isodiff_version": document["isodiff_version"],
            "fingerprint": document["fingerprint"],
            "n_vars": len(features["var_names"]),
            "labels_key": registry["setup_args"]["labels_key"],
            "labels": list(registry["field_registries"]["labels"]["state_registry"]["categorical_mapping"]),
            "size": (path / WEIGHTS_FILE).stat().st_size,
            "has_adata": (path / ADATA_FILE).is_file(),
        }
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{path / MODEL_FILE} is damaged ({type(e).__name__}: {e}).") from e


def _with_parameter(document: dict[str, Any], class_name: str, name: str, value: Any) -> dict[str, Any]:
    """The description of a model of this class that was made when a parameter of its network was not there yet."""
    if document.get("class") != class_name:
        return document
    try:
        params = document["attributes"]
        # as it is written: nothing is made of a description that was not yet checked
        for key in ("init_params_", "non_kwargs"):
            params = dict(params["__dict__"])[key]
        params["__dict__"].append([name, value])
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ValueError(f"the file does not describe a model; it is damaged ({type(e).__name__}: {e}).") from e
    return document


#: What makes a description of format ``n`` one of format ``n + 1``; every format that was ever released has an entry.
_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    # no clumps of counts
    1: lambda document: _with_parameter(document, "VAE", "clumps", False),
    # no normal scores of library sizes
    2: lambda document: _with_parameter(document, "LatentDiffusion", "library_quantiles", 0),
}


def _read_json(file: Path) -> Any:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:  # of JSON, of the encoding, of numbers with too many digits
        raise ValueError(f"{file} is not valid JSON ({str(e)[:200]}); the file is damaged.") from e
    check_json(value, str(file))
    return value


def _strings(values: Any, what: str, *, or_none: bool = False) -> list[Any]:
    if not isinstance(values, list) or not all(isinstance(v, str) or (or_none and v is None) for v in values):
        raise ValueError(f"{what} is not a list of names")
    return values


def _check_features_file(features: Any) -> None:
    n = len(_strings(features["var_names"], "var_names"))
    for name, column in features["columns"].items():
        if len(_strings(column, f"column {name!r}", or_none=True)) != n:
            raise ValueError(f"column {name!r} has {len(column)} values for {n} features")
    if "genes" in features:
        names = _strings(features["genes"]["names"], "the list of genes")
        codes = features["genes"]["codes"]
        if len(codes) != n or not all(type(c) is int and 0 <= c < len(names) for c in codes):
            raise ValueError("genes and features do not fit together")


def _check_meta(meta: Any) -> None:
    for key, kind in (("attributes", dict), ("registry", dict), ("fingerprint", (str, type(None)))):
        if not isinstance(meta[key], kind):
            raise ValueError(f"{key!r} is of the wrong kind")
    colors = meta["colors"]
    if colors is not None:
        _strings(colors, "colors")
    for key in ("setup_args", "field_registries"):
        if not isinstance(meta["registry"][key], dict):
            raise ValueError(f"registry[{key!r}] is of the wrong kind")
