from __future__ import annotations

import pytest

from isd.metrics import verdict


@pytest.mark.parametrize(
    ("value", "better", "expected"),
    [
        (0.0, "lower", "indistinguishable"),
        (1.0, "lower", "indistinguishable"),
        (2.0, "lower", "indistinguishable"),
        (2.5, "lower", "close"),
        (3.5, "lower", "far"),
        (0.5, "higher", "close"),
        (-0.5, "higher", "far"),
        (9.0, "higher", "indistinguishable"),
        (0.5, "floor", "close"),
        (2.5, "half", "close"),
        (-3.0, "half", "far"),
    ],
)
def test_distance_from_the_interval_in_its_own_widths(value, better, expected):
    assert verdict(value, 1.0, 2.0, better=better) == expected


def test_tolerance_replaces_a_narrower_width_only():
    assert verdict(0.98, 0.999, 1.0, better="higher") == "far"
    assert verdict(0.98, 0.999, 1.0, better="higher", tolerance=0.02) == "close"
    assert verdict(0.5, 0.8, 1.0, better="higher", tolerance=0.02) == "far"


@pytest.mark.parametrize("numbers", [(float("nan"), 0, 1), (0, float("nan"), 1), (0, 0, float("inf"))])
def test_a_missing_number_gives_no_verdict(numbers):
    assert verdict(*numbers) == ""
