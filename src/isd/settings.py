"""Package-wide settings: verbosity, progress bars, the default seed and the folder of figures."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

from isd._processes import process_rank

__all__ = ["Settings", "settings"]


@dataclass
class Settings:
    """Settings that every part of ``isd`` reads.

    Parameters
    ----------
    verbosity
        Level of the ``isd`` logger, as in ``logging``: 10 debug, 20 info, 30 warnings only.
    progress
        ``True`` shows progress bars, ``False`` hides them, ``None`` (default) shows them on a terminal
        or in a notebook and hides them in a pipe or a log file.
    seed
        Seed that is used where a function's own ``seed`` is ``None``.
    figdir
        Folder in which ``isd.pl`` functions save pictures when ``save`` is a name and not a path.

    Examples
    --------
    >>> import isd
    >>> isd.settings.progress = False
    """

    verbosity: int = logging.INFO
    progress: bool | None = None
    seed: int = 0
    figdir: Path = field(default_factory=lambda: Path("figures"))

    def __setattr__(self, name: str, value: object) -> None:
        if name not in self.__dataclass_fields__:
            known = ", ".join(self.__dataclass_fields__)
            raise AttributeError(f"isd.settings has no setting {name!r}; it has: {known}.")
        if name == "figdir":
            value = Path(str(value))
        if name == "verbosity":
            logging.getLogger("isd").setLevel(int(value))  # type: ignore[call-overload]
        super().__setattr__(name, value)

    def show_progress(self, progress: bool | None = None) -> bool:
        """Whether a progress bar should be drawn now; of several processes that train together, the first draws.

        Parameters
        ----------
        progress
            A caller's own wish; ``None`` falls back to :attr:`progress`, then to whether anyone is looking.

        Returns
        -------
        bool
        """
        if process_rank():
            return False
        if progress is not None:
            return progress
        if self.progress is not None:
            return self.progress
        return sys.stderr.isatty() or in_notebook()


def in_notebook() -> bool:
    """Whether this process is a Jupyter kernel; libraries import ``ipykernel`` elsewhere, too."""
    kernel = sys.modules.get("ipykernel.kernelapp")
    return kernel is not None and bool(kernel.IPKernelApp.initialized())


settings = Settings()
