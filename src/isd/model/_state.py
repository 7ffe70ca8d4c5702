"""The state of a training in one file of tensors and JSON: written whole, read without executing anything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from safetensors import SafetensorError, safe_open
from torch import Tensor

from isd.model._bounds import check_json
from isd.model._files import from_jsonable, isd_version, save_tensors, to_jsonable

TRAINING_FILE = "training.safetensors"
FORMAT, FORMAT_VERSION = "isodiff-training", 1
_NOTES, _TREE = "isodiff_notes", "isodiff_tree"
#: What Lightning puts into a checkpoint and nothing of ours needs.
_LEFT_OUT = {
    "hyper_parameters",
    "hparams_name",
    "datamodule_hyper_parameters",
    "datamodule_hparams_name",
    "hparams_type",
}


def pack(obj: Any, tensors: dict[str, Tensor], where: str = "") -> Any:
    """Nested mappings and sequences as JSON values, the tensors in them apart.

    Parameters
    ----------
    obj
        What to keep.
    tensors
        Gets the tensors, by where they stand.
    where
        Where ``obj`` stands, for names and messages.

    Raises
    ------
    TypeError
        If something in it is neither a tensor nor plain data.

    Examples
    --------
    >>> tensors = {}
    >>> tree = pack({"a": [torch.ones(2), 3]}, tensors)
    >>> unpack(tree, tensors)
    {'a': [tensor([1., 1.]), 3]}
    """
    if isinstance(obj, Tensor):
        name = f"{len(tensors)}{where}"
        tensors[name] = obj
        return {"__tensor__": name}
    if isinstance(obj, Mapping):
        return {"__dict__": [[pack(k, tensors), pack(v, tensors, f"{where}.{k}")] for k, v in obj.items()]}
    if isinstance(obj, (list, tuple)):
        values = [pack(v, tensors, f"{where}.{i}") for i, v in enumerate(obj)]
        return values if isinstance(obj, list) else {"__tuple__": values}
    try:
        return to_jsonable(obj)
    except TypeError:
        raise TypeError(
            f"a checkpoint cannot hold {where.lstrip('.') or 'this'}, which is a {type(obj).__name__}: only tensors, numbers and "
            "text go into one. Leave out the callback that keeps it, or checkpoint_dir."
        ) from None


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Inverse of :func:`pack`."""
    if isinstance(tree, list):
        return [unpack(v, tensors) for v in tree]
    if not isinstance(tree, dict):
        return tree
    if "__tensor__" in tree:
        return tensors[tree["__tensor__"]]
    if "__dict__" in tree:
        return {unpack(k, tensors): unpack(v, tensors) for k, v in tree["__dict__"]}
    if "__tuple__" in tree:
        return tuple(unpack(v, tensors) for v in tree["__tuple__"])
    return from_jsonable(tree)


def _digest(tensors: Mapping[str, Tensor], *texts: str) -> str:
    h = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        h.update(name.encode())
        h.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().data)
    for text in texts:
        h.update(text.encode())
    return h.hexdigest()


def write_state(path: str | Path, state: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
    """Write a state of a training.

    Parameters
    ----------
    path
        File to write.
    state
        Nested mappings and sequences of tensors and plain data.
    notes
        What can be read without reading the tensors: plain data.
    """
    found: dict[str, Tensor] = {}
    tree = json.dumps(pack({k: v for k, v in state.items() if k not in _LEFT_OUT}, found))
    tensors, seen = {}, set()
    for name, value in found.items():
        value = value.detach().cpu().contiguous()
        place = value.untyped_storage().data_ptr()
        tensors[name] = value.clone() if place in seen else value  # a file holds no tensor twice under one address
        seen.add(place)
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "isodiff_version": isd_version()}
    text = json.dumps(to_jsonable({**head, **notes}))
    save_tensors(tensors, path, {_NOTES: text, _TREE: tree, "digest": _digest(tensors, text, tree)})


def _metadata(file: Any, path: str | Path) -> dict[str, str]:
    metadata = file.metadata() or {}
    if not {_NOTES, _TREE, "digest"} <= metadata.keys():
        raise ValueError(f"{path} is not the state of a training that isd wrote.")
    return metadata


def _notes(metadata: Mapping[str, str], path: str | Path) -> dict[str, Any]:
    notes = from_jsonable(_json(metadata[_NOTES], path))
    if not isinstance(notes, dict) or notes.get("format") != FORMAT:
        raise ValueError(f"{path} is not the state of a training that isd wrote.")
    written = notes.get("format_version")
    if not isinstance(written, int) or written > FORMAT_VERSION:
        raise ValueError(
            f"{path} was written by isodiff {notes.get('isodiff_version')} in format {written}; this version ({isd_version()}) "
            f"reads up to {FORMAT_VERSION}. Update isodiff."
        )
    return notes


def _json(text: str, path: str | Path) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path} holds JSON that is not valid ({str(e)[:200]}); the file is damaged.") from e
    check_json(value, str(path))
    return value


def read_notes(path: str | Path) -> dict[str, Any]:
    """What :func:`write_state` was given as ``notes``; tensors are not read.

    Raises
    ------
    ValueError
        If it is another file, damaged, or of a newer format.
    """
    try:
        with safe_open(path, "pt") as file:
            return _notes(_metadata(file, path), path)
    except SafetensorError as e:
        raise ValueError(f"{path} cannot be read ({e}); it is damaged.") from e


def read_state(path: str | Path) -> dict[str, Any]:
    """What :func:`write_state` was given as ``state``.

    Raises
    ------
    ValueError
        If it is another file, was changed or cut short, or is of a newer format.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = _metadata(file, path)
            _notes(metadata, path)
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as e:
        raise ValueError(f"{path} cannot be read ({e}); it is damaged.") from e
    if _digest(tensors, metadata[_NOTES], metadata[_TREE]) != metadata["digest"]:
        raise ValueError(f"{path} does not match its digest: it was changed or damaged.")
    return unpack(_json(metadata[_TREE], path), tensors)


class SafeCheckpoints(CheckpointIO):
    """Lightning's checkpoints in the form of :func:`write_state`.

    Attributes
    ----------
    notes, extra
        What is written beside Lightning's own state, set before each checkpoint.
    """

    def __init__(self) -> None:
        self.notes: dict[str, Any] = {}
        self.extra: dict[str, Any] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write."""
        write_state(path, {**checkpoint, "isd": self.extra}, self.notes)

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        """Read; what is ours is kept in :attr:`extra`."""
        checkpoint = read_state(path)
        self.extra = checkpoint.pop("isd")
        if self.extra["between_epochs"]:
            # Lightning would finish the epoch a second time; its counters are set by hand
            checkpoint.pop("loops")
        return checkpoint

    def remove_checkpoint(self, path: Any) -> None:
        """Remove."""
        Path(path).unlink(missing_ok=True)
