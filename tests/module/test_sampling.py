import numpy as np
import pytest
import torch
from scipy import sparse, stats

from isd.module._sampling import draw_counts, gamma_rates, multinomial_row


def test_gamma_poisson_is_the_negative_binomial_of_scipy():
    rng = np.random.default_rng(0)
    mean, theta = 4.0, 1.7
    rates = gamma_rates(np.full((20_000, 1), mean, dtype=np.float32), np.full((20_000, 1), theta), rng)
    counts = rng.poisson(rates).ravel()
    values = np.arange(15)
    expected = stats.nbinom(theta, theta / (theta + mean)).pmf(values)
    observed = np.array([(counts == v).mean() for v in values])
    # four standard errors of a share
    assert np.abs(observed - expected).max() < 4 * np.sqrt(0.25 / 20_000)


def drawn(mean, theta, total, n, seed=0, **options):
    """Dense counts of ``n`` rows that have the same means."""
    means = torch.as_tensor(mean, dtype=torch.float32).expand(n, -1)
    theta = None if theta is None else torch.as_tensor(theta, dtype=torch.float32)
    counts = draw_counts(means, theta, np.full(n, total), np.random.default_rng(seed), **options)
    assert isinstance(counts, sparse.csr_matrix) and counts.has_sorted_indices and (counts.data > 0).all()
    return counts.toarray()


def same_distribution(one, two):
    """Smallest p-value of chi-square tests that two samples of small counts are alike."""
    values = np.arange(max(one.max(), two.max()) + 2)
    table = np.array([np.histogram(sample, values)[0] for sample in (one, two)])
    often = table.sum(0) >= 20
    table = np.column_stack([table[:, often], table[:, ~often].sum(1)])
    return stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue


@pytest.mark.parametrize("total", [4, 500])  # one search per count; one binomial per feature
def test_multinomial_rows_have_exact_totals_and_the_right_mean(total):
    counts = drawn([1.0, 0.0, 2.0, 5.0], None, total, 3000)
    assert (counts.sum(1) == total).all()
    assert (counts[:, 1] == 0).all()
    share = np.array([1, 0, 2, 5]) / 8
    error = 4 * np.sqrt(total * share * (1 - share) / 3000) + 1e-9
    assert (np.abs(counts.mean(0) - total * share) < error).all()
    assert counts.var(0)[3] == pytest.approx(total * share[3] * (1 - share[3]), rel=0.15)


@pytest.mark.parametrize(
    ("mean", "theta"),
    [
        ([4.0, 2.0, 1.0, 0.5, 0.25, 0.25, 0, 0, 0], 0.4),  # the first stretch of time often brings too few, or many
        ([4.0, 2.0, 1.0, 0.5, 0.25, 0.25, 0, 0, 0], 3.0),
        ([7.9, 0.1, 0, 0, 0, 0, 0, 0, 0], 0.02),
        ([80.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1, 1], [0.05, 1e5, 1e5, 0.3, 0.3, 1, 9, 2, 2]),  # means on another scale
    ],
)
def test_counts_are_those_of_gamma_rates_and_a_multinomial(mean, theta):
    """Against a draw of every rate: each feature, and how many features share the counts."""
    n, total, rng = 3000, 8, np.random.default_rng(1)
    counts = drawn(mean, theta, total, n)
    assert (counts.sum(1) == total).all()
    rates = rng.standard_gamma(np.broadcast_to(theta, (n, 9))) / theta * np.asarray(mean)
    expected = rng.multinomial(total, rates / rates.sum(1, keepdims=True))
    p_values = [same_distribution(counts[:, j], expected[:, j]) for j in range(9) if mean[j] > 0]
    p_values.append(same_distribution((counts > 0).sum(1), (expected > 0).sum(1)))
    p_values.append(same_distribution(counts[:, 0] * (counts[:, 1] + 1), expected[:, 0] * (expected[:, 1] + 1)))
    assert min(p_values) > 0.05 / 50


@pytest.mark.parametrize(("total", "n_vars"), [(3, 40), (300, 40)])  # by clusters; by rates
def test_without_exact_totals_features_are_scipys_negative_binomial(total, n_vars):
    rng = np.random.default_rng(2)
    mean = rng.dirichlet(np.ones(n_vars)) * total
    theta = np.where(np.arange(n_vars) % 2, 0.5, 4.0)
    counts = drawn(mean, theta, total, 3000, exact=False)
    want = stats.nbinom(theta, theta / (theta + mean)).rvs((3000, n_vars), random_state=rng)
    # empty rows got one count: the others are as they were drawn
    one, two = counts[counts.sum(1) > 1], want[want.sum(1) > 1]
    assert min(same_distribution(one[:, j], two[:, j]) for j in np.argsort(mean)[-5:]) > 0.05 / 50
    assert (counts.sum(1) > 0).all()
    assert counts.sum(1).std() > 1


def test_one_count_stands_in_a_row_that_would_be_empty():
    counts = drawn(np.full(50, 1e-3), 1.0, 1, 200, exact=False)
    assert set(counts.sum(1)) <= {1.0, 2.0, 3.0} and (counts.sum(1) == 1).mean() > 0.9


