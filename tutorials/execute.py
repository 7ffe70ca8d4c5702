"""Run the tutorials and store what they print into the same files: ``make tutorials``.

Takes the names of notebooks, or runs all beside this file. Each one runs in a folder of its own that is thrown away, on one
core, and replaces its file only when it is through, so that an error leaves the old one. What changes from run to run
without saying anything (times of cells, widgets) is left out.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).parent
TIMEOUT = 1800  # seconds a cell


def execute(path: Path) -> float:
    """Run one notebook into its own file; returns the seconds it took."""
    notebook = nbformat.read(path, as_version=4)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, timeout=TIMEOUT, resources={"metadata": {"path": folder}}).execute()
    seconds = time.monotonic() - start
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        # progress and log lines: they depend on the machine, and a reader has no use for them
        cell.outputs = (
            [out for out in cell.get("outputs", []) if out.get("name") != "stderr"] if "outputs" in cell else []
        )
        if cell.cell_type != "code":
            cell.pop("outputs")
    beside = path.with_suffix(".tmp")
    nbformat.write(notebook, beside)
    os.replace(beside, path)
    return seconds


def main() -> None:
    """Run the notebooks that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="notebooks to run; all by default")
    paths = parser.parse_args().notebooks or sorted(HERE.glob("*.ipynb"))
    # one thread: times are those of one core, and sums have the same order on every machine
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    for path in paths:
        print(f"{path.name} ...", end=" ", flush=True, file=sys.stderr)
        print(f"{execute(path):.0f} s, {path.stat().st_size / 1000:.0f} kB", file=sys.stderr)


if __name__ == "__main__":
    main()
