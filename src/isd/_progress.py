"""One way to show progress: a rich bar with the time left, silent in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

from isd._processes import process_rank
from isd.settings import in_notebook, settings

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

    def due(self) -> bool:
        """Whether the last line is long enough ago."""
        return time.monotonic() - self.last >= self.every

    def tell(self, what: str, done: int, total: int | None, more: str = "") -> None:
        """Write a line, if one is due."""
        if not self.due():
            return
        now = self.last = time.monotonic()
        of = "" if total is None else f" of {total:,}"
        self.write(f"{what}: {done:,}{of}{more}, {(now - self.start) / 60:.1f} min")


def lines(progress: bool | None) -> Lines | None:
    """Lines on some work, if they are wanted: nobody sees a bar, and nobody asked for silence."""
    silent = progress is False or settings.progress is False or process_rank() != 0
    return None if _lines is None or silent or settings.show_progress(progress) else Lines(*_lines)


class Bar:
    """A bar with elapsed time and time left, drawn until it is closed: by rich, in notebooks as plain text.

    Parameters
    ----------
    description
        Text before the bar.
    total
        Number of items; ``None`` where it is not known.
    done
        Items that are done already; they do not count for the time left.
    """

    def __init__(self, description: str, total: int | None, done: int = 0) -> None:
        if in_notebook():
            # rich's live display asks for ipywidgets in notebooks, at every update; plain text needs nothing
            from tqdm.std import tqdm  # type: ignore[import-untyped]

            self._plain: Any = tqdm(desc=description, total=total, initial=done)
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
        from rich.table import Column

        self._plain = None
        # stderr: what a command prints on stdout stays machine-readable
        self._rich = Progress(
            TextColumn("{task.description}"),
            # the one column that gives way where the terminal is narrow; room is left for the ^C that a terminal echoes
            BarColumn(bar_width=None, table_column=Column(max_width=30)),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[more]}"),
            console=Console(stderr=True),
        )
        self._task = self._rich.add_task(description, total=total, completed=done, more="")
        self._rich.start()

    def move(self, done: int, more: str = "") -> None:
        """Say how many items are done, and something more behind the bar."""
        if self._plain is None:
            self._rich.update(self._task, completed=done, more=more)
            return
        if more:
            self._plain.set_postfix_str(more, refresh=False)
        self._plain.update(done - self._plain.n)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._plain is None:
            self._rich.stop()
        else:
            self._plain.close()


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
    bar = Bar(description, total)
    try:
        for i, item in enumerate(iterable, 1):
            yield item
            bar.move(i)
    finally:
        bar.close()