def test_dispersed_features_do_not_take_memory_for_their_huge_clusters():
    counts = drawn(np.array([5e6, *[1.0] * 99]), np.array([1e-3, *[1.0] * 99]), 50, 50)
    assert (counts.sum(1) == 50).all()


def test_means_that_float32_hardly_holds_keep_their_share():
    """Many features of tiny means weigh as much together as one large one."""
    mean = np.concatenate([[5e3], np.full(20_000, 0.25)])
    counts = drawn(mean, 1e5, 10_000, 20)
    assert counts[:, 0].mean() == pytest.approx(5e3, rel=0.02)
    assert counts[:, 10_001:].sum(1).mean() == pytest.approx(2.5e3, rel=0.03)


@pytest.mark.parametrize("theta", [None, 1.0])
@pytest.mark.parametrize("total", [3, 40])
def test_a_row_without_rates_still_gets_its_counts(total, theta):
    assert drawn(np.zeros(4), theta, total, 2).sum(1).tolist() == [total, total]


def test_rows_have_streams_of_their_own():
    """What other rows draw does not change a row."""
    mean, theta = torch.rand(3, 60), torch.ones(60)
    other = mean.clone()
    other[0] *= torch.rand(60)
    one, two = (draw_counts(m, theta, np.array([20, 30, 40]), np.random.default_rng(0)) for m in (mean, other))
    assert (one[1:] != two[1:]).nnz == 0 and (one[0] != two[0]).nnz > 0


def test_multinomial_row_lists_features_in_order():
    index, counts = multinomial_row(np.array([1.0, 0.0, 3.0]), 900, np.random.default_rng(0))
    assert index.tolist() == [0, 2] and counts.sum() == 900


def in_order(mean, theta, excess, total, n, seed):
    """Clumps one by one, each of a feature by its rate and of a geometric size, until there are enough counts."""
    rng = np.random.default_rng(seed)
    out = np.zeros((n, len(mean)), dtype=int)
    for row in out:
        rates = rng.standard_gamma(theta) / theta * mean / (1 + excess)
        feature = rng.choice(len(mean), total, p=rates / rates.sum())
        for j, size in zip(feature, rng.geometric(1 / (1 + excess[feature])), strict=True):
            row[j] += min(size, total - row.sum())
    return out


@pytest.mark.parametrize("total", [9, 70, 700])  # by clusters; by rates, in order; by rates, many at once
def test_clumps_come_in_until_there_are_enough_counts(total):
    mean = np.array([4.0, 2.0, 1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.1, 0.0])
    theta, excess = np.resize([0.6, 3.0, 20.0], 10), np.resize([0.5, 0.1, 1.5, 0.0], 10)
    n = 2000
    counts = drawn(mean, theta, total, n, clump=torch.as_tensor(excess))
    assert (counts.sum(1) == total).all()
    assert (counts[:, 9] == 0).all()
    expected = in_order(mean, theta, excess, total, n, 1)
    width = max(total // 12, 1)
    p_values = [same_distribution(counts[:, j] // width, expected[:, j] // width) for j in range(9)]
    p_values.append(same_distribution((counts > 0).sum(1), (expected > 0).sum(1)))
    p_values += [same_distribution(counts[:, j] % 4, expected[:, j] % 4) for j in (2, 5)]
    assert min(p_values) > 0.05 / 50


@pytest.mark.parametrize("total", [30, 300])  # by clusters; by rates
def test_clumps_without_exact_totals_have_their_variance(total):
    rng = np.random.default_rng(3)
    mean = rng.dirichlet(np.ones(40)) * total
    theta, excess = np.where(np.arange(40) % 2, 0.5, 4.0), np.resize([0.0, 0.3, 1.0], 40)
    counts = drawn(mean, theta, total, 4000, clump=torch.as_tensor(excess), exact=False)
    variance = mean * (1 + 2 * excess) + mean**2 / theta
    # rows without counts got one
    slack = 4 * np.sqrt(variance / 4000) + (counts.sum(1) == 1).mean()
    assert (np.abs(counts.mean(0) - mean) < slack).all()
    often = mean > 0.2
    np.testing.assert_allclose(counts.var(0)[often], variance[often], rtol=0.35)
    assert counts.var(0)[often].sum() == pytest.approx(variance[often].sum(), rel=0.1)


def test_clumps_give_the_same_for_the_same_seed_and_none_where_there_is_no_excess():
    mean, theta = np.linspace(0.1, 3, 30), np.full(30, 2.0)
    one, two = (drawn(mean, theta, 20, 50, clump=torch.full((30,), 0.3)) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    plain, single = drawn(mean, theta, 20, 3000), drawn(mean, theta, 20, 3000, clump=torch.zeros(30), seed=5)
    assert same_distribution(plain[:, 29], single[:, 29]) > 0.001
    assert same_distribution((plain > 0).sum(1), (single > 0).sum(1)) > 0.001
