"""What the commands share: messages, exit codes, reading, writing, and options of one meaning."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

import isd
from isd._atomic import whole_file, whole_folder
from isd._progress import plain_lines
from isd._target import checked_target

if TYPE_CHECKING:
    from anndata import AnnData

#: Progress and messages; stdout carries results only.
_messages = Console(stderr=True, soft_wrap=True, highlight=False)

#: What is a wrong input or a full disk, and not a mistake of ours: shown as one line.
_EXPECTED = (ValueError, KeyError, OSError, MemoryError, ImportError)
#: The training that was asked for is not finished; the same command goes on with it.
EXIT_NOT_FINISHED = 3

# options that mean the same in every command, said once
Layer = Annotated[str | None, typer.Option(help='Layer of raw counts; by default "counts" where there is one, else X.')]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Jobs = Annotated[int, typer.Option(help="Processes of the random forests; -1 is all cores.")]
Progress = Annotated[
    bool | None, typer.Option(help="Progress bars; by default on a terminal, and plain lines in a log file.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and all warnings.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there under the name of OUT.")]
Accelerator = Annotated[str, typer.Option(help="Where to compute: auto, cpu, gpu, mps.")]
ModelFolder = Annotated[
    Path, typer.Argument(help="Folder of a trained model.", exists=True, file_okay=False, show_default=False)
]


@contextmanager
def _one_line(debug: bool, progress: bool | None = None) -> Iterator[None]:
    """Show errors of the input, and our own warnings, as one line each; with ``debug`` everything, with tracebacks."""
    if progress is not None:
        isd.settings.progress = progress
    with plain_lines(lambda line: _messages.print(f"      {escape(line)}")):
        if debug:
            yield
            return
        with warnings.catch_warnings():
            # what isd says is addressed to the user (its stack level points here); other libraries talk to programmers
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", category=UserWarning, module=r"isd(\.|$)")
            warnings.showwarning = lambda message, *_args, **_kwargs: _messages.print(
                f"[yellow]warning:[/] {escape(_as_options(message))}"
            )
            try:
                yield
            except (*_EXPECTED, RuntimeError, TypeError) as error:
                # typer.Exit is a RuntimeError, too
                if not isinstance(error, _EXPECTED) and not _is_ours(error):
                    raise
                # str(KeyError) is the repr of its message
                text = error.args[0] if isinstance(error, KeyError) and error.args else error
                _messages.print(f"[red]error:[/] {escape(_as_options(text) or type(error).__name__)}")
                raise typer.Exit(1) from None
            except KeyboardInterrupt as error:
                _messages.print(f"[red]stopped[/]{escape(_as_options(f': {error}' if error.args else ''))}")
                raise typer.Exit(130) from None


def _is_ours(error: BaseException) -> bool:
    """Whether a line of isd raised an error, and it is thus a message to the user."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return (
        type(error) in (RuntimeError, TypeError)
        and last is not None
        and str(last.tb_frame.f_globals.get("__name__", "")).startswith("isd.")
    )


def _as_options(text: object) -> str:
    """A message on one line, in which arguments of Python are options of the command line."""
    line = " ".join(str(text).split())
    # a command has its folder of checkpoints already
    line = re.sub(
        r'make the same call with checkpoint_dir="[^"]*" and resume=True', "give it again with --resume", line
    )
    line = re.sub(r"\b(resume)=False\b", r"--no-\1", line)
    return re.sub(r"\b(overwrite|resume)=True\b", r"--\1", line)


class _Steps:
    """Numbered steps with the time that each took."""

    def __init__(self, total: int) -> None:
        self.total, self.number, self.start = total, 0, time.monotonic()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        self.number += 1
        _messages.print(f"[bold]\\[{self.number}/{self.total}][/] {escape(what)}")
        begin = time.monotonic()
        yield
        _messages.print(f"      [dim]{time.monotonic() - begin:.1f} s[/]")

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self.start


def quiet_lightning(debug: bool) -> None:
    """Hide what Lightning says about devices; it sets its level when it is imported."""
    if not debug:
        import logging

        import isd.model  # noqa: F401

        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def is_zarr(path: Path) -> bool:
    """Whether a folder is a zarr store."""
    return path.is_dir() and any((path / name).exists() for name in (".zgroup", "zarr.json"))


def _read(path: Path, *, labels_key: str | None, layer: str | None, backed: bool = False, without: str = "") -> AnnData:
    """Read an h5ad file or a zarr store, and check the names that the user gave while nothing has been spent yet."""
    import anndata

    try:
        if is_zarr(path):
            if backed:
                raise ValueError("--backed reads h5ad files, and this is a zarr store.")
            adata = anndata.read_zarr(path)
        else:
            adata = anndata.read_h5ad(path, backed="r" if backed else None)
    except (OSError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as an h5ad file: {error}") from error
    if labels_key is not None and labels_key not in adata.obs:
        raise KeyError(
            f"--labels-key {labels_key}: there is no such column in obs of {path.name}, which has "
            f"{', '.join(map(str, adata.obs)) or 'none'}. {without}".rstrip()
        )
    if layer not in (None, "X") and layer not in adata.layers:
        raise KeyError(
            f"--layer {layer}: there is no such layer; {path.name} has {', '.join(adata.layers) or 'none'}. "
            "Leave the option out to read counts from X."
        )
    return adata


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raise where a file could not be written: while nothing has been spent yet."""
    try:
        checked_target(out, overwrite=overwrite)
    except ValueError as error:
        raise ValueError(str(error).replace("backed must be", "OUT must be")) from None
    out.absolute().parent.mkdir(parents=True, exist_ok=True)


def _write(adata: Any, out: Path) -> None:
    """Write h5ad or zarr, whole or not at all."""
    if out.suffix == ".zarr":
        with whole_folder(out) as new:
            adata.write_zarr(new)
    else:
        with whole_file(out) as new:
            adata.write_h5ad(new)
