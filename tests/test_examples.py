"""Every public function, class and method is shown in an example; pytest runs them all (``--doctest-modules``)."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator
from importlib import import_module

import pytest

import isd

PARTS = [name for name in isd.__all__ if inspect.ismodule(getattr(isd, name))]
#: Their methods are the steps of a training and parts of a forward pass, which models call; the classes have examples.
NETWORKS = {"nn", "module"}


def example(obj: object) -> str:
    """Source of the examples in a docstring."""
    return "".join(e.source for e in doctest.DocTestParser().get_examples(inspect.getdoc(obj) or ""))


def own_example(cls: type) -> str:
    """Of a class: not its base's docstring, which ``inspect.getdoc`` would give."""
    return "".join(e.source for e in doctest.DocTestParser().get_examples(vars(cls).get("__doc__") or ""))


def public(part: str) -> Iterator[tuple[str, object]]:
    module = import_module(f"isd.{part}")
    for name in module.__all__:
        obj = getattr(module, name)
        if inspect.isclass(obj) or inspect.isfunction(obj):
            yield f"isd.{part}.{name}", obj


def methods(cls: type) -> Iterator[tuple[str, object]]:
    """Public methods that isd defines."""
    seen: set[str] = set()
    for base in inspect.getmro(cls):
        if base.__module__.partition(".")[0] != "isd":
            continue
        for name, member in vars(base).items():
            function = getattr(member, "__func__", member)
            if not name.startswith("_") and name not in seen and inspect.isfunction(function):
                seen.add(name)
                yield name, function


@pytest.mark.parametrize("part", PARTS)
def test_functions_and_classes_have_an_example(part: str) -> None:
    missing = [name for name, obj in public(part) if not (own_example(obj) if inspect.isclass(obj) else example(obj))]
    assert missing == []


def test_functions_of_isd_itself_have_an_example() -> None:
    functions = [name for name in isd.__all__ if inspect.isfunction(getattr(isd, name))]
    assert functions
    assert [name for name in functions if not example(getattr(isd, name))] == []


@pytest.mark.parametrize("part", [part for part in PARTS if part not in NETWORKS])
def test_methods_are_shown_in_an_example_of_their_own_or_of_their_class(part: str) -> None:
    missing = []
    for full, cls in public(part):
        if inspect.isclass(cls):
            of_class = "".join(own_example(base) for base in inspect.getmro(cls) if base.__module__.startswith("isd."))
            for name, function in methods(cls):
                if not (example(function) or f".{name}(" in of_class):
                    missing.append(f"{full}.{name}")
    assert missing == []


def test_a_missing_example_would_be_found() -> None:
    class Base:
        """Without.

        >>> Base().shown()
        """

        def shown(self) -> None:
            """Is in the class's example."""

    class Child(Base):
        """None of its own."""

    assert example(Base) == "Base().shown()\n"
    assert own_example(Child) == ""
    assert example(Base.shown) == ""
