import numpy as np
import pytest
import torch
from scipy import sparse, stats

import isd.nn._likelihood as chunked
import isd.nn._usage_likelihood as usage_chunked
from isd.nn import (
    Columns,
    Factors,
    GeneDecoder,
    Segments,
    SparseBatch,
    dirichlet_multinomial_log_likelihood,
    isoform_counts,
    usage_log_likelihood,
)

SIZES = torch.tensor([2, 3, 2, 5])
N = 6


def columns(x, dtype=torch.float64):
    csc = sparse.csc_matrix(x)
    return Columns(torch.as_tensor(csc.indptr), torch.as_tensor(csc.indices), torch.as_tensor(csc.data, dtype=dtype))


@pytest.fixture
def counts():
    rng = np.random.default_rng(0)
    x = rng.negative_binomial(0.3, 0.1, size=(N, 12)).astype(float)
    x[2] = 0  # a cell without counts, a gene without, and one that one cell alone has
    x[:, 5:7] = 0
    x[1, 5] = 1
    x[0, 0] = 5000
    return x


def totals_of(x):
    starts = np.concatenate([[0], np.cumsum(SIZES.numpy())[:-1]])
    return np.add.reduceat(x, starts, axis=1)


def parameters(with_head, dtype=torch.float64):
    torch.manual_seed(0)
    make = lambda *shape: torch.randn(*shape, dtype=dtype).requires_grad_()
    usage, log_kappa = Factors(make(N, 3), make(3, 12), make(12)), make(4)
    return usage, log_kappa, Factors(make(N, 2), make(2, 4), make(4)) if with_head else None


def by_pairs(x, usage, log_kappa, head):
    """The same by pairs of cell and gene, through autograd."""
    csr = sparse.csr_matrix(x)
    batch = SparseBatch(*(torch.as_tensor(a) for a in (csr.indptr, csr.indices, csr.data)), 12)
    genes = Segments(torch.repeat_interleave(torch.arange(4), SIZES))
    pairs = isoform_counts(batch, genes)
    logits = usage.scores @ usage.loadings + usage.bias
    log_kappa = log_kappa.expand(N, 4) if head is None else log_kappa + head.scores @ head.loadings + head.bias
    return dirichlet_multinomial_log_likelihood(
        pairs, logits[pairs.cell[pairs.pair], pairs.column], log_kappa[pairs.cell, pairs.gene]
    )


@pytest.mark.parametrize("with_head", [False, True])
@pytest.mark.parametrize("chunk", [1, 4 * N, 10**6])
@pytest.mark.parametrize("n_threads", [1, 2])
def test_values_and_gradients_are_those_of_pairs_and_autograd(counts, with_head, chunk, n_threads, monkeypatch):
    monkeypatch.setitem(chunked.CHUNK, "cpu", chunk)
    usage, log_kappa, head = parameters(with_head)
    every = [*usage, log_kappa, *(head or ())]
    try:
        torch.set_num_threads(n_threads)
        total, each = usage_log_likelihood(
            columns(counts), columns(totals_of(counts)), SIZES, usage, log_kappa, head=head
        )
    finally:
        torch.set_num_threads(1)
    want = by_pairs(counts, usage, log_kappa, head)
    torch.testing.assert_close(each, want.detach())
    got = torch.autograd.grad(total / 3, every)
    for one, other in zip(got, torch.autograd.grad(want.sum() / 3, every), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        again = usage_log_likelihood(columns(counts), columns(totals_of(counts)), SIZES, usage, log_kappa, head=head)
    torch.testing.assert_close(again[1], each)


def test_a_cell_is_scipys_dirichlet_multinomial():
    x = np.array([[3.0, 0.0, 2.0, 1.0, 4.0]])
    usage = Factors(torch.zeros(1, 1), torch.zeros(1, 5), torch.log(torch.tensor([0.2, 0.8, 0.5, 0.3, 0.2])))
    kappa = torch.tensor([3.0, 0.7])
    _, each = usage_log_likelihood(
        columns(x, torch.float32), columns([[3.0, 7.0]], torch.float32), torch.tensor([2, 3]), usage, torch.log(kappa)
    )
    want = stats.dirichlet_multinomial([0.6, 2.4], 3).logpmf([3, 0])
    want += stats.dirichlet_multinomial([0.35, 0.21, 0.14], 7).logpmf([2, 1, 4])
    assert each.item() == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("with_head", [False, True])
def test_concentration_has_limits_and_no_gradient_beyond(counts, with_head):
    usage, log_kappa, head = parameters(with_head)
    head = head and Factors(0.1 * head.scores, 0.1 * head.loadings, 0.1 * head.bias)
    bounds = (-0.5, 0.5)
    log_kappa = torch.tensor([-9.0, -0.1, 0.1, 9.0], dtype=torch.float64, requires_grad=True)
    args = columns(counts), columns(totals_of(counts)), SIZES, usage
    total, each = usage_log_likelihood(*args, log_kappa, head=head, log_concentration_range=bounds)
    assert torch.isfinite(each).all()
    raw = log_kappa.expand(N, 4) if head is None else log_kappa + head.scores @ head.loadings + head.bias
    got = torch.autograd.grad(total, log_kappa)[0]
    beyond = ((raw < bounds[0]) | (raw > bounds[1])).all(0)
    assert beyond.any() and (got[beyond] == 0).all() and (got[~beyond] != 0).any()


def test_logits_beyond_single_precision_give_finite_values(counts):
    usage, log_kappa, _ = parameters(False, torch.float32)
    far = Factors(usage.scores, usage.loadings, torch.linspace(-500, 500, 12).requires_grad_())
    total, each = usage_log_likelihood(
        columns(counts, torch.float32), columns(totals_of(counts), torch.float32), SIZES, far, log_kappa
    )
    assert torch.isfinite(each).all()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(total, [*far, log_kappa]))


