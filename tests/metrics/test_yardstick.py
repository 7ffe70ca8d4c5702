from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse
from sklearn.decomposition import PCA

from isd.metrics import Yardstick, log_normalize, median_distance


@pytest.fixture
def counts() -> sparse.csr_matrix:
    rng = np.random.default_rng(0)
    rates = rng.lognormal(0, 1, size=60) * rng.lognormal(0, 0.7, size=(4, 60))[rng.integers(4, size=150)]
    return sparse.csr_matrix(rng.poisson(rates).astype(np.float32))


NAMES = [f"t{i}" for i in range(60)]


def test_normalisation_is_scanpys_and_leaves_its_input_alone(counts):
    before = counts.copy()
    adata = AnnData(counts.copy())
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    np.testing.assert_allclose(log_normalize(counts).toarray(), adata.X.toarray(), rtol=1e-5)
    assert (counts != before).nnz == 0
    with_empty = sparse.vstack([counts[:1], sparse.csr_matrix((1, 60))])
    assert log_normalize(with_empty).toarray()[1].sum() == 0


def test_components_are_those_of_a_dense_pca(counts):
    yardstick = Yardstick.fit(counts, NAMES, n_pcs=5)
    dense = log_normalize(counts).toarray().astype(float)
    expected = PCA(5, svd_solver="full").fit(dense)
    overlap = np.abs(np.sum(expected.components_ * yardstick.components, axis=1))
    np.testing.assert_allclose(overlap, 1, atol=1e-6)
    np.testing.assert_allclose(np.abs(yardstick.pcs(counts)), np.abs(expected.transform(dense)), atol=1e-3)
    assert yardstick.bandwidths["pcs"][1] == pytest.approx(median_distance(yardstick.pcs(counts)))
    assert yardstick.bandwidths["features"][2] == pytest.approx(2 * median_distance(dense), rel=1e-4)


def test_chosen_features_are_detected_and_vary_most_for_their_mean():
    rng = np.random.default_rng(1)
    means = np.repeat(np.exp(np.linspace(0, 4, 50)), 4)  # many means, so that raw variance would only find large ones
    values = rng.poisson(means, size=(400, 200))
    switched = np.arange(0, 200, 10)
    state = rng.random(400) < 0.5
    values[np.ix_(state, switched)] = rng.poisson(0.2 * means[switched], size=(state.sum(), switched.size))
    values[:, 199] = 0
    values[:2, 199] = 50  # detected in too few cells
    yardstick = Yardstick.fit(values, [f"t{i}" for i in range(200)], n_features=20)
    assert np.isin(switched, yardstick.feature_index).mean() >= 0.8
    assert 199 not in yardstick.feature_index
    assert list(yardstick.feature_names) == [f"t{i}" for i in yardstick.feature_index]


def test_total_is_over_all_features_not_the_chosen(counts):
    yardstick = Yardstick.fit(counts, NAMES, n_features=10)
    expected = log_normalize(counts).toarray()[:, yardstick.feature_index]
    np.testing.assert_allclose(yardstick.features(counts).toarray(), expected, rtol=1e-5)
    assert sparse.issparse(yardstick.features(counts))


def test_other_order_and_further_features_are_aligned_by_name(counts):
    yardstick = Yardstick.fit(counts, NAMES)
    order = np.random.default_rng(2).permutation(60)
    more = sparse.hstack([counts[:, order], sparse.csr_matrix(np.full((150, 1), 7.0))]).tocsr()
    names = [*np.array(NAMES)[order], "other"]
    np.testing.assert_allclose(
        yardstick.features(more, names).toarray(), yardstick.features(counts).toarray(), rtol=1e-5
    )
    np.testing.assert_allclose(yardstick.pcs(more, names), yardstick.pcs(counts), atol=1e-3)


def test_bad_input_is_refused(counts):
    yardstick = Yardstick.fit(counts, NAMES)
    with pytest.raises(ValueError, match="2 of the 60 features are missing"):
        yardstick.features(counts[:, :58], NAMES[:58])
    with pytest.raises(ValueError, match="give var_names"):
        yardstick.features(counts[:, :58])
    with pytest.raises(ValueError, match="1 var_names are duplicates"):
        Yardstick.fit(counts, ["t1", *NAMES[1:]])
    with pytest.raises(ValueError, match="at least 4"):
        Yardstick.fit(counts[:3], NAMES)
    with pytest.raises(ValueError, match="No feature is detected"):
        Yardstick.fit(sparse.csr_matrix((10, 60)), NAMES)
    with pytest.raises(AttributeError):
        yardstick.n_train = 3  # type: ignore[misc]
