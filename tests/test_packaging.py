"""What is promised about installation stays consistent: pins within ranges, one version, extras and groups."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import isd

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
REQUIREMENTS = [
    *PROJECT["dependencies"],
    *(requirement for extra in PROJECT["optional-dependencies"].values() for requirement in extra),
]
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
}


@pytest.mark.parametrize("text", sorted(set(REQUIREMENTS)))
def test_every_requirement_is_pinned_within_its_range(text: str) -> None:
    requirement = Requirement(text)
    pin = PINS[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(pin, prereleases=True), f"{text}, but constraints.txt has {pin}"


def test_one_version() -> None:
    assert isd.__version__ == PROJECT["version"]
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()


def test_groups_point_to_extras() -> None:
    for name, entries in PYPROJECT["dependency-groups"].items():
        assert f"{PROJECT['name']}[{name}]" in entries
        assert name in PROJECT["optional-dependencies"]


def test_python_versions_agree() -> None:
    tested = re.search(r"python: (\[.*\])", (ROOT / ".github/workflows/test.yaml").read_text())[1]
    classifiers = {c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)}
    assert set(re.findall(r"3\.\d+", tested)) == classifiers
    assert PROJECT["requires-python"] == ">=3.11,<3.14"


def test_types_are_shipped() -> None:
    assert (Path(isd.__file__).parent / "py.typed").exists()
