"""Internal links of the pages lead somewhere: files, headings, names of the API. ``make docs`` checks what Sphinx makes of them."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "docs/guide/*.md", "docs/notes/*.md", "docs/developer/*.md", "tutorials/*.md", "tutorials/*.ipynb")
    for path in ROOT.glob(pattern)
)  # fmt: skip
_FENCE = re.compile(r"^(`{3,})(.*?)\n(.*?)^\1\s*$", re.MULTILINE | re.DOTALL)


def text_of(page: Path) -> str:
    """Markdown of a page, or of a notebook's text cells."""
    if page.suffix == ".ipynb":
        cells = json.loads(page.read_text())["cells"]
        return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return page.read_text()


def prose(page: Path) -> str:
    """Text without code, in which brackets are no links."""
    return re.sub(r"(?<!\})`[^`\n]*`", "", _FENCE.sub("", text_of(page)))


def slug(heading: str) -> str:
    """Anchor that GitHub and MyST give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(found) for found in re.findall(r"^#{1,6} (.+)$", _FENCE.sub("", text_of(page)), re.MULTILINE)}


def source(path: Path) -> Path:
    """Where a file comes from: below ``docs/``, tutorials are there only once the pages were built."""
    path = path.resolve()
    built = DOCS / "tutorials"
    return ROOT / "tutorials" / path.relative_to(built) if path.is_relative_to(built) else path


def broken(page: Path) -> list[str]:
    """Links of a page to files or headings that are not there."""
    lost = []
    for target in re.findall(r"\]\(([^()\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        bases = [page.parent] if page.parent != ROOT / "tutorials" else [page.parent, DOCS / "tutorials"]
        files = [found for base in bases if (found := source(base / name)).exists()] if name else [page]
        if not files or (anchor and files[0].suffix in (".md", ".ipynb") and anchor not in anchors(files[0])):
            lost.append(target)
    return lost


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    assert broken(page) == []


def test_a_broken_link_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# A heading, here\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Page\n[a](other.md) [b](other.md#a-heading-here) [c](#page) `[d](code.md)` [e](gone.md) [f](other.md#gone) [g](#gone)\n"
        "```\n[h](code.md)\n```\n[i](https://example.org/x)\n"
    )
    assert broken(page) == ["gone.md", "other.md#gone", "#gone"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_roles_name_what_exists(page: Path) -> None:
    gone = []
    for role, target in re.findall(r"\{(func|class|meth|attr|mod|doc)\}`~?([^`<>]+)`", text_of(page)):
        if role == "doc":
            if not (page.parent / f"{target}.md").exists():
                gone.append(target)
        elif target.startswith("isd") and not resolves(target):
            gone.append(target)
    assert gone == []


def resolves(name: str) -> bool:
    """Whether a dotted name is a module or something in one."""
    parts = name.split(".")
    for k in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:k]))
        except ImportError:
            continue
        for part in parts[k:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize(("name", "exists"), [("isd.tl.generate", True), ("isd.model.VAE.train", True), ("isd.tl.gone", False)])  # fmt: skip
def test_names_resolve(name: str, exists: bool) -> None:
    assert resolves(name) is exists


def test_every_page_is_in_a_table_of_contents() -> None:
    listed = set()
    for page in DOCS.rglob("*.md"):
        if "generated" in page.parts or "_build" in page.parts or DOCS / "tutorials" in page.parents:
            continue
        for _, head, body in _FENCE.findall(page.read_text()):
            if head.strip() == "{toctree}":
                entries = [line.strip() for line in body.splitlines() if line.strip() and not line.startswith(":")]
                for entry in entries:
                    found = sorted(page.parent.glob(f"{entry}.md")) if "*" in entry else [page.parent / f"{entry}.md"]
                    listed |= {path.resolve() for path in found if path != page}
    pages = {p.resolve() for p in PAGES if DOCS in p.parents and p != DOCS / "index.md"}
    assert pages - listed == set()
    # tutorials are copied below docs/ when the pages are built
    assert {p for p in listed - pages if p.parent != (DOCS / "tutorials").resolve()} == set()


def test_read_the_docs_finds_what_its_file_names() -> None:
    config = yaml.safe_load((ROOT / ".readthedocs.yaml").read_text())
    assert config["version"] == 2
    assert set(config) <= {"version", "build", "sphinx", "python", "formats", "submodules", "search"}
    assert config["build"]["os"].startswith("ubuntu-")
    project = (ROOT / "pyproject.toml").read_text()
    version = config["build"]["tools"]["python"]
    assert f"Programming Language :: Python :: {version}" in project
    assert (ROOT / config["sphinx"]["configuration"]).is_file()
    assert config["sphinx"]["fail_on_warning"] is True
    known = {"post_checkout", "pre_system_dependencies", "post_system_dependencies", "pre_create_environment", "create_environment", "pre_install", "install"}  # fmt: skip
    assert set(config["build"]["jobs"]) <= known
    (command,) = config["build"]["jobs"]["install"]
    (constraint,) = re.findall(r"--constraint (\S+)", command)
    assert (ROOT / constraint).is_file()
    for extra in re.findall(r"\[(\w+)\]", command):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


def test_pictures_of_the_pages_are_small() -> None:
    pictures = [path for path in (DOCS / "_static").iterdir() if path.suffix in (".png", ".svg")]
    assert pictures
    assert [path.name for path in pictures if path.stat().st_size > 200_000] == []
