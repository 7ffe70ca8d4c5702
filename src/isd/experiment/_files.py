"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a text file under another name and put it in place when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder under another name and put it in place when it is whole.

    Parameters
    ----------
    path
        Folder to make; there is none of that name yet.
    fill
        Writes the files into the folder that it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        fill(new)
        new.chmod(0o755)
        os.replace(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)
