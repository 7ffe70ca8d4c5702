"""What the README promises: its example runs as written, and its links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import matplotlib
import pandas as pd
import pytest

import isd

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/guide/*.md"))]


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_example_has_ten_lines() -> None:
    (example,) = python_blocks(README)
    assert len([line for line in example.splitlines() if line.strip()]) <= 10


def test_the_example_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert matplotlib.get_backend().lower() == "agg"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(isd.settings, "figdir", tmp_path)
    (example,) = python_blocks(README)
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["fake"].shape == (180, 300)
    assert (tmp_path / "umap.png").stat().st_size > 1000


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_in_pages_is_python(page: Path) -> None:
    for block in python_blocks(page.read_text()):
        compile(block, str(page), "exec")


def test_make_targets_and_files_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"make ([a-z]+)", README)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_the_landing_picture_is_light_and_has_the_caption_of_its_script() -> None:
    captions = [
        re.search(r"^\*`make demo`.*?\*$", page.read_text(), flags=re.DOTALL | re.MULTILINE)[0].replace("\n", " ")
        for page in (ROOT / "README.md", ROOT / "docs/index.md")
    ]
    assert captions[0] == captions[1]
    assert (ROOT / "docs/_static/umap.png").stat().st_size < 200_000
    spec = importlib.util.spec_from_file_location("landing_picture", ROOT / "docs/landing_picture.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    # the caption's own numbers go through the script: another wording or order there, and the caption is an old one
    told = [float(number) for number in re.findall(r"\d\.\d\d", captions[0])]
    shared = {"metric": "random_forest_auc", "group": "all", "n_real": 900, "n_generated": 900}
    rows = [
        {**shared, "space": space, "value": value, "lower": lower, "upper": upper, "floor": floor}
        for space, value, lower, upper, floor in (("features", *told[:3], told[6]), ("pcs", *told[3:6], told[7]))
    ]
    assert script.caption(pd.DataFrame(rows)) == captions[0]
