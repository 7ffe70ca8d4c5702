"""What a model file may make this package do: no more than a file of its size can stand for.

A few bytes of JSON can ask for a billion hidden units. What is built while a model is loaded is therefore watched: tensors are
counted before they are made, and more of them than the weights' file can fill are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

#: Bytes that a model may take beyond a multiple of its file, for what is made on the way and not saved.
FREE = 64 * 2**20
#: Most times by which gzip, the densest filter of HDF5 files, makes data smaller.
DENSEST = 1100
#: Deepest nesting of JSON that is read.
DEEPEST = 64
#: Types of numbers that arrays in JSON may have; others (structured, of any width) could ask for any amount of memory.
DTYPES = {
    "object",
    "bool",
    *(f"{k}{n}" for k in ("int", "uint") for n in (8, 16, 32, 64)),
    "float16",
    "float32",
    "float64",
}


class Budget(TorchDispatchMode):
    """Count the tensors that are made in a block, before they are.

    Parameters
    ----------
    n_bytes
        Most bytes of all of them.
    n_calls
        Most operations: a description with a billion layers of one unit would take as long.

    Raises
    ------
    ValueError
        Before the first tensor that is too much.
    """

    def __init__(self, n_bytes: int, n_calls: int) -> None:
        super().__init__()
        self.n_bytes, self.n_calls = n_bytes, n_calls

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Take off what an operation makes, and run it."""
        kwargs = kwargs or {}
        made = [a for a in func._schema.returns if a.alias_info is None]
        if made:
            given = dict(zip([a.name for a in func._schema.arguments], args, strict=False)) | kwargs
            self.n_bytes -= 8 * _elements(given)
        self.n_calls -= 1
        if self.n_bytes < 0 or self.n_calls < 0:
            raise ValueError("the description asks for a larger model than the weights' file can fill.")
        return func(*args, **kwargs)


def _elements(given: Mapping[str, Any]) -> int:
    """Elements of a new tensor, as far as its arguments say: of a given size, of a range, or as large as its inputs."""
    size = given.get("size")
    if isinstance(size, (list, tuple)):
        return math.prod(max(int(n), 0) for n in size)
    if "n" in given:  # eye
        return int(given["n"]) * int(given.get("m", given["n"]))
    if "steps" in given:
        return int(given["steps"])
    if isinstance(given.get("end"), (int, float)):  # arange
        return max(int((given["end"] - given.get("start", 0)) / (given.get("step") or 1)), 0)
    inputs = [a for a in given.values() if isinstance(a, torch.Tensor)]
    return max((a.numel() for a in inputs), default=0)


@contextmanager
def described_by(path: Path, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Build what a model folder describes, and nothing larger; what does not fit together is told as such.

    Parameters
    ----------
    path
        The folder, for messages.
    tensors
        What its weights' file holds.

    Raises
    ------
    ValueError
        If the description asks for more than the file can fill, or makes no sense.
    """
    n_bytes = 8 * sum(t.numel() for t in tensors.values())
    try:
        with Budget(16 * n_bytes + FREE, 2000 + 500 * len(tensors)):
            yield
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        OverflowError,
        RuntimeError,
        AssertionError,
    ) as e:
        raise ValueError(
            f"{path} does not describe a model that isd can build ({type(e).__name__}: {str(e)[:300]}); the folder is "
            "damaged, or was not written by isd's save()."
        ) from e
    except (MemoryError, RecursionError) as e:
        raise ValueError(f"{path} describes something too large to build ({type(e).__name__}).") from e


#: Options of models that count layers: each layer has a tensor at least.
_LAYERS = ("n_layers", "n_blocks")


def check_numbers(options: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Raise for whole numbers that no model with these tensors can have been made with.

    Parameters
    ----------
    options
        Arguments of the model's constructor, as the file has them.
    tensors
        What the weights' file holds.

    Raises
    ------
    ValueError
        Naming the option.
    """
    elements = max(sum(t.numel() for t in tensors.values()), 10_000)
    for name, value in options.items():
        most = len(tensors) if name in _LAYERS else elements
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, int) and abs(number) > most:
                raise ValueError(f"{name}={number} asks for a larger model than the weights' file can fill")


def check_json(value: Any, where: str, depth: int = 0) -> None:
    """Raise for JSON that is nested deeper than any model's.

    Raises
    ------
    ValueError
        Naming the file.
    """
    if depth > DEEPEST:
        raise ValueError(f"{where} is nested more than {DEEPEST} deep; isd writes nothing like that.")
    if isinstance(value, dict):
        for entry in value.values():
            check_json(entry, where, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            if isinstance(entry, (dict, list)):
                check_json(entry, where, depth + 1)


def check_h5ad(path: Path) -> None:
    """Raise for an HDF5 file that names data outside itself, or stands for more than it can hold.

    A data set of which nothing is stored has any shape that it likes, and filters make much of little: reading it would
    take memory that the file's size gives no hint of.

    Raises
    ------
    ValueError
        Naming the data set.
    OSError
        If the file is no HDF5 file.
    """
    import h5py

    seen = set()

    def visit(group: Any) -> None:
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"{path}: {group.name}/{name} is a link to somewhere else; isd writes none.")
            entry = group[name]
            if entry.id in seen:
                raise ValueError(f"{path}: {group.name}/{name} is there under two names; isd writes none such.")
            seen.add(entry.id)
            if isinstance(entry, h5py.Group):
                visit(entry)
            elif isinstance(entry, h5py.Dataset) and entry.shape is not None:
                plist = entry.id.get_create_plist()
                if plist.get_external_count() or entry.is_virtual:
                    raise ValueError(f"{path}: the data of {entry.name} are in another file; isd writes none such.")
                held = entry.id.get_storage_size() * (DENSEST if entry.chunks else 1)
                if entry.nbytes > held + 2**16:
                    raise ValueError(
                        f"{path}: {entry.name} claims {entry.nbytes:,} bytes, and the file holds {entry.id.get_storage_size():,} "
                        "of it; the file is damaged, or was not written by isd's save()."
                    )

    with h5py.File(path, "r") as f:
        visit(f)
