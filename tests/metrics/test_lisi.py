from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.spatial.distance import cdist
from scipy.special import entr

from isd.metrics import lisi, lisi_mixing


def test_matches_its_definition_with_another_solver():
    rng = np.random.default_rng(0)
    points, labels = rng.normal(size=(60, 3)), rng.integers(3, size=60)
    found = lisi(points, labels, perplexity=8)
    distances = cdist(points, points)
    for i in range(0, 60, 7):
        nearest = np.argsort(distances[i])[1:25]
        squares = distances[i, nearest] ** 2

        def weights(beta, squares=squares):
            w = np.exp(-beta * (squares - squares.min()))
            return w / w.sum()

        beta = brentq(lambda b: entr(weights(b)).sum() - np.log(8), 1e-6, 1e3)
        shares = np.bincount(labels[nearest], weights=weights(beta), minlength=3)
        assert found[i] == pytest.approx(1 / (shares**2).sum(), rel=1e-6)


def test_closed_form_where_all_neighbours_are_equally_far():
    # corners of a simplex: all distances equal, so weights are, and shares are those of the other points' labels
    labels = np.repeat(["a", "b"], [4, 6])
    found = lisi(np.eye(10), labels, perplexity=3)
    for i, label in enumerate(labels):
        same = (labels == label).sum() - 1
        # 9 neighbours are used, the perplexity cannot be reached and weights stay equal
        assert found[i] == pytest.approx(1 / ((same / 9) ** 2 + (1 - same / 9) ** 2))


def test_mixing_is_two_for_one_distribution_and_one_for_two_far_apart():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(300, 3)), rng.normal(size=(300, 3))
    assert 1.85 < lisi_mixing(x, y) < 2.0
    assert lisi_mixing(x, y + 50) == pytest.approx(1.0)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="5 rows but there are 4 labels"):
        lisi(np.ones((5, 2)), ["a"] * 4)
    with pytest.raises(ValueError, match="at least 4"):
        lisi(np.ones((3, 2)), ["a"] * 3)
