from __future__ import annotations

import numpy as np

from isd.datasets import published_results
from isd.metrics import SEED_METRICS


def test_columns_are_the_metrics_that_evaluate_gives():
    table = published_results()
    assert table.shape == (8, 8) and table.index.is_unique
    assert set(SEED_METRICS) <= set(table.columns)
    assert table[list(SEED_METRICS)].notna().all(axis=None)


def test_its_mmd_is_two_over_the_number_of_cells():
    table = published_results()
    # 5,000 cells of all, 1,000 of one cluster: nothing else went into the number
    np.testing.assert_allclose(table.loc[["bulk NG", "sc NG", "transfer NG", "transfer G"], "seed_mmd"], 2 / 5000)
    np.testing.assert_allclose(table.loc["sc G cluster 0", "seed_mmd"], 2 / 1000)


def test_the_caller_may_change_its_copy():
    mine = published_results()
    mine.loc["sc G", "seed_kl"] = 0
    assert published_results().loc["sc G", "seed_kl"] == 13
