"""The fit of usage from genes: it finds what is there, and reads no test cell."""

import numpy as np
import pytest
import torch
from scipy import sparse, stats

import isd.model._usage as module
from isd.metrics import GeneMap
from isd.model._usage import UsageSettings, as_batch, fit_usage, gene_scores
from isd.model._usage_draw import draw_isoforms, gene_totals
from isd.nn import isoform_counts, multinomial_log_likelihood, pair_log_softmax


@pytest.fixture(scope="module")
def switching():
    """Two isoforms of 40 genes trade places as the expression of others says; the last 20 genes have one isoform."""
    rng = np.random.default_rng(0)
    n = 300
    state = rng.uniform(size=n)
    totals = rng.poisson(np.exp(rng.normal(1.0, 0.5, size=60)) * (1 + 2 * state[:, None] * (np.arange(60) >= 40)))
    usage = np.where(np.arange(40) % 2, 0.15 + 0.7 * state[:, None], 0.85 - 0.7 * state[:, None])
    first = rng.binomial(totals[:, :40], usage)
    x = np.empty((n, 100))
    x[:, 0:80:2], x[:, 1:80:2], x[:, 80:] = first, totals[:, :40] - first, totals[:, 40:]
    genes = GeneMap.from_ids([f"g{i // 2}" for i in range(80)] + [f"h{i}" for i in range(20)])
    return sparse.csr_matrix(x.astype(np.float32)), genes, state


def fit(switching, **settings):
    x, genes, _ = switching
    settings = UsageSettings(**{"rank": 2, "max_steps": 100, **settings})
    return fit_usage(x, genes, np.arange(200), np.arange(200, 240), settings=settings, seed=0)


@pytest.fixture(scope="module")
def fitted(switching):
    return fit(switching)


def test_usage_follows_the_genes(switching, fitted):
    x, genes, state = switching
    predictor = fitted[0]
    scores = gene_scores(predictor, genes.sums(x[240:]))
    with torch.no_grad():
        usage = predictor.usage(predictor.hidden(scores), torch.arange(100)).numpy()
    for gene in range(10):
        assert abs(stats.spearmanr(usage[:, 2 * gene], state[240:]).statistic) > 0.6
    assert (usage[:, 80:] == 1).all()
    counts = isoform_counts(as_batch(x[240:]), predictor.genes)
    with torch.no_grad():
        ours = multinomial_log_likelihood(counts, predictor.entry_logits(predictor.hidden(scores), counts)).sum()
        pooled = multinomial_log_likelihood(counts, predictor.log_pooled[predictor.position[counts.column]]).sum()
    assert ours - pooled > 100


def test_a_network_of_one_hidden_layer_learns_it_too(fitted, switching):
    bent = fit(switching, n_hidden=16, dropout=0.1)[2]
    assert max(bent["validation"]) > fitted[2]["validation"][0] + 0.5


def test_in_the_last_steps_only_concentrations_move(switching, monkeypatch):
    seen = []
    look = module.mean_log_likelihood

    def noted(predictor, data):
        seen.append({name: value.clone() for name, value in predictor.named_parameters()})
        return look(predictor, data)

    monkeypatch.setattr(module, "mean_log_likelihood", noted)
    found = fit(switching, concentration_lr=0.0, settling=0.5, validate_every=25)[2]
    start, _, half, _, end = seen
    for name in start:
        before, after = ((a[name] - b[name]).abs().max() > 0 for a, b in ((half, start), (end, half)))
        assert (before, after) == ((False, True) if "concentration" in name else (True, False)), name
    assert found["validation"][-1] > found["validation"][2]


def test_the_weights_that_validation_cells_liked_best_stay(switching, fitted):
    predictor, _, history = fitted
    x, genes, _ = switching
    held = x[200:240]
    counts = isoform_counts(as_batch(held), predictor.genes)
    with torch.no_grad():
        value = predictor.log_likelihood(predictor.hidden(gene_scores(predictor, genes.sums(held))), counts).mean()
    assert float(value) == pytest.approx(max(history["validation"]), abs=1e-3)


