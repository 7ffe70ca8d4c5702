import numpy as np
import pytest
import torch
from scipy import sparse, special, stats

from isd.nn import (
    Segments,
    SparseBatch,
    dirichlet_multinomial_log_likelihood,
    isoform_counts,
    multinomial_log_likelihood,
    pair_log_softmax,
)

CODES = {
    "sorted": [0, 0, 0, 1, 2, 2],
    "unsorted, one alone": [2, 0, 1, 2, 0, 2, 3],
    "all alone": [3, 1, 0, 2],
    "one gene": [0, 0, 0],
    "without a gene": [0, -1, 0, -1, 1],
    "none": [],
}


def members(codes):
    """Features of each group by a loop: known groups by their code, then those of negative codes."""
    groups = [np.flatnonzero(np.asarray(codes) == g) for g in range(max([*codes, -1]) + 1)]
    return groups + [np.array([i]) for i, c in enumerate(codes) if c < 0]


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
@pytest.mark.parametrize("codes", CODES.values(), ids=CODES)
def test_everything_equals_a_loop_over_groups(codes, shape):
    rng = np.random.default_rng(len(codes))
    x = rng.normal(scale=30, size=(*shape, len(codes)))  # differences of 100: exponentials overflow without a maximum
    segments, groups = Segments(torch.tensor(codes, dtype=torch.int64)), members(codes)
    tensor = torch.tensor(x)
    sums, logs, shares = segments.sum(tensor), segments.logsumexp(tensor), segments.softmax(tensor)
    assert sums.shape == logs.shape == (*shape, len(groups))
    assert segments.sizes.tolist() == [len(group) for group in groups]
    for g, group in enumerate(groups):
        np.testing.assert_allclose(sums[..., g], x[..., group].sum(-1))
        np.testing.assert_allclose(logs[..., g], special.logsumexp(x[..., group], axis=-1))
        np.testing.assert_allclose(shares[..., group], special.softmax(x[..., group], axis=-1))
        np.testing.assert_array_equal(segments.expand(sums)[..., group], sums[..., [g] * len(group)])


def test_random_groups_in_single_precision():
    rng = np.random.default_rng(1)
    for _ in range(20):
        codes = rng.integers(-1, rng.integers(1, 30), size=rng.integers(1, 80))
        x = rng.normal(scale=5, size=(3, codes.size)).astype(np.float32)
        segments = Segments(torch.as_tensor(codes))
        shares = segments.softmax(torch.tensor(x))
        present = segments.sizes > 0
        np.testing.assert_allclose(segments.sum(shares)[:, present], 1.0, rtol=2e-6)
        alone = np.setdiff1d(np.arange(codes.size), segments.shared)
        assert (shares[:, alone] == 1).all()
        inner = segments.shared_only()
        np.testing.assert_array_equal(inner.softmax(torch.tensor(x)[:, segments.shared]), shares[:, segments.shared])


def test_gradients_are_those_of_finite_differences():
    segments = Segments(torch.tensor([1, 0, 1, 2, 2, -1, 1]))
    x = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for function in (segments.sum, segments.logsumexp, segments.log_softmax, segments.softmax):
        assert torch.autograd.gradcheck(function, (x,))


def test_a_share_of_zero_is_minus_infinity_and_gives_no_nan():
    segments = Segments(torch.tensor([0, 0, 1, 1]), n_segments=3)
    x = torch.tensor([[0.0, -torch.inf, 1.0, 1.0]]).requires_grad_()
    shares = segments.softmax(x)
    shares[0, 0].backward()
    assert shares.tolist() == [[1.0, 0.0, 0.5, 0.5]]
    assert torch.isfinite(x.grad).all()
    assert segments.logsumexp(x)[0, 2] == -torch.inf


def test_chosen_columns_and_features_of_chosen_groups():
    segments = Segments(torch.tensor([2, 0, 1, 2, 0, 2]))
    part, kept = segments.subset(torch.tensor([5, 1, 0]))
    assert kept.tolist() == [0, 2]
    assert part.sum(torch.tensor([1.0, 2.0, 4.0])).tolist() == [2.0, 5.0]
    features, of = segments.features(torch.tensor([2, 1, 2]))
    assert features.tolist() == [0, 3, 5, 2, 0, 3, 5]
    assert of.tolist() == [0, 0, 0, 1, 2, 2, 2]
    assert segments.rank(torch.tensor([5, 1, 0, 4])).tolist() == [2, 0, 0, 1]


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="whole numbers"):
        Segments(torch.tensor([0.5]))
    with pytest.raises(ValueError, match="n_segments is 1"):
        Segments(torch.tensor([0, 1]), n_segments=1)
    with pytest.raises(ValueError, match="expected 2 features"):
        Segments(torch.tensor([0, 1])).softmax(torch.zeros(3, 5))


