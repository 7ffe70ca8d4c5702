"""The imports run one way (the arrows in CONTRIBUTING.md); read with ast, so that lazy imports count too."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import isd

SRC = Path(isd.__file__).parent

#: The chain: a part may import parts of a lower rank, never of a higher one.
RANK = {"nn": 0, "diffusion": 0, "module": 1, "model": 2, "tl": 3, "report": 4, "experiment": 4, "cli": 5}
#: Parts beside the chain: they know nothing of the models and of what is built on them.
SIDE = {"metrics", "pp", "io", "datasets", "pl"}
ABOVE_SIDE = {"model", "tl", "report", "experiment", "cli"}
#: Pure torch: nothing of isd but itself, nothing of others but torch.
PURE = {"nn", "diffusion"}
#: (importing module, imported part, imported name): `pl.umap_compare` makes the joint embedding where there is none.
EXCEPTIONS = {("pl", "tl", "embed")}


def part_of(module: str) -> str:
    """``isd.model._vae`` -> ``model``; helpers at the root (``isd._counts``, ``isd.settings``) are ``""``."""
    names = module.split(".")
    first = names[1] if len(names) > 1 else ""
    return first if first in RANK or first in SIDE else ""


def imported(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[str, str | None, int, bool]]:
    """Every import: absolute module name, imported name, line, whether it happens only when a function runs."""
    lazy = {
        id(inner)
        for outer in ast.walk(tree)
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for inner in ast.walk(outer)
    }
    aliases: set[str] = set()  # names under which `import isd` is known in this file
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None, node.lineno, id(node) in lazy
                if alias.name == "isd" or (alias.name.startswith("isd.") and alias.asname is None):
                    aliases.add(alias.asname or "isd")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".") if is_package else module.split(".")[:-1]
                parents = parents[: len(parents) - (node.level - 1)]
                base = ".".join([*parents, base] if base else parents)
            for alias in node.names:
                yield base, alias.name, node.lineno, id(node) in lazy
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", "")) in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value), None, node.lineno, id(node) in lazy
    for node in ast.walk(tree):
        # `import isd` then `isd.tl.embed(...)` is an import as well, since subpackages load on first use
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            yield "isd", node.attr, node.lineno, id(node) in lazy


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """What a module imports and should not, one line each."""
    found = []
    me = part_of(module)
    tree = ast.parse(source)
    # imports for type checkers only never run
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            node.body = [ast.Pass()]
    for name, member, line, lazy in imported(tree, module, is_package):
        top = name.split(".")[0]
        if top != "isd":
            if me in PURE and top not in {"torch", *sys.stdlib_module_names}:
                found.append(f"{module}:{line}: {me} is pure torch, but imports {name}")
            continue
        full = f"{name}.{member}" if name == "isd" and member else name
        other = part_of(full)
        if other == me:
            continue
        if me in PURE:
            found.append(f"{module}:{line}: {me} stands alone, but imports {full}")
        elif not other:
            continue  # helpers at the root are for everyone
        elif not me and module != "isd":
            found.append(f"{module}:{line}: helpers at the root import no part, but this imports {full}")
        elif me in SIDE and other in ABOVE_SIDE:
            if not (lazy and (me, other, member) in EXCEPTIONS):
                found.append(f"{module}:{line}: {me} never imports {other}")
        elif me in RANK and other in RANK and RANK[other] >= RANK[me]:
            found.append(f"{module}:{line}: {me} -> {other} runs against nn, diffusion -> module -> model -> tl -> cli")
    return found


def module_name(path: Path) -> str:
    names = ["isd", *path.relative_to(SRC).with_suffix("").parts]
    return ".".join(names[:-1] if names[-1] == "__init__" else names)


SOURCES = sorted(SRC.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(SRC)))
def test_imports_run_one_way(path: Path) -> None:
    assert violations(path.read_text(), module_name(path), is_package=path.name == "__init__.py") == []


def test_every_part_is_placed() -> None:
    parts = {p.parent.name for p in SRC.glob("*/__init__.py")} | {p.stem for p in SRC.glob("[!_]*.py")}
    assert parts - {"settings"} <= set(RANK) | SIDE, "a new part of isd has no place among the arrows: give it one"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("isd.module._vae", "from isd.model import VAE"),
        ("isd.module._vae", "def f():\n    from isd.tl import generate"),
        ("isd.module._vae", "from ..model._vae import VAE"),
        ("isd.nn._blocks", "from isd.diffusion import Heun"),
        ("isd.nn._blocks", "import numpy as np"),
        ("isd.diffusion._samplers", "import anndata"),
        ("isd.diffusion._samplers", "from isd._constants import UNS_KEY"),
        ("isd.metrics._mmd", "from isd import model"),
        ("isd.metrics._mmd", "import isd\nisd.tl.embed(1, 2)"),
        ("isd.pp._split", "import importlib\nimportlib.import_module('isd.model')"),
        ("isd.pl._umap", "from isd.tl import embed"),
        ("isd.pl._umap", "def f():\n    from isd.tl import generate"),
        ("isd.pl._umap", "def f():\n    from isd.model import VAE"),
        ("isd.model._vae", "import isd.tl"),
        ("isd.tl._generate", "from isd.cli import main"),
        ("isd._counts", "from isd.pp import recipe"),
    ],
)
def test_a_backward_import_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("isd.module._vae", "from isd.nn import MLP\nfrom isd.diffusion import Heun\nimport numpy"),
        ("isd.model._vae", "from ..module._vae import VAEModule\nfrom isd.io import save_model"),
        ("isd.tl._generate", "from isd.model import LatentDiffusion\nfrom isd._progress import track"),
        ("isd.pl._umap", "def f():\n    from isd.tl import embed"),
        ("isd.pl._umap", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from isd.model import VAE"),
        ("isd.diffusion._samplers", "import math\nimport torch\nfrom ._schedules import Schedule"),
        ("isd.cli", "import isd\nisd.tl.generate(1)\nisd.model.VAE"),
        ("isd._counts", "from isd.settings import settings"),
    ],
)
def test_a_forward_import_passes(module: str, source: str) -> None:
    assert violations(source, module) == []
