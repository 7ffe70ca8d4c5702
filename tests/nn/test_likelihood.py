import numpy as np
import pytest
import torch
from scipy import sparse, special, stats
from scvi.distributions import NegativeBinomial
from torch.distributions import Normal, Poisson

import isd.nn._likelihood as chunked
from isd.module import ClumpedNegativeBinomial
from isd.nn import CountLinear, Factors, SparseBatch, gamma_ratio, log_likelihood


def batch_of(x, dtype=torch.float64):
    """A SparseBatch, by row and by column, made with scipy."""
    csr, csc = sparse.csr_matrix(x), sparse.csc_matrix(x)
    by_row = (torch.as_tensor(csr.indptr), torch.as_tensor(csr.indices), torch.as_tensor(csr.data, dtype=dtype))
    by_column = (torch.as_tensor(csc.indptr), torch.as_tensor(csc.indices), torch.as_tensor(csc.data, dtype=dtype))
    return SparseBatch(*by_row, x.shape[1], *by_column)


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    x = rng.negative_binomial(0.3, 0.1, size=(5, 13))
    x[2] = 0  # a cell and a feature without counts
    x[:, 4] = 0
    x[0, 0] = 5000
    return x


def layers(n, p, rank=3, head_rank=2):
    """Two low-rank layers and log theta in double precision."""
    torch.manual_seed(0)
    make = lambda *shape: torch.randn(*shape, dtype=torch.float64).requires_grad_()
    mean = Factors(make(n, rank), make(rank, p), make(p))
    return mean, make(p), Factors(make(n, head_rank), make(head_rank, p), make(p))


def whole(kind, x, mean, log_library, log_theta=None, log_clump=None, head=None, limits=(-np.inf, np.inf)):
    """The same through distributions over all features and autograd."""
    logits = mean.scores @ mean.loadings + mean.bias
    if kind == "normal":
        return Normal(logits, 1.0).log_prob(x).sum(1)
    rate = torch.softmax(logits, 1) * log_library.exp()
    if kind == "poisson":
        return Poisson(rate).log_prob(x).sum(1)
    raw = log_theta if head is None else log_theta + head.scores @ head.loadings + head.bias
    if log_clump is not None:
        return ClumpedNegativeBinomial(rate, raw.clamp(*limits).exp(), log_clump.exp()).log_prob(x).sum(1)
    return NegativeBinomial(mu=rate, theta=raw.clamp(*limits).exp(), validate_args=False).log_prob(x).sum(1)


CASES = [("nb", True), ("nb", False), ("poisson", False), ("normal", False)]


