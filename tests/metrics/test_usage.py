from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from isd.metrics import (
    GeneMap,
    dominant_isoform,
    isoform_usage,
    usage_change,
    usage_entropy,
    usage_js_distance,
)

IDS = ["g1", "g2", "g1", None, "g3", "g2", "g1", "", "g4", "g4"]
LABELS = np.array(["b", "a", None, "b", "a", "a"], dtype=object)


@pytest.fixture
def counts() -> np.ndarray:
    return np.random.default_rng(0).poisson(20.0, size=(6, len(IDS)))


def test_sums_are_those_of_a_loop(counts):
    genes = GeneMap.from_ids(IDS)
    assert list(genes.genes) == ["g1", "g2", "g3", "g4"] and genes.n_isoforms.tolist() == [3, 2, 1, 2]
    expected = np.stack([counts[:, np.array(IDS, dtype=object) == g].sum(axis=1) for g in genes.genes], axis=1)
    np.testing.assert_array_equal(genes.sums(counts), expected)
    sparse_sums = genes.sums(sparse.csr_matrix(counts))
    assert sparse.issparse(sparse_sums)
    np.testing.assert_array_equal(sparse_sums.toarray(), expected)
    spread = genes.spread(expected)
    np.testing.assert_array_equal(spread[:, 6], expected[:, 0])
    assert (spread[:, [3, 7]] == 0).all() and np.isnan(genes.spread(expected.astype(float))[:, 3]).all()
    part = genes.subset(np.array([1, 5, 3, 8]))
    assert list(part.genes) == ["g2", "g4"] and part.gene_of.tolist() == [0, 0, -1, 1]


def test_usage_is_the_share_of_pooled_counts(counts):
    found = isoform_usage(sparse.csr_matrix(counts), IDS, LABELS, min_counts=1)
    assert list(found.labels) == ["a", "b"]
    pooled = counts[[1, 4, 5]].sum(axis=0)
    np.testing.assert_allclose(found.usage[0, [0, 2, 6]], pooled[[0, 2, 6]] / pooled[[0, 2, 6]].sum())
    assert np.isnan(found.usage[:, [3, 4, 7]]).all()  # no gene, or one isoform only
    assert found.totals[1, 2] == counts[[0, 3], 4].sum()
    np.testing.assert_allclose(
        isoform_usage(counts, IDS).usage[0, [8, 9]], counts[:, [8, 9]].sum(axis=0) / counts[:, [8, 9]].sum()
    )
    # depth changes totals, not usage
    np.testing.assert_allclose(isoform_usage(3 * counts, IDS, LABELS, min_counts=1).usage, found.usage)


def test_genes_with_too_few_counts_have_no_usage(counts):
    totals = isoform_usage(counts, IDS, LABELS, min_counts=1).totals
    limit = np.sort(totals[:, [0, 1, 3]].ravel())[3]
    found = isoform_usage(counts, IDS, LABELS, min_counts=limit)
    known = ~np.isnan(found.usage[:, [0, 1, 8]])
    np.testing.assert_array_equal(known, totals[:, [0, 1, 3]] >= limit)
    assert known.sum() == 3


def test_distance_and_entropy_match_scipy(counts):
    rng = np.random.default_rng(1)
    genes = GeneMap.from_ids(IDS)
    p, q = (
        isoform_usage(
            1 + rng.poisson(rng.gamma(0.5, 20, size=len(IDS)), size=(6, len(IDS))), IDS, LABELS, min_counts=1
        ).usage
        for _ in "pq"
    )
    distance, bits = usage_js_distance(p, q, genes), usage_entropy(p, genes)
    for label in range(2):
        for gene, columns in ((0, [0, 2, 6]), (1, [1, 5]), (3, [8, 9])):
            assert distance[label, gene] == pytest.approx(jensenshannon(p[label, columns], q[label, columns], base=2))
            assert bits[label, gene] == pytest.approx(entropy(p[label, columns], base=2))
    assert np.isnan(distance[:, 2]).all() and np.isnan(bits[:, 2]).all()
    assert np.nanmax(usage_js_distance(p, p, genes)) == pytest.approx(0, abs=1e-7)


def test_dominant_isoform_is_the_first_largest(counts):
    genes = GeneMap.from_ids(IDS)
    usage = isoform_usage(counts, IDS, LABELS, min_counts=1).usage
    found = dominant_isoform(usage, genes)
    for label in range(2):
        assert found[label, 0] == [0, 2, 6][int(np.argmax(usage[label, [0, 2, 6]]))]
    assert (found[:, 2] == -1).all()
    ties = np.full((1, len(IDS)), 0.5)
    assert dominant_isoform(ties, genes).tolist() == [[0, 1, 4, 8]]


def test_change_is_against_the_mean_of_the_other_labels():
    usage = np.array([[0.8, np.nan], [0.2, 0.3], [0.4, 0.6], [np.nan, np.nan]])
    found = usage_change(usage)
    np.testing.assert_allclose(found[:3, 0], [0.8 - 0.3, 0.2 - 0.6, 0.4 - 0.5])
    np.testing.assert_allclose(found[1:3, 1], [-0.3, 0.3])
    assert np.isnan(found[3]).all() and np.isnan(found[0, 1])
    assert np.isnan(usage_change(np.array([[0.5]]))).all()  # nothing to compare with


def test_lengths_are_checked(counts):
    with pytest.raises(ValueError, match="10 columns but 9 gene_ids"):
        isoform_usage(counts, IDS[:9])
    with pytest.raises(ValueError, match="6 rows but 5 labels"):
        isoform_usage(counts, IDS, LABELS[:5])
