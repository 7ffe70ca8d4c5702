"""What a value means beside its floor, in one word."""

from __future__ import annotations

from typing import Literal

import numpy as np

Better = Literal["lower", "higher", "half", "floor"]
Verdict = Literal["indistinguishable", "close", "far", ""]


def verdict(
    value: float, floor_lower: float, floor_upper: float, *, better: Better = "lower", tolerance: float = 0.0
) -> Verdict:
    """Judge a value by the 95% interval of its floor: what real cells give against real cells.

    Parameters
    ----------
    value
        The metric of generated cells.
    floor_lower, floor_upper
        Interval of the same metric between real cells; its width is ``w``.
    better
        Which side counts as worse: above the interval (``"lower"`` is better), below it (``"higher"``), or both
        (``"half"``, ``"floor"``).
    tolerance
        Smallest width to reckon with, for metrics whose floor may be nearly exact (a share of 1, say).

    Returns
    -------
    ``"indistinguishable"`` inside the interval or on its better side, ``"close"`` up to one more ``w`` (or
    ``tolerance``) beyond it, ``"far"`` further away, and ``""`` where a number is missing.

    Examples
    --------
    >>> [verdict(value, 0.45, 0.55, better="half") for value in (0.5, 0.6, 0.9, float("nan"))]
    ['indistinguishable', 'close', 'far', '']
    >>> verdict(0.2, 0.45, 0.55, better="lower")
    'indistinguishable'
    """
    if not np.isfinite([value, floor_lower, floor_upper]).all():
        return ""
    above, below = value - floor_upper, floor_lower - value
    excess = above if better == "lower" else below if better == "higher" else max(above, below)
    if excess <= 0:
        return "indistinguishable"
    return "close" if excess <= max(floor_upper - floor_lower, tolerance) else "far"
