import numpy as np
import pytest
import torch
from scipy import sparse, stats

from isd.module import GeneIsoformCounts, GeneVAEModule
from isd.module._minibatch import _sum_dense, select_columns, sparse_batch, sum_columns
from isd.module._usage_sampling import draw_usage

# isoforms of genes in no order: genes 0 to 3 have several, 4 to 6 one
GENE_OF = np.array([2, 0, 4, 1, 0, 2, 5, 3, 3, 1, 0, 6, 3, 3, 3])
SHARED = np.argsort(GENE_OF, kind="stable")[:12]
SIZES = np.array([3, 2, 2, 5])
OPTIONS = {"n_hidden": 8, "n_latent": 2, "n_layers": 2, "output_rank": 3, "dispersion_rank": 2, "usage_rank": 2}


def tensors(x, *, as_csr=False):
    x = torch.as_tensor(x, dtype=torch.float32)
    return {"X": x.to_sparse_csr() if as_csr else x, "batch": torch.zeros(len(x), 1, dtype=torch.long)}


def made(seed=0, **options):
    """A module whose heads are no longer at zero."""
    torch.manual_seed(seed)
    module = GeneVAEModule(15, gene_of=GENE_OF, **OPTIONS, **options)
    layers = [*module.decoder.heads.values(), module.decoder.usage, module.decoder.concentration]
    with torch.no_grad():
        for layer in layers:
            if layer is not None:
                layer.scores.weight.normal_(std=0.7)
        module.decoder.log_concentration.copy_(torch.tensor([0.5, 2.0, 5.0, -1.0]))
        module.decoder.usage.bias.normal_()
    return module


@pytest.fixture
def counts():
    x = np.random.default_rng(0).negative_binomial(0.4, 0.1, size=(9, 15))
    x[:, 2] += 1
    x[3, SHARED] = 0
    return x


CASES = [{}, {"likelihood": "poisson"}, {"concentration_rank": 1}, {"dispersion": "feature"}]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_the_loss_is_scipys_of_genes_and_of_isoforms_given_genes(counts, options):
    module = made(**options).eval()
    data = tensors(counts)
    with torch.no_grad():
        out = module.inference(**module._get_inference_input(data))
        given = module._get_generative_input(data, out)
        assert given["fused"]
        rec = module.loss(data, out, module.generative(**given)).reconstruction_loss["reconstruction_loss"]
        px = module.generative(**given | {"fused": False})["px"]
    genes = np.stack([counts[:, GENE_OF == g].sum(1) for g in range(7)], axis=1)
    if module.likelihood == "poisson":
        want = stats.poisson(px.gene_counts.rate.double()).logpmf(genes).sum(1)
    else:
        mean, theta = px.gene_counts.mu.double().numpy(), px.gene_counts.theta.double().numpy()
        want = stats.nbinom(theta, theta / (theta + mean)).logpmf(genes).sum(1)
    usage, kappa = px.usage.double().numpy(), np.broadcast_to(px.concentration.numpy(), (9, 4))
    for i in range(9):
        for g in range(4):
            of = np.flatnonzero(GENE_OF == g)
            share = usage[i, of] / usage[i, of].sum()
            want[i] += stats.dirichlet_multinomial(kappa[i, g] * share, genes[i, g]).logpmf(counts[i, of])
    np.testing.assert_allclose(-rec, want, rtol=1e-4)
    np.testing.assert_allclose(px.log_prob(data["X"]), want, rtol=1e-4)
    np.testing.assert_allclose(px.mean.sum(1), counts.sum(1), rtol=1e-4)
    np.testing.assert_array_equal(usage[:, np.isin(GENE_OF, [4, 5, 6])], 1.0)


def test_isoforms_with_means_of_their_own_are_negative_binomial(counts):
    module = made(usage_likelihood="nb").eval()
    data = tensors(counts, as_csr=True)
    with torch.no_grad():
        out = module.inference(**module._get_inference_input(data))
        generated = module.generative(**module._get_generative_input(data, out))
        px = generated["px"]
        rec = module.loss(data, out, generated).reconstruction_loss["reconstruction_loss"]
    mean, theta = px.mu.double().numpy(), px.theta.double().numpy()
    assert theta.shape == (9, 15)
    np.testing.assert_allclose(-rec, stats.nbinom(theta, theta / (theta + mean)).logpmf(counts).sum(1), rtol=1e-4)
    np.testing.assert_allclose(mean.sum(1), counts.sum(1), rtol=1e-4)