# -- likelihood of usage ----------------------------------------------------------------------------------------------


def batch_of(x, dtype=torch.float64):
    csr = sparse.csr_matrix(x)
    parts = (torch.as_tensor(csr.indptr), torch.as_tensor(csr.indices), torch.as_tensor(csr.data, dtype=dtype))
    return SparseBatch(*parts, x.shape[1])


@pytest.fixture
def case():
    """Counts, genes (not sorted, one alone), usage logits of all, concentrations of all."""
    rng = np.random.default_rng(0)
    codes = np.array([0, 2, 0, 1, 2, 3, 2, 3, 0])
    x = rng.poisson(1.0, size=(6, codes.size))
    x[2] = 0
    x[3, [5, 7]] = 0, 400
    return x, codes, rng.normal(size=x.shape), rng.normal(1.0, 2.0, size=(6, 4))


def entries(case, dtype=torch.float64):
    x, codes, logits, concentration = case
    counts = isoform_counts(batch_of(x, dtype), Segments(torch.as_tensor(codes)))
    cell = counts.cell[counts.pair]
    return (
        counts,
        torch.as_tensor(logits, dtype=dtype)[cell, counts.column],
        torch.as_tensor(concentration, dtype=dtype)[counts.cell, counts.gene],
    )


def test_only_genes_with_counts_and_several_isoforms_are_held(case):
    x, codes, _, _ = case
    counts = entries(case)[0]
    pairs = {(i, g): x[i, codes == g] for i in range(len(x)) for g in (0, 2, 3) if x[i, codes == g].sum()}
    assert list(zip(counts.cell.tolist(), counts.gene.tolist(), strict=True)) == list(pairs)
    assert counts.total.tolist() == [v.sum() for v in pairs.values()]
    assert counts.value.tolist() == np.concatenate(list(pairs.values())).tolist()


def test_likelihood_is_that_of_scipy(case):
    x, codes, logits, log_concentration = case
    expected, limit = np.zeros(len(x)), np.zeros(len(x))
    for i in range(len(x)):
        for g in (0, 2, 3):
            of = codes == g
            usage = special.softmax(logits[i, of])
            if n := x[i, of].sum():
                alpha = np.exp(log_concentration[i, g]) * usage
                expected[i] += stats.dirichlet_multinomial.logpmf(x[i, of], alpha, n)
                limit[i] += stats.multinomial.logpmf(x[i, of], n, usage)
    np.testing.assert_allclose(dirichlet_multinomial_log_likelihood(*entries(case)), expected, rtol=1e-6, atol=1e-6)
    counts, at_entries, _ = entries(case)
    np.testing.assert_allclose(multinomial_log_likelihood(counts, at_entries), limit, rtol=1e-6, atol=1e-9)
    assert expected[2] == 0


def test_single_precision_reaches_the_multinomial_limit(case):
    counts, logits, concentration = entries(case, torch.float32)
    wide = dirichlet_multinomial_log_likelihood(counts, logits, torch.full_like(concentration, np.log(1e8)))
    np.testing.assert_allclose(wide, multinomial_log_likelihood(counts, logits), rtol=1e-4, atol=1e-4)


def test_likelihood_gradients_are_those_of_finite_differences(case):
    counts, logits, concentration = entries(case)
    logits, concentration = logits.requires_grad_(), concentration.requires_grad_()
    for constant in (True, False):
        value = lambda a, b: dirichlet_multinomial_log_likelihood(counts, a, b, constant=constant)  # noqa: B023
        assert torch.autograd.gradcheck(value, (logits, concentration), atol=1e-4)
    assert torch.autograd.gradcheck(lambda a: multinomial_log_likelihood(counts, a), (logits,))


def test_what_no_parameter_changes_can_be_left_out(case):
    x, codes, _, _ = case
    counts, logits, concentration = entries(case)
    many = np.isin(codes, (0, 2, 3))
    totals = np.stack([x[:, codes == g].sum(1) for g in (0, 2, 3)], axis=1)
    constant = special.gammaln(totals + 1).sum(1) - special.gammaln(x[:, many] + 1).sum(1)
    for likelihood in (
        lambda **k: dirichlet_multinomial_log_likelihood(counts, logits, concentration, **k),
        lambda **k: multinomial_log_likelihood(counts, logits, **k),
    ):
        np.testing.assert_allclose(likelihood() - likelihood(constant=False), constant, atol=1e-9)


def test_usage_of_a_pair_adds_up_to_one(case):
    counts, logits, _ = entries(case)
    sums = torch.zeros(len(counts.total), dtype=logits.dtype).index_add(
        0, counts.pair, pair_log_softmax(counts, 1000 * logits).exp()
    )
    np.testing.assert_allclose(sums, 1.0)
