from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from matplotlib.figure import Figure
from scipy import sparse

from isd.pl import mean_variance, zero_fraction
from isd.pl._moments import _moments, floor_band


def share(ax) -> float:
    return float(ax.get_title().split("\n")[1].split("%")[0])


def test_moments_are_numpys():
    counts = np.random.default_rng(0).poisson(0.7, size=(50, 9)).astype(np.float32)
    mean, variance, zeros = _moments(sparse.csr_matrix(counts))
    np.testing.assert_allclose(mean, counts.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(variance, counts.var(axis=0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(zeros, (counts == 0).mean(axis=0))


def test_band_holds_95_percent_of_like_differences():
    rng = np.random.default_rng(1)
    x = rng.uniform(0, 10, 4000)
    one, other, third = (x + rng.normal(0, 0.1 + 0.1 * x) for _ in range(3))
    centre, low, high = floor_band(one, other)
    assert (np.diff(centre) >= 0).all() and (low < high).all()
    within = (third > np.interp(one, centre, low)) & (third < np.interp(one, centre, high))
    assert within.mean() == pytest.approx(0.95, abs=0.02)
    # where features vary more, the band is wider
    assert (high - low)[-2] > 3 * (high - low)[1]


def test_real_cells_lie_in_the_band_and_blurred_ones_do_not(many_features):
    real, generated = many_features
    mean, variance, _ = mean_variance(real, generated, show=False)
    found = [share(ax) for ax in (mean, variance, zero_fraction(real, generated, show=False)[0])]
    np.testing.assert_allclose(found, 95, atol=4)
    wrong = generated.copy()
    wrong.X = sparse.csr_matrix(np.rint(0.5 * wrong.X.toarray() + 0.5 * wrong.X.toarray().mean(axis=0)))
    assert share(mean_variance(real, wrong, show=False)[1]) < 50
    # features that every cell has, or hardly any, have the right zeros all the same
    assert share(zero_fraction(real, wrong, show=False)[0]) < 80


def test_equal_numbers_of_cells_are_compared(pair):
    real, generated = pair
    axes = mean_variance(real, generated, show=False)
    # 100 held-out cells: halves of 50, of which a mean is a multiple of 1/50
    drawn = np.asarray(axes[0].collections[-1].get_offsets())[:, 1]
    np.testing.assert_allclose(drawn * 50, np.maximum(np.rint(drawn * 50), 0.5), rtol=1e-6)


def test_into_given_axes_and_readable(pair, assert_readable, tmp_path):
    real, generated = pair
    for plot in (mean_variance, zero_fraction):
        ax = Figure().subplots()
        assert plot(real, generated, ax=ax) is ax and ax.collections
        assert_readable(plot(real, generated, return_fig=True, save=tmp_path / "p.png"))
        assert (tmp_path / "p.png").is_file()


def test_features_that_nobody_has(pair):
    real, generated = pair
    for data in pair:
        data.X = sparse.csr_matrix(data.X.toarray() * (data.var["gene_id"] != "g2.1").to_numpy())
    assert mean_variance(real, generated, show=False)[0].collections


def test_bad_input_is_refused(pair):
    real, generated = pair
    with pytest.raises(ValueError, match="1 of the 65 features of `real` are missing"):
        mean_variance(real, generated[:, :-1])
    with pytest.raises(ValueError, match="reference='train'"):
        zero_fraction(real, generated, reference="train")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 4"):
        zero_fraction(real, generated[:2])
    with pytest.raises(ValueError, match="has no row 'validation'"):
        mean_variance(real, generated, reference="validation")
    with pytest.raises(ValueError, match="no such cells"):
        mean_variance(real, AnnData(np.zeros((0, 65), dtype=np.float32), var=real.var))
