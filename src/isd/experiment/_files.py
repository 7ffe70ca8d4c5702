"""Files that are there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from isd._atomic import whole_file, whole_folder


def write_text(path: Path, text: str) -> None:
    """Write a text file under another name and put it in place when it is whole."""
    with whole_file(path) as new:
        new.write_text(text, encoding="utf-8")


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder under another name and put it in place when it is whole.

    Parameters
    ----------
    path
        Folder to make; there is none of that name yet.
    fill
        Writes the files into the folder that it is given.
    """
    with whole_folder(path) as new:
        fill(new)
