"""Errors of readers: a damaged or foreign file is a ``ValueError`` that names it, whatever a library made of it."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any


class UnreadableFileError(ValueError):
    """A file is damaged, cut short, or of another kind than it was taken for."""


class NotInFileError(KeyError):
    """Something was asked for that a (sound) file does not hold."""


class NothingLeftError(ValueError):
    """What was asked for leaves nothing of a (sound) file."""


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn whatever libraries raise on damaged bytes into one error that names the file.

    h5py, gzip, pandas, scipy and pyarrow raise a dozen unrelated types here, ``AssertionError`` and ``RuntimeError``
    among them; a user of a reader should have to know one.

    Parameters
    ----------
    path
        The file.
    what
        What it was read as, with its article: ``"an ARCHS4 file"``.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError):
        raise
    except (UnreadableFileError, NotInFileError, NothingLeftError):
        raise
    except ImportError:
        raise  # a library is missing, which is not the file's fault
    except MemoryError as error:
        raise MemoryError(
            f"{path} asks for more memory than there is ({error}); read fewer samples or cells, or check the file."
        ) from error
    except Exception as error:
        detail = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
        raise UnreadableFileError(
            f"{path} cannot be read as {what}: {detail[:300] or type(error).__name__}. "
            "It may be damaged, cut short, or of another kind; compare its size or checksum with the original."
        ) from error


def existing(path: Any, what: str) -> Path:
    """Return the path of something that is there.

    Raises
    ------
    FileNotFoundError
        If there is nothing.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected {what}.")
    return path


def is_gzipped(path: Path) -> bool:
    """Whether a file is compressed by gzip, whatever its name says."""
    with path.open("rb") as raw:
        return raw.read(2) == b"\x1f\x8b"


def open_text(path: Path) -> Any:
    """Open a text file, gzipped or not."""
    if is_gzipped(path):
        return gzip.open(path, "rt", encoding="utf-8-sig", errors="replace")
    return path.open(encoding="utf-8-sig", errors="replace")


def optional(module: str, package: str, reason: str) -> ModuleType:
    """Import what only some readers need.

    Raises
    ------
    ImportError
        Naming the extra that brings it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f'{reason} needs {package}: pip install "isodiff[io]" ({error}).') from error