@pytest.mark.parametrize("options", [*CASES, {"usage_likelihood": "nb"}], ids=str)
def test_sparse_and_dense_minibatches_give_the_same_loss_and_gradients(counts, options):
    module = made(**options, usage_shrinkage=3.0, shrinkage=2.0).train()
    results = []
    for data, sparse_input in [(tensors(counts), None), (tensors(counts, as_csr=True), True)]:
        module.sparse_input = sparse_input
        torch.manual_seed(1)
        module.zero_grad()
        out = module(data)[2]
        out.loss.backward()
        grads = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
        assert {"decoder.usage.loadings", "decoder.usage.bias", "decoder.mean.bias"} <= set(grads)
        results.append([out.loss.detach(), *grads.values()])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_gradients_through_the_two_levels_are_those_of_autograd(counts):
    """Against the distribution over all features, written with torch's own functions."""
    module = made(concentration_rank=1).double().eval()
    data = {k: v.double() if v.is_floating_point() else v for k, v in tensors(counts).items()}
    gradients = []
    for fused in (True, False):
        torch.manual_seed(1)
        module.zero_grad()
        out = module.inference(**module._get_inference_input(data))
        generated = module.generative(**module._get_generative_input(data, out) | {"fused": fused})
        rec = (
            -module._reconstruction(data["X"], out, generated)[0]
            if fused
            else generated["px"].log_prob(data["X"]).sum()
        )
        rec.backward()
        gradients.append({name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, one in gradients[0].items():
        torch.testing.assert_close(one, gradients[1][name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("options", [{}, {"usage_likelihood": "nb"}], ids=str)
def test_marginal_likelihood_is_at_least_the_bound(counts, options):
    module = made(**options).eval()
    data = tensors(counts)
    with torch.no_grad():
        elbo = -torch.stack([module(data)[2].loss for _ in range(100)]).mean()
    assert module.marginal_ll(data, n_mc_samples=200, return_mean=True) >= elbo.item()


@pytest.mark.parametrize("options", [*CASES[:2], {"usage_likelihood": "nb"}], ids=str)
def test_counts_have_the_asked_totals_and_do_not_depend_on_how_many_are_decoded_at_once(options, monkeypatch):
    module = made(**options).eval()
    z, codes = torch.randn(6, 2), torch.zeros(6, 1, dtype=torch.long)
    log_library = torch.log(torch.tensor([[5.0], [100.0], [20.0], [7.0], [30.0], [2000.0]]))
    drawn = []
    for at_once in (15 * 6, 15 * 2, 1):
        monkeypatch.setattr("isd.module._count_draws.DECODED_AT_ONCE", at_once)
        x = module.sample_counts(z, log_library, codes, None, np.random.default_rng(0))
        assert x.has_sorted_indices and x.dtype == np.float32 and (x.data > 0).all()
        drawn.append(x.toarray())
    assert drawn[0].sum(1).tolist() == [5, 100, 20, 7, 30, 2000]
    np.testing.assert_array_equal(drawn[1], drawn[0])
    np.testing.assert_array_equal(drawn[2], drawn[0])


@pytest.mark.parametrize("total", [1, 3, 400])
def test_isoforms_of_a_gene_are_dirichlet_multinomial(total):
    """Moments of each isoform, over few counts (a search each) and many (binomials)."""
    share, kappa, n = np.array([0.1, 0.25, 0.65]), 2.0, 6000
    totals = sparse.csr_matrix(np.tile([float(total), 2.0], (n, 1)))
    usage = np.log(np.tile(share, (n, 1)))
    x = draw_usage(totals, usage, np.array([kappa]), np.array([3]), np.array([0, 3, 1, 2]), np.random.default_rng(0))
    x = x.toarray()
    np.testing.assert_array_equal(x[:, 2], 2.0)
    x = x[:, [0, 3, 1]]
    np.testing.assert_array_equal(x.sum(1), total)
    variance = total * share * (1 - share) * (total + kappa) / (1 + kappa)
    np.testing.assert_allclose(x.mean(0), total * share, atol=4.5 * np.sqrt(variance.max() / n))
    np.testing.assert_allclose(x.var(0), variance, rtol=0.1)
    if total == 3:
        for j, p in enumerate(share):
            expected = stats.betabinom(3, kappa * p, kappa * (1 - p)).pmf(np.arange(4)) * n
            assert stats.chisquare(np.bincount(x[:, j].astype(int), minlength=4), expected).pvalue > 1e-3


def test_a_vanishing_concentration_gives_all_counts_to_one_isoform_in_proportion_to_usage():
    share, n = np.array([0.2, 0.8]), 3000
    totals = sparse.csr_matrix(np.full((n, 1), 7.0))
    x = draw_usage(
        totals, np.log(np.tile(share, (n, 1))), np.array([1e-6]), np.array([2]), np.arange(2), np.random.default_rng(0)
    )
    x = x.toarray()
    assert set(np.unique(x)) == {0.0, 7.0}
    assert abs((x[:, 0] == 7).mean() - 0.2) < 4 * np.sqrt(0.16 / n)


def test_wide_genes_keep_their_counts():
    """Genes of up to 60 isoforms, shallow and deep cells: isoforms add up to their gene in every cell."""
    rng = np.random.default_rng(0)
    sizes = np.array([60, 2, 17, 30, 5])
    usage = np.concatenate([np.log(rng.dirichlet(np.full(s, 0.2), size=20)) for s in sizes], axis=1)
    features = rng.permutation(sizes.sum() + 3)
    totals = rng.negative_binomial(0.5, 0.02, size=(20, 8)).astype(float)
    totals[10:] *= 100
    x = draw_usage(sparse.csr_matrix(totals), usage, rng.gamma(1.0, size=5), sizes, features, rng).toarray()
    ends = np.concatenate([[0], np.cumsum([*sizes, 1, 1, 1])])
    for gene in range(8):
        np.testing.assert_array_equal(x[:, features[ends[gene] : ends[gene + 1]]].sum(1), totals[:, gene])


def test_pooled_usage_and_gene_shares_are_where_the_decoder_starts():
    module = GeneVAEModule(15, gene_of=GENE_OF, **OPTIONS).eval()
    share = np.random.default_rng(0).dirichlet(np.ones(15))
    share[1] = 0  # never seen
    share /= share.sum()
    module.set_training_statistics(np.array([3.0, 4.0]), share, 1000.0)
    usage = module.decoder.log_pooled.exp().numpy()
    first = np.flatnonzero(GENE_OF == 0)
    want = (share[first] * 1000 + 0.5) / (share[first] * 1000 + 0.5).sum()
    np.testing.assert_allclose(usage[:3], want, rtol=1e-5)
    genes = np.bincount(GENE_OF, share)
    found = torch.softmax(module.decoder.mean.bias.detach(), 0).numpy()
    np.testing.assert_allclose(found, genes, rtol=1e-4)


def test_columns_are_chosen_and_added_up(counts):
    batch = sparse_batch(torch.as_tensor(counts, dtype=torch.float32), by_column=False)
    chosen = select_columns(batch, torch.as_tensor(SHARED))
    x = sparse.csc_matrix((chosen.values, chosen.rows, chosen.ptr), shape=(9, 12)).toarray()
    np.testing.assert_array_equal(x, counts[:, SHARED])
    want = np.stack([counts[:, GENE_OF == g].sum(1) for g in range(7)], axis=1)
    codes = torch.as_tensor(GENE_OF)
    # the second is what a GPU does
    for summed in (sum_columns(batch, codes, 7), _sum_dense(batch, codes[batch.cols.long()], 7)):
        by_row = sparse.csr_matrix((summed.values, summed.cols, summed.row_ptr), shape=(9, 7))
        by_column = sparse.csc_matrix((summed.values_by_column, summed.rows, summed.col_ptr), shape=(9, 7))
        np.testing.assert_array_equal(by_row.toarray(), want)
        np.testing.assert_array_equal(by_column.toarray(), want)
        assert by_row.nnz == by_column.nnz == (want > 0).sum()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gene_of": np.arange(15)}, "no gene has several"),
        ({"gene_of": np.zeros(3, int)}, "15 isoforms"),
        ({"gene_of": np.r_[0, np.ones(14, int)]}, "before all others"),
        ({"gene_of": GENE_OF, "likelihood": "normal"}, "no gene level"),
        ({"gene_of": GENE_OF, "likelihood": "zinb"}, "no gene level"),
        ({"gene_of": GENE_OF, "usage_likelihood": "gauss"}, "'gauss' is unknown"),
        ({"gene_of": GENE_OF, "usage_rank": 0}, "usage_rank"),
        ({"gene_of": GENE_OF, "usage_shrinkage": float("nan")}, "usage_shrinkage"),
        ({"gene_of": GENE_OF, "concentration_rank": -1}, "concentration_rank"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GeneVAEModule(15, **options)


def test_a_distribution_of_several_samples_has_one_more_axis():
    module = made().eval()
    with torch.no_grad():
        px = [
            module.generative(z, torch.full((4, 1), 3.0), torch.zeros(4, 1, dtype=torch.long))["px"]
            for z in torch.randn(2, 4, 2)
        ]
    both = GeneIsoformCounts(
        torch.distributions.Poisson(torch.stack([p.gene_mean for p in px])),
        torch.stack([p.logits for p in px]), px[0].concentration, module.shared, module.genes,
    )  # fmt: skip
    assert both.mean.shape == (2, 4, 15)
    assert both.log_prob(torch.ones(2, 4, 15)).shape == (2, 4)
    torch.testing.assert_close(both.mean[1], px[1].mean)
