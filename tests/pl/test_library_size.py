from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import sparse

from isd._hash import hash_names
from isd.pl import library_size


def test_titles_give_the_medians_of_held_out_and_generated_cells(pair):
    real, generated = pair
    axes = library_size(real, generated, show=False)
    assert len(axes) == 4
    held_out = real[real.obs["isd_split"] == "test"].X.toarray()
    for ax, of in ((axes[0], lambda x: x.sum(axis=1)), (axes[1], lambda x: (x > 0).sum(axis=1))):
        values = np.median(of(held_out)), np.median(of(generated.X.toarray()))
        assert ax.get_title() == f"median real {values[0]:,.0f}  median generated {values[1]:,.0f}"


def test_histograms_are_shares_of_cells(pair):
    axes = library_size(*pair, show=False)
    for patch in axes[0].patches:
        assert patch.get_data().values.sum() == pytest.approx(1.0)


def test_rows_are_quantiles_of_each_label(pair):
    real, generated = pair
    ax = library_size(real, generated, groups=["a"], show=False)[2]
    totals = generated[generated.obs["leiden"] == "a"].X.toarray().sum(axis=1)
    thin, thick, middle = ax.lines[3:6]
    np.testing.assert_allclose(thin.get_xdata(), np.quantile(totals, [0.025, 0.975]))
    np.testing.assert_allclose(thick.get_xdata(), np.quantile(totals, [0.25, 0.75]))
    np.testing.assert_allclose(middle.get_xdata(), np.median(totals))


def test_empty_cells_without_labels_and_given_axes(pair, assert_readable):
    real, generated = pair
    counts = generated.X.toarray()
    counts[[0, 5, 79]] = 0
    generated.X = sparse.csr_matrix(counts)
    assert_readable(library_size(real, generated, return_fig=True))
    del generated.obs["leiden"]
    assert len(library_size(real, generated, show=False)) == 2
    ax = Figure().subplots()
    assert library_size(real, generated, ax=ax) is ax
    with pytest.raises(KeyError, match="labels_key 'leiden'"):
        library_size(real, generated, labels_key="leiden")


def test_without_a_split_the_models_training_cells_are_left_out(pair):
    real, generated = pair
    real.obs["isd_split"] = real.obs["isd_split"].astype(str)
    seen = real.obs["isd_split"] == "train"
    del real.obs["isd_split"]
    assert "real (300)" in legend(library_size(real, generated, show=False)[0])
    generated.uns["isd"] = {"train_obs_hash": hash_names(real.obs_names[seen])}
    for reference in ("test", "all"):
        assert "real (100)" in legend(library_size(real, generated, reference=reference, show=False)[0])


def legend(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]
