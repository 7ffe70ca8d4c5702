"""``docs/guide/bad_input.md`` lists the cases of the tests beside, in the same words and order."""

from __future__ import annotations

import re
from pathlib import Path

from .conftest import Case
from .test_cells import CASES as CELLS
from .test_data import CASES as DATA
from .test_files import CASES as FILES

DOCS = Path(__file__).parents[2] / "docs" / "guide" / "bad_input.md"
CASES = [*DATA, *CELLS, *FILES]


def row(case: Case) -> str:
    return f"| {case.name} | `{case.to}` | {case.note} |"


def test_the_page_and_the_tests_list_the_same_cases() -> None:
    listed = [line for line in DOCS.read_text().splitlines() if re.match(r"\| .+ \| `.+` \|", line)]
    assert listed == [row(case) for case in CASES]
    assert len(CASES) >= 60
    assert len({(c.name, c.to) for c in CASES}) == len(CASES)


def test_the_page_says_what_the_tests_assert() -> None:
    for case in CASES:
        outcome = "refused" if case.error is not None else "accepted with a warning" if case.warns else "accepted"
        assert case.note.startswith(outcome), case.name
        assert case.error is None or case.says, case.name
