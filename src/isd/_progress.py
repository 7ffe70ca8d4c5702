"""One way to show progress: a rich bar with the time left, silent in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from isd.settings import settings

T = TypeVar("T")


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
    if not settings.show_progress(progress):
        yield from iterable
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
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)  # type: ignore[arg-type]
    # stderr: what a command prints on stdout stays machine-readable
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        for item in iterable:
            yield item
            bar.advance(task)
