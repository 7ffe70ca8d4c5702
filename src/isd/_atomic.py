"""Files and folders that are there whole or not at all, whatever stops the process that writes them."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

#: What a file system answers that cannot exchange two names in one step.
_CANNOT_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Another name in the same folder to write to, which becomes ``path`` when the block has ended without an error.

    The bytes are on the disk before the name is: after a loss of power there is the older file or the new one.

    Parameters
    ----------
    path
        File to make or to replace. Its folder is made.

    Raises
    ------
    IsADirectoryError
        If ``path`` is a folder.
    OSError
        If the folder cannot be written to: before the block begins.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "numbers.txt"
    >>> with whole_file(path) as new:
    ...     _ = new.write_text("1 2 3")
    >>> path.read_text(), len(list(path.parent.iterdir()))
    ('1 2 3', 1)
    """
    path = Path(path).absolute()
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left_over(path)
    new = beside(path)
    try:
        new.touch()
        with disk_errors(path):
            yield new
        sync(new)
        os.replace(new, path)
        sync(path.parent)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Another folder to fill, which takes the place of ``path`` when the block has ended without an error.

    Two folders change places in one step where the file system can do so (Linux, macOS, local disks). Where it cannot,
    the older one stays beside under a known name in between, and :func:`recover` puts it back.

    Parameters
    ----------
    path
        Folder to make or to replace.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model"
    >>> for text in ("old", "new"):
    ...     with whole_folder(path) as folder:
    ...         _ = (folder / "weights").write_text(text)
    >>> (path / "weights").read_text(), [p.name for p in path.parent.iterdir()]
    ('new', ['model'])
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path)
    remove_left_over(path)
    new = beside(path)
    new.mkdir()
    try:
        with disk_errors(path):
            yield new
        sync_tree(new)
        swap(new, path)
        sync(path.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Tell of a full disk as such: HDF5 raises a ``RuntimeError`` where closing a file fails.

    Raises
    ------
    OSError
        With the number that the system gave.
    """
    try:
        yield
    except RuntimeError as e:
        if (found := re.search(r"errno = (\d+)", str(e))) is None:
            raise
        code = int(found[1])
        raise OSError(code, os.strerror(code), str(path)) from e


def swap(new: Path, path: Path) -> None:
    """Put a file or folder in the place of another, which is gone then or has the name ``new``."""
    if not path.exists() or not path.is_dir():
        os.replace(new, path)
        return
    if _exchange(new, path):
        return
    old = _old(path)
    shutil.rmtree(old, ignore_errors=True)
    os.replace(path, old)
    try:
        os.replace(new, path)
    except OSError:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def recover(path: Path) -> None:
    """Put back a folder that was moved aside to be replaced, when its replacement never came."""
    path = Path(path).absolute()
    if not path.exists() and _old(path).is_dir():
        os.replace(_old(path), path)


def remove_left_over(path: Path) -> None:
    """Remove unfinished files and folders that processes of this machine left beside ``path`` when they were killed."""
    prefix = f".{path.name}.new-{socket.gethostname()}-"
    for other in path.parent.iterdir():
        pid = other.name[len(prefix) :].split("-")[0] if other.name.startswith(prefix) else ""
        if pid.isdigit() and not _alive(int(pid)):
            with suppress(OSError):
                if other.is_dir():
                    shutil.rmtree(other)
                else:
                    other.unlink()


def sync_tree(path: Path) -> None:
    """:func:`sync` for a file, or for a folder and all that is in it."""
    for folder, _, files in os.walk(path):
        for name in files:
            sync(Path(folder) / name)
        sync(Path(folder))
    if path.is_file():
        sync(path)


def sync(path: Path) -> None:
    """Have the bytes of a file, or the names in a folder, written to the disk."""
    try:
        handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    except OSError:
        if path.is_dir():  # Windows opens no folders
            return
        raise
    try:
        os.fsync(handle)
    except OSError as e:
        # some network file systems cannot do so for folders
        if e.errno not in _CANNOT_EXCHANGE:
            raise
    finally:
        os.close(handle)


def beside(path: Path) -> Path:
    """A name that says which process of which machine writes there."""
    return path.with_name(f".{path.name}.new-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}")


def _old(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _alive(pid: int) -> bool:
    if os.name == "nt":  # where signal 0 is Ctrl-C and no question
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _exchange(a: Path, b: Path) -> bool:
    """Let two names change places in one step; ``False`` where that cannot be done."""
    libc: Any = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    if sys.platform.startswith("linux") and hasattr(libc, "renameat2"):
        here = -100  # AT_FDCWD
        failed = libc.renameat2(here, os.fsencode(a), here, os.fsencode(b), 2)  # RENAME_EXCHANGE
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(os.fsencode(a), os.fsencode(b), 2)  # RENAME_SWAP
    else:
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(a), None, str(b))
