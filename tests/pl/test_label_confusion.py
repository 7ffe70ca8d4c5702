from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from isd.pl import label_confusion


def shares(ax) -> np.ndarray:
    return np.asarray(ax.images[0].get_array())


def test_right_labels_lie_on_the_diagonal_and_swapped_ones_off_it(pair, assert_readable):
    real, generated = pair
    left, right = label_confusion(real, generated, show=False)
    for ax in (left, right):
        np.testing.assert_allclose(shares(ax), np.eye(2), atol=0.05)
    assert left.get_title() == "held-out real\n100% as asked, 100 cells"
    swapped = generated.copy()
    swapped.obs["leiden"] = swapped.obs["leiden"].cat.rename_categories({"a": "b", "b": "a"})
    left, right = label_confusion(real, swapped, show=False)
    np.testing.assert_allclose(shares(left), np.eye(2), atol=0.05)
    np.testing.assert_allclose(shares(right), np.eye(2)[::-1], atol=0.05)
    assert_readable(label_confusion(real, generated, return_fig=True))


def test_the_classifier_never_sees_the_cells_that_it_is_judged_on(pair):
    """Random labels cannot be found in held-out cells, however well training cells are remembered."""
    real, generated = pair
    rng = np.random.default_rng(0)
    real.obs["leiden"] = pd.Categorical(rng.choice(["a", "b"], real.n_obs))
    for reference in ("test", "all"):
        left = label_confusion(real, generated, reference=reference, show=False)[0]
        assert np.diag(shares(left)).mean() < 0.7


def test_labels_that_one_side_lacks(pair):
    real, generated = pair
    generated.obs["leiden"] = generated.obs["leiden"].cat.add_categories(["new"])
    generated.obs.iloc[:10, generated.obs.columns.get_loc("leiden")] = "new"
    right = label_confusion(real, generated, show=False)[1]
    assert shares(right).shape == (3, 2)
    np.testing.assert_allclose(shares(right)[2].sum(), 1.0)
    left = label_confusion(real, generated, show=False)[0]
    assert np.isnan(np.ma.filled(shares(left).astype(float), np.nan)[2]).all()


def test_cells_without_a_label_are_left_out_and_given_axes_hold_generated_cells(pair):
    real, generated = pair
    generated.obs.iloc[:30, generated.obs.columns.get_loc("leiden")] = np.nan
    ax = Figure().subplots()
    assert label_confusion(real, generated, ax=ax) is ax
    assert ax.get_title() == "generated\n100% as asked, 50 cells"
    del real.obs["leiden"]
    with pytest.raises(ValueError, match="no labels"):
        label_confusion(real, generated)


def test_many_labels_stay_readable(pair, assert_readable):
    real, generated = pair
    names = [f"label {i}" for i in range(20)]
    for data in pair:
        data.obs["leiden"] = pd.Categorical.from_codes(np.arange(data.n_obs) % 20, names)
    figure = label_confusion(real, generated, return_fig=True)
    assert not figure.axes[0].texts  # colours and a scale instead of numbers
    assert_readable(figure)
