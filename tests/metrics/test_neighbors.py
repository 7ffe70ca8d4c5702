from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from isd.metrics import coverage, density


def test_match_their_definition():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(40, 3)), rng.normal(0.5, 1, size=(30, 3))
    radii = np.sort(cdist(real, real), axis=1)[:, 4]  # column 0 is the point itself
    inside = cdist(real, fake) <= radii[:, None]
    assert coverage(real, fake, k=4) == pytest.approx(inside.any(axis=1).mean())
    assert density(real, fake, k=4) == pytest.approx(inside.sum() / (4 * 30))


def test_expectation_for_equal_distributions():
    rng = np.random.default_rng(1)
    pairs = [(rng.normal(size=(400, 3)), rng.normal(size=(400, 3))) for _ in range(10)]
    # Naeem et al. 2020, section 3.2: 1 - (M-1)...(M-k) / ((2M-1)...(2M-k)), near 1 - 2^-k
    j = np.arange(1, 6)
    assert np.mean([coverage(*pair) for pair in pairs]) == pytest.approx(1 - np.prod((400 - j) / (800 - j)), abs=0.01)
    assert np.mean([density(*pair) for pair in pairs]) == pytest.approx(1.0, abs=0.05)


def test_a_missing_mode_lowers_coverage_by_its_share():
    rng = np.random.default_rng(2)
    real = np.concatenate([rng.normal(size=(150, 2)), rng.normal(50, 1, size=(50, 2))])
    assert coverage(real, rng.normal(size=(200, 2))) == pytest.approx(0.75, abs=0.05)


def test_too_few_real_points_are_refused():
    for metric in (coverage, density):
        with pytest.raises(ValueError, match="k=5 needs at least 6"):
            metric(np.ones((5, 2)), np.ones((9, 2)))