@pytest.mark.parametrize(("kind", "with_head"), CASES)
@pytest.mark.parametrize("chunk", [1, 4 * 5, 10**6])
def test_values_and_gradients_are_those_of_the_dense_distribution(counts, kind, with_head, chunk, monkeypatch):
    monkeypatch.setitem(chunked.CHUNK, "cpu", chunk)
    mean, log_theta, head = layers(*counts.shape)
    head = head if with_head else None
    parameters = [*mean] + ([log_theta] if kind == "nb" else []) + ([*head] if head else [])
    log_library = torch.log(torch.as_tensor(counts.sum(1, keepdims=True) + 1.0))
    options = {"log_library": log_library, "log_theta": log_theta if kind == "nb" else None, "head": head}
    total, each = log_likelihood(kind, batch_of(counts), mean, **options)
    want = whole(kind, torch.as_tensor(counts, dtype=torch.float64), mean, **options)
    torch.testing.assert_close(each, want.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(total, want.sum(), rtol=1e-6, atol=1e-6)
    got = torch.autograd.grad(total / 3, parameters)
    for one, other in zip(got, torch.autograd.grad(want.sum() / 3, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(log_likelihood(kind, batch_of(counts), mean, **options)[1], each)


@pytest.mark.parametrize("with_head", [True, False])
def test_gradients_of_clumps_are_those_of_finite_differences(counts, with_head):
    counts = np.minimum(counts, 20)
    mean, log_theta, head = layers(*counts.shape)
    log_clump = torch.linspace(-4.0, 1.0, counts.shape[1], dtype=torch.float64, requires_grad=True)
    log_library = torch.log(torch.as_tensor(counts.sum(1, keepdims=True) + 1.0))

    def total(*given):
        options = {"log_library": log_library, "log_theta": given[3], "log_clump": given[4]}
        head = Factors(*given[5:]) if with_head else None
        return log_likelihood("nb", batch_of(counts), Factors(*given[:3]), **options, head=head)[0]

    assert torch.autograd.gradcheck(total, (*mean, log_theta, log_clump, *(head if with_head else ())), atol=1e-5)


@pytest.mark.parametrize(("kind", "with_head"), CASES)
def test_gradients_are_those_of_finite_differences(counts, kind, with_head):
    counts = np.minimum(counts, 20)
    mean, log_theta, head = layers(*counts.shape)
    log_library = torch.log(torch.as_tensor(counts.sum(1, keepdims=True) + 1.0))
    batch = batch_of(counts)

    def total(*parameters):
        head = Factors(*parameters[4:]) if with_head else None
        theta = parameters[3] if kind == "nb" else None
        made = Factors(*parameters[:3])
        return log_likelihood(kind, batch, made, log_library=log_library, log_theta=theta, head=head)[0]

    parameters = (*mean, log_theta, *head) if with_head else (*mean, log_theta)
    assert torch.autograd.gradcheck(total, parameters, atol=1e-5)


@pytest.mark.parametrize("with_head", [True, False])
@pytest.mark.parametrize("chunk", [1, 4 * 5, 10**6])
def test_clumps_of_counts_are_those_of_the_dense_distribution(counts, with_head, chunk, monkeypatch):
    monkeypatch.setitem(chunked.CHUNK, "cpu", chunk)
    mean, log_theta, head = layers(*counts.shape)
    head = head if with_head else None
    log_clump = torch.linspace(-4.0, 1.0, counts.shape[1], dtype=torch.float64, requires_grad=True)
    log_library = torch.log(torch.as_tensor(counts.sum(1, keepdims=True) + 1.0))
    options = {"log_library": log_library, "log_theta": log_theta, "log_clump": log_clump, "head": head}
    total, each = log_likelihood("nb", batch_of(counts), mean, **options)
    want = whole("nb", torch.as_tensor(counts, dtype=torch.float64), mean, **options)
    torch.testing.assert_close(each, want.detach(), rtol=1e-6, atol=1e-6)
    parameters = [*mean, log_theta, log_clump, *(head or [])]
    got = torch.autograd.grad(total, parameters)
    for one, other in zip(got, torch.autograd.grad(want.sum(), parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    # as without, where all counts are single
    single = log_likelihood("nb", batch_of(counts), mean, **options | {"log_clump": torch.full_like(log_clump, -40.0)})
    plain = log_likelihood("nb", batch_of(counts), mean, **options | {"log_clump": None})
    torch.testing.assert_close(single[1], plain[1])


def test_log_theta_has_limits_and_no_gradient_beyond(counts):
    mean, log_theta, head = layers(*counts.shape)
    log_library = torch.full((5, 1), 3.0, dtype=torch.float64)
    limits = (-0.5, 0.7)
    options = {"log_library": log_library, "log_theta": log_theta, "head": head}
    total, each = log_likelihood("nb", batch_of(counts), mean, **options, log_theta_range=limits)
    want = whole("nb", torch.as_tensor(counts, dtype=torch.float64), mean, **options, limits=limits)
    torch.testing.assert_close(each, want.detach(), rtol=1e-6, atol=1e-6)
    got, expected = torch.autograd.grad(total, log_theta)[0], torch.autograd.grad(want.sum(), log_theta)[0]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    far = log_theta.detach().fill_(5.0).requires_grad_()
    total, _ = log_likelihood(
        "nb", batch_of(counts), mean, log_library=log_library, log_theta=far, log_theta_range=limits
    )
    assert (torch.autograd.grad(total, far)[0] == 0).all()


def test_a_full_layer_has_gradients_in_its_own_layout(counts):
    torch.manual_seed(0)
    linear = torch.nn.Linear(3, 13, dtype=torch.float64)
    h = torch.randn(5, 3, dtype=torch.float64)
    log_library = torch.zeros(5, 1, dtype=torch.float64)
    made = Factors(h, linear.weight.t(), linear.bias)
    log_likelihood("poisson", batch_of(counts), made, log_library=log_library)[0].backward()
    got, linear.weight.grad = linear.weight.grad, None
    assert got.is_contiguous()
    whole("poisson", torch.as_tensor(counts, dtype=torch.float64), made, log_library).sum().backward()
    torch.testing.assert_close(got, linear.weight.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gamma_ratio_is_scipys(dtype):
    theta = torch.logspace(-8, 12, 41, base=float(np.e), dtype=dtype)[:, None].expand(-1, 8).contiguous()
    x = torch.tensor([0, 1, 2, 3, 10, 300, 2.0e4, 1.0e6], dtype=dtype).expand_as(theta).contiguous()
    value, slope = (a.double().numpy() for a in gamma_ratio(theta, x))
    t, k = theta.double().numpy(), x.double().numpy()
    want = special.gammaln(t + k) - special.gammaln(t)
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-7}[dtype]
    np.testing.assert_allclose(value, want, rtol=tolerance, atol=5 * tolerance)
    want = special.digamma(t + k) - special.digamma(t)
    np.testing.assert_allclose(slope * t, want * t, rtol=3 * tolerance, atol=5 * tolerance)


def test_single_precision_holds_for_nearly_poisson_counts():
    """At theta = 1e5 the difference of two lgamma in single precision is off by a tenth; here it is not."""
    x = np.array([[0, 3, 700]])
    factors = Factors(torch.zeros(1, 1), torch.zeros(1, 3), torch.tensor([0.0, 1.0, 6.0]))
    log_library = torch.tensor([[6.5]])
    _, each = log_likelihood(
        "nb", batch_of(x, torch.float32), factors, log_library=log_library, log_theta=torch.full((3,), 11.5)
    )
    rate = (torch.softmax(factors.bias.double(), 0) * log_library.double().exp()).numpy().ravel()
    theta = np.exp(11.5)
    want = stats.nbinom(theta, theta / (theta + rate)).logpmf(x).sum()
    assert each.item() == pytest.approx(want, rel=1e-5)


def test_what_cannot_be_is_refused(counts):
    mean, log_theta, _ = layers(*counts.shape)
    batch, log_library = batch_of(counts), torch.zeros(5, 1)
    with pytest.raises(ValueError, match="'gauss' is unknown"):
        log_likelihood("gauss", batch, mean, log_library=log_library)
    with pytest.raises(ValueError, match="log_theta"):
        log_likelihood("nb", batch, mean, log_library=log_library)
    rows_only = SparseBatch(batch.row_ptr, batch.cols, batch.values, 13)
    with pytest.raises(ValueError, match="by column"):
        log_likelihood("nb", rows_only, mean, log_library=log_library, log_theta=log_theta)


@pytest.mark.parametrize("n_covariates", [0, 2])
def test_the_first_layer_is_the_same_for_sparse_and_dense(counts, n_covariates):
    torch.manual_seed(0)
    layer = CountLinear(13, n_covariates, 4).double()
    covariates = torch.randn(5, n_covariates, dtype=torch.float64)
    batch, x = batch_of(counts), torch.as_tensor(counts, dtype=torch.float64)
    side = torch.randn(5, 4, dtype=torch.float64)
    gradients = []
    for given in (batch, x):
        out = layer((given, covariates))
        weight = layer.weight if layer.covariates is None else torch.cat([layer.weight, layer.covariates])
        torch.testing.assert_close(out, torch.cat([x, covariates], 1) @ weight + layer.bias)
        gradients.append(torch.autograd.grad((out * side).sum(), list(layer.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(RuntimeError, match="by column"):
        layer((SparseBatch(batch.row_ptr, batch.cols, batch.values, 13), covariates)).sum().backward()


def test_the_first_layer_starts_as_linear_does():
    torch.manual_seed(0)
    layer = CountLinear(13, 2, 4)
    torch.manual_seed(0)
    linear = torch.nn.Linear(15, 4)
    torch.testing.assert_close(torch.cat([layer.weight, layer.covariates]), linear.weight.t(), rtol=0, atol=1e-7)
    torch.testing.assert_close(layer.bias, linear.bias)


def test_a_batch_has_totals_and_log_normalised_values(counts):
    batch = batch_of(counts, torch.float32)
    torch.testing.assert_close(batch.sums(), torch.as_tensor(counts.sum(1), dtype=torch.float32))
    assert batch.density == pytest.approx((counts > 0).mean())
    want = np.log1p(counts / np.maximum(counts.sum(1, keepdims=True), 1) * 1e4)
    made = batch.log_normalized(1e4)
    dense = torch.sparse_csr_tensor(made.row_ptr, made.cols, made.values, size=counts.shape).to_dense()
    np.testing.assert_allclose(dense, want, rtol=1e-5)
    by_column = torch.sparse_csc_tensor(made.col_ptr, made.rows, made.values_by_column, size=counts.shape).to_dense()
    np.testing.assert_allclose(by_column, want, rtol=1e-5)


def test_small_counts_are_not_lost_in_large_totals():
    x = np.ones((1, 3001))
    x[0, 0] = 2**24
    assert batch_of(x, torch.float32).sums().item() == 2**24 + 3000


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("kind", ["nb", "normal"])
def test_threads_share_the_features_and_give_the_same(counts, kind, inference, monkeypatch):
    monkeypatch.setitem(chunked.CHUNK, "cpu", 10)
    mean, log_theta, head = layers(*counts.shape)
    results = []
    try:
        for n_threads in (1, 2, 2):
            torch.set_num_threads(n_threads)
            with torch.inference_mode(inference):
                options = {"log_library": torch.zeros(5, 1, dtype=torch.float64), "log_theta": log_theta, "head": head}
                total, each = log_likelihood(kind, batch_of(counts), mean, **options)
            assert torch.get_num_threads() == n_threads
            gradients = () if inference else torch.autograd.grad(total, mean)
            results.append((each, *gradients))
    finally:
        torch.set_num_threads(1)
    for one, two, three in zip(*results, strict=True):
        torch.testing.assert_close(one, two)
        assert torch.equal(two, three)
