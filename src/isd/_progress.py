"""One way to show progress: a rich bar with the time left, silent in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from isd._processes import process_rank
from isd.settings import settings

T = TypeVar("T")
#: Where lines go in place of bars, and the seconds between two of them; set by :func:`plain_lines`.
_lines: tuple[Callable[[str], None], float] | None = None


@contextmanager
def plain_lines(write: Callable[[str], None], *, every: float = 30.0) -> Iterator[None]:
    """Tell how far work is in lines for a log file, where no bar is drawn.

    Parameters
    ----------
    write
        Takes a line.
    every
        Seconds from one line to the next of the same work; what takes less says nothing.
    """
    global _lines
    before, _lines = _lines, (write, every)
    try:
        yield
    finally:
        _lines = before


class Lines:
    """Lines on one piece of work.

    Parameters
    ----------
    write
        Takes a line.
    every
        Seconds between two lines.
    """

    def __init__(self, write: Callable[[str], None], every: float) -> None:
        self.write, self.every = write, every
        self.start = self.last = time.monotonic()

    def tell(self, what: str, done: int, total: int | None, more: str = "") -> None:
        """Write a line, if the last one is long enough ago."""
        now = time.monotonic()
        if now - self.last < self.every:
            return
        self.last = now
        of = "" if total is None else f" of {total:,}"
        self.write(f"{what}: {done:,}{of}{more}, {(now - self.start) / 60:.1f} min")


def lines(progress: bool | None) -> Lines | None:
    """Lines on some work, if they are wanted: nobody sees a bar, and nobody asked for silence."""
    silent = progress is False or settings.progress is False or process_rank() != 0
    return None if _lines is None or silent or settings.show_progress(progress) else Lines(*_lines)


def track(
    iterable: Iterable[T], description: str, *, total: int | None = None, progress: bool | None = None
) -> Iterator[T]:
    """Iterate with a progress bar (elapsed time and time left) when somebody is looking.

    Parameters
    ----------
    iterable
        What to iterate over.
    description
        Text before the bar.
    total
        Number of items; taken from ``len(iterable)`` where it has one.
    progress
        Overrides :attr:`isd.settings.progress <isd.settings.Settings.progress>`.
    """
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    if not settings.show_progress(progress):
        told = lines(progress)
        for i, item in enumerate(iterable, 1):
            yield item
            if told is not None:
                told.tell(description, i, total)
        return
    if "ipykernel" in sys.modules:
        # rich's live display asks for ipywidgets in notebooks, at every update; plain text needs nothing
        from tqdm.std import tqdm  # type: ignore[import-untyped]

        yield from tqdm(iterable, desc=description, total=total)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # stderr: what a command prints on stdout stays machine-readable
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        for item in iterable:
            yield item
            bar.advance(task)