def test_shapes_that_do_not_fit_are_refused(counts):
    usage, log_kappa, _ = parameters(False)
    with pytest.raises(ValueError, match="12 isoforms of 4 genes"):
        usage_log_likelihood(columns(counts[:, :9]), columns(totals_of(counts)), SIZES, usage, log_kappa)


def test_chunks_are_whole_genes_and_cover_all(counts, monkeypatch):
    monkeypatch.setitem(chunked.CHUNK, "cpu", 3 * N)
    offsets = torch.nn.functional.pad(SIZES.cumsum(0), (1, 0))
    made = usage_chunked._chunks(columns(counts), columns(totals_of(counts)), offsets, N)
    assert len(made) > 1
    assert [c.genes.start for c in made] == [0, *(c.genes.stop for c in made[:-1])] and made[-1].genes.stop == 4
    assert all(offsets[c.genes.start] == c.columns.start for c in made)


def test_usage_starts_at_the_pooled_one_and_its_prior_is_normal():
    decoder = GeneDecoder(
        3, 1, 5, SIZES, n_hidden=8, n_layers=1, usage_rank=2, usage_shrinkage=4.0, concentration_rank=1,
        concentration_shrinkage=2.0,
    ).train()  # fmt: skip
    z, covariates = torch.randn(7, 3), torch.randn(7, 1)
    out = decoder(z, covariates)
    torch.testing.assert_close(out["usage"], decoder.log_pooled.expand(7, 12))
    torch.testing.assert_close(torch.exp(decoder.log_pooled[2:5]), torch.full((3,), 1 / 3))
    assert out["penalty"] == 0
    with torch.no_grad():
        for layer in (decoder.usage, decoder.concentration):
            layer.scores.weight.normal_()
            layer.bias.normal_()
        decoder.log_concentration += 1.5
    out = decoder(z, covariates)
    added, by_cell = out["usage"] - decoder.log_pooled - decoder.usage.bias, out["concentration"]
    want = 2.0 * (added.square().mean(0).sum() + decoder.usage.bias.square().sum()) + 0.5 * 4 * 1.5**2
    spread = (by_cell - decoder.concentration.bias).square().mean(0).sum()
    want = want + 1.0 * (spread + decoder.concentration.bias.square().sum())
    torch.testing.assert_close(out["penalty"], want)
    factors, penalty = decoder.factors(z, covariates)
    torch.testing.assert_close(penalty, out["penalty"])
    for name, layer in factors.items():
        torch.testing.assert_close(layer.scores @ layer.loadings + layer.bias, out[name])
