"""Every public name has its place in the API pages, and the pages name nothing that is gone."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

import isd

API = Path(__file__).parents[1] / "docs" / "api.md"
PARTS = [name for name in isd.__all__ if inspect.ismodule(getattr(isd, name))]
FUNCTIONS = [name for name in isd.__all__ if inspect.isfunction(getattr(isd, name))]


def listed() -> set[str]:
    """Names in the autosummary tables of docs/api.md, as ``isd.pp.recipe``."""
    names: set[str] = set()
    module = "isd"
    for line in API.read_text().splitlines():
        if found := re.match(r"\.\. currentmodule:: (\S+)", line):
            module = found[1]
        elif found := re.match(r"   ([A-Za-z_]\w*(?:\.\w+)*)$", line):
            names.add(f"{module}.{found[1]}")
    return names


@pytest.mark.parametrize("part", PARTS)
def test_public_names_are_in_the_api_page(part: str) -> None:
    module = import_module(f"isd.{part}")
    missing = [f"isd.{part}.{name}" for name in module.__all__ if f"isd.{part}.{name}" not in listed()]
    assert missing == [], "add these to docs/api.md"


def test_functions_of_isd_itself_are_in_the_api_page_and_documented() -> None:
    assert [name for name in FUNCTIONS if f"isd.{name}" not in listed()] == [], "add these to docs/api.md"
    assert [name for name in FUNCTIONS if not (inspect.getdoc(getattr(isd, name)) or "").strip()] == []


def test_the_api_page_names_nothing_that_is_gone() -> None:
    gone = []
    for full in listed():
        module, _, name = full.rpartition(".")
        if not hasattr(import_module(module), name):
            gone.append(full)
    assert gone == []


@pytest.mark.parametrize("part", PARTS)
def test_public_names_have_docstrings(part: str) -> None:
    module = import_module(f"isd.{part}")
    documented = {n: getattr(module, n) for n in module.__all__}
    documented = {n: o for n, o in documented.items() if inspect.isclass(o) or inspect.isfunction(o)}
    assert [n for n, o in documented.items() if not (inspect.getdoc(o) or "").strip()] == []


def test_pages_hold_no_machine_paths() -> None:
    root = API.parents[1]
    files = [p for pattern in ("docs/**/*.md", "*.md", "tutorials/*", "benchmarks/*") for p in root.glob(pattern)]
    found = [
        str(p.relative_to(root))
        for p in files
        if p.is_file() and re.search(r"(?:^|[\s\"'`(=])/(?:home|root|Users|work|tmp)/", p.read_text())
    ]
    assert found == []
