"""The notebooks in tutorials/ are stored executed; that they run is asked for with ISD_RUN_TUTORIALS=1 (minutes each)."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import pytest

TUTORIALS = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))
#: Nothing that a reader waits for, or that makes the repository heavy.
MAX_BYTES = 600_000


def test_there_is_a_quickstart() -> None:
    assert "quickstart.ipynb" in {path.name for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_are_executed_in_order_and_without_errors(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [out for cell in code for out in cell.outputs if out.output_type == "error"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_are_small_and_anybodys(path: Path) -> None:
    text = path.read_text()
    assert len(text) < MAX_BYTES
    # no path of a machine, in code or in what it printed (pictures are base64, in which slashes mean nothing)
    cells = nbformat.reads(text, as_version=4).cells
    told = [cell.source for cell in cells]
    for cell in cells:
        for out in cell.get("outputs", []):
            told.append(out.get("text", ""))
            told.extend(str(value) for kind, value in out.get("data", {}).items() if not kind.startswith("image/"))
    assert not [
        line
        for line in "\n".join(told).splitlines()
        if re.search(r"(?<![\w.])/(?:home|root|Users|work|tmp|opt)/|[A-Z]:\\\\", line)
    ]
    assert not [out for cell in cells for out in cell.get("outputs", []) if out.get("name") == "stderr"]


def test_the_index_lists_every_notebook() -> None:
    index = (TUTORIALS / "index.md").read_text()
    entries = re.search(r"```\{toctree\}\n(.*?)```", index, flags=re.DOTALL)[1].splitlines()
    assert {path.stem for path in NOTEBOOKS} == {entry for entry in entries if entry and not entry.startswith(":")}
    assert [path.name for path in NOTEBOOKS if f"({path.name})" not in index] == []


@pytest.mark.slow
@pytest.mark.skipif("ISD_RUN_TUTORIALS" not in os.environ, reason="minutes; set ISD_RUN_TUTORIALS=1")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_run(path: Path, tmp_path: Path) -> None:
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