def test_test_cells_are_not_read_and_the_seed_decides(switching, fitted):
    x, genes, state = switching
    other = x.toarray()
    other[240:] = 1e5
    again = fit((sparse.csr_matrix(other), genes, state))[0]
    for name, value in fitted[0].state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_training_cells_are_told_by_the_others(switching):
    """The offset turns pooled usage into that of all cells but the cell itself."""
    x, genes, _ = switching
    train = sparse.csr_matrix(x[:7])
    predictor = fit_usage(x, genes, np.arange(7), np.arange(0), max_steps=1, seed=0)[0]
    counts = isoform_counts(as_batch(train), predictor.genes)
    base = predictor.log_pooled[predictor.position[counts.column]]
    logits = base + module._without_itself(predictor, train)(counts)
    usage = pair_log_softmax(counts, logits).exp().numpy()
    dense = train.toarray()
    for entry in range(0, len(usage), 17):
        cell, column = int(counts.cell[counts.pair[entry]]), int(counts.column[entry])
        of_gene = np.flatnonzero(genes.gene_of == genes.gene_of[column])
        others = dense.sum(0) - dense[cell] + 0.5
        assert usage[entry] == pytest.approx(others[column] / others[of_gene].sum(), rel=1e-4)


def test_few_entries_at_once_give_the_same_fit(switching, monkeypatch):
    steps = {"max_steps": 5, "validate_every": 5}
    whole = fit(switching, **steps)[0]
    monkeypatch.setattr(module, "MAX_ENTRIES", 300)
    pieces = fit(switching, **steps)[0]
    torch.testing.assert_close(pieces.weight, whole.weight, atol=1e-5, rtol=1e-3)


def test_labels_have_terms_where_asked_for(switching):
    x, genes, state = switching
    labels = (state > 0.5).astype(np.int64)
    settings = UsageSettings(rank=1, max_steps=100, with_labels=True, penalty=1e6, label_penalty=1.0)
    predictor = fit_usage(
        x, genes, np.arange(200), np.arange(200, 240), labels=labels, n_labels=2, settings=settings, seed=0
    )[0]
    nothing = torch.zeros(3, 30)
    with torch.no_grad():
        usage = predictor.usage(predictor.hidden(nothing), torch.tensor([0, 1]), torch.tensor([0, 1, 2])).numpy()
    assert usage[0, 0] > usage[2, 0] > usage[1, 0]


def test_of_several_settings_validation_cells_choose(switching, fitted):
    x, genes, _ = switching
    useless, useful = UsageSettings(rank=1, max_steps=100, penalty=1e7), UsageSettings(rank=2, max_steps=100)
    for settings in ([useless, useful], [useful, useless]):
        rows = np.arange(200), np.arange(200, 240)
        predictor, chosen, _ = fit_usage(x, genes, *rows, settings=settings, seed=0)
        assert chosen.rank == 2 == predictor.weight.shape[1]
    assert fit_usage(x, genes, np.arange(9), np.arange(0), settings=[useless, useful], max_steps=1)[1].rank == 1


def test_one_cell_or_no_validation_cells_are_enough(switching):
    x, genes, _ = switching
    for train in (np.arange(1), np.arange(6)):
        predictor = fit_usage(x, genes, train, np.zeros(0, dtype=int), settings=UsageSettings(max_steps=3))[0]
        assert all(torch.isfinite(p).all() for p in predictor.parameters())


@pytest.mark.parametrize("many", [0, 10**9])
def test_draws_are_dirichlet_multinomial(many, monkeypatch):
    import isd.module._usage_sampling as draws

    monkeypatch.setattr(draws, "_ONE_BY_ONE", many)
    genes = GeneMap.from_ids(["g", "h", "g", "g", "i", "i"])
    totals = gene_totals(sparse.csr_matrix(np.tile([[7, 3, 2]], (4000, 1))), genes)
    usage = np.tile([0.5, 0.3, 0.2, 0.9, 0.1], 4000)
    out = draw_isoforms(totals, usage, np.tile([2.0, 1e6], 4000), (0,)).reshape(4000, 5)
    assert (out[:, :3].sum(1) == 7).all() and (out[:, 3:].sum(1) == 2).all()
    expected = stats.betabinom.pmf(np.arange(8), 7, 2.0 * 0.5, 2.0 * 0.5) * 4000
    observed = np.bincount(out[:, 0], minlength=8)
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    expected = stats.binom.pmf(np.arange(3), 2, 0.9) * 4000
    assert stats.chisquare(np.bincount(out[:, 3], minlength=3), expected).pvalue > 1e-3


def test_tiny_concentrations_put_all_counts_on_one_isoform():
    genes = GeneMap.from_ids(["g"] * 5)
    totals = gene_totals(sparse.csr_matrix(np.full((200, 1), 50)), genes)
    out = draw_isoforms(totals, np.tile([0.6, 0.4 - 3e-9, 1e-9, 1e-9, 1e-9], 200), np.full(200, 1e-4), (1,))
    assert (out.reshape(200, 5).max(1) == 50).mean() > 0.98
    assert 0.4 < (out.reshape(200, 5)[:, 0] == 50).mean() < 0.8
