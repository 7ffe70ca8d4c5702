"""The notebooks in tutorials/ are stored executed; that they run is asked for with ISD_RUN_TUTORIALS=1 (minutes each)."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

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


def test_running_stores_outputs_and_leaves_the_file_where_a_cell_fails(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("execute", TUTORIALS / "execute.py")
    execute = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(execute)
    cells = [
        nbformat.v4.new_markdown_cell("# A"),
        nbformat.v4.new_code_cell("import sys; print(2, file=sys.stderr); 1 + 1"),
    ]
    path = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    execute.execute(path)
    (output,) = nbformat.read(path, as_version=4).cells[1].outputs
    assert output.data["text/plain"] == "2" and "execution" not in nbformat.read(path, as_version=4).cells[1].metadata
    before = path.read_text().replace("1 + 1", "1 / 0")
    path.write_text(before)
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute.execute(path)
    assert path.read_text() == before and [p.name for p in tmp_path.iterdir()] == ["a.ipynb"]


@pytest.mark.slow
@pytest.mark.skipif("ISD_RUN_TUTORIALS" not in os.environ, reason="minutes; set ISD_RUN_TUTORIALS=1")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.name)
def test_notebooks_run(path: Path, tmp_path: Path) -> None:
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
