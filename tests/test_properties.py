"""What holds for any input, tried on generated ones: sparse batches, softmax in groups, drawn counts, and what readers bring back."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

import isd
from isd.module._minibatch import select_columns, sparse_batch, sum_columns
from isd.module._sampling import draw_counts, multinomial_row
from isd.module._usage_sampling import draw_usage
from isd.nn import CountLinear, Segments

#: Few examples, the same ones every time: the suite must stay quick, and a failure must come back.
quick = settings(
    max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)

shapes = st.tuples(st.integers(1, 7), st.integers(1, 9))
counts = shapes.flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=st.sampled_from([0, 0, 0, 1, 2, 17, 4096]), fill=st.just(0))
)
codes = st.lists(st.integers(-1, 4), min_size=1, max_size=12)
#: Letters of any script, and signs; no separators of tables, no quotes, no control characters.
names = st.text(st.characters(exclude_categories=("C", "Z"), exclude_characters='",'), min_size=1, max_size=6).map(
    "n{}".format
)
seeds = st.integers(0, 2**32 - 1)


def named(draw: st.DataObject, n: int) -> list[str]:
    return draw.draw(st.lists(names, min_size=n, max_size=n, unique=True))


# sparse batches -------------------------------------------------------------------------------------------------


@quick
@given(counts, st.data())
def test_a_sparse_batch_is_the_dense_one(x: np.ndarray, data: st.DataObject) -> None:
    dense = torch.from_numpy(x)
    batch = sparse_batch(dense, by_column=True)
    assert len(batch) == len(x)
    torch.testing.assert_close(batch.sums(), dense.sum(1))
    rebuilt = sparse.csr_matrix((batch.values.numpy(), batch.cols.numpy(), batch.row_ptr.numpy()), shape=x.shape)
    np.testing.assert_array_equal(rebuilt.toarray(), x)
    totals = np.maximum(x.sum(1, keepdims=True), 1)
    scaled = batch.log_normalized(1e4)
    logs = sparse.csr_matrix((scaled.values.numpy(), scaled.cols.numpy(), scaled.row_ptr.numpy()), shape=x.shape)
    np.testing.assert_allclose(logs.toarray(), np.log1p(1e4 * x / totals), rtol=1e-5)
    columns = data.draw(st.permutations(range(x.shape[1])))
    columns = columns[: data.draw(st.integers(1, len(columns)))]
    chosen = select_columns(batch, torch.tensor(columns))
    parts = (chosen.values.numpy(), chosen.rows.numpy(), chosen.ptr.numpy())
    by_hand = sparse.csc_matrix(parts, shape=(len(x), len(columns)))
    np.testing.assert_array_equal(by_hand.toarray(), x[:, columns])


@quick
@given(counts, st.data())
def test_sums_of_columns(x: np.ndarray, data: st.DataObject) -> None:
    n_groups = data.draw(st.integers(1, 4))
    groups = np.array(data.draw(st.lists(st.integers(0, n_groups - 1), min_size=x.shape[1], max_size=x.shape[1])))
    summed = sum_columns(sparse_batch(torch.from_numpy(x), by_column=False), torch.from_numpy(groups), n_groups)
    parts = (summed.values.numpy(), summed.cols.numpy(), summed.row_ptr.numpy())
    expected = x @ (groups[:, None] == np.arange(n_groups)).astype(np.float32)
    np.testing.assert_array_equal(sparse.csr_matrix(parts, shape=expected.shape).toarray(), expected)


@quick
@given(counts, st.integers(0, 2), st.integers(1, 4), seeds)
def test_the_first_layer_gives_the_same_values_and_gradients(
    x: np.ndarray, n_covariates: int, width: int, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = CountLinear(x.shape[1], n_covariates, width).double()
    dense = torch.from_numpy(x / 16).double()  # shares of powers of two: sums are exact
    covariates = torch.randn(len(x), n_covariates).double()
    grads = []
    for features in (dense, sparse_batch(dense, by_column=True)):
        layer.zero_grad()
        out = layer((features, covariates))
        out.square().sum().backward()
        grads.append([out.detach(), *(p.grad.clone() for p in layer.parameters())])
    for ours, reference in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-9, atol=1e-9)


# groups ---------------------------------------------------------------------------------------------------------


@quick
@given(codes, st.data())
def test_softmax_in_groups(group: list[int], data: st.DataObject) -> None:
    logits = data.draw(hnp.arrays(np.float64, (3, len(group)), elements=st.floats(-60, 60)))
    segments = Segments(torch.tensor(group))
    of = segments.segment_of.numpy()
    shares = segments.softmax(torch.from_numpy(logits)).numpy()
    for one in np.unique(of):  # by hand, group by group
        mine = logits[:, of == one]
        powers = np.exp(mine - mine.max(1, keepdims=True))
        np.testing.assert_allclose(shares[:, of == one], powers / powers.sum(1, keepdims=True), rtol=1e-9, atol=1e-300)
    present = segments.sizes.numpy() > 0
    np.testing.assert_allclose(segments.sum(torch.from_numpy(shares)).numpy()[:, present], 1, rtol=1e-9)
    shift = data.draw(hnp.arrays(np.float64, segments.n_segments, elements=st.floats(-50, 50)))
    moved = segments.softmax(torch.from_numpy(logits + shift[of])).numpy()
    np.testing.assert_allclose(moved, shares, rtol=1e-7, atol=1e-300)
    alone = segments.sizes.numpy()[of] == 1
    assert (shares[:, alone] == 1).all()


@quick
@given(codes, st.data())
def test_sums_follow_a_permutation_of_features(group: list[int], data: st.DataObject) -> None:
    assume(min(group) >= 0)
    order = data.draw(st.permutations(range(len(group))))
    values = torch.tensor(data.draw(st.lists(st.integers(-99, 99), min_size=len(group), max_size=len(group)))).double()
    n = max(group) + 1
    here, there = Segments(torch.tensor(group), n), Segments(torch.tensor(group)[list(order)], n)
    assert torch.equal(here.sum(values[None]), there.sum(values[None, list(order)]))
    listed, of = here.features(torch.arange(n))
    assert sorted(listed.tolist()) == list(range(len(group)))
    assert torch.equal(here.segment_of[listed], of)


# draws ----------------------------------------------------------------------------------------------------------


@quick
@given(st.integers(1, 40), st.integers(1, 200), st.sampled_from([None, 0.05, 1.0, 50.0]), seeds)
def test_drawn_counts_have_their_totals(n_vars: int, total: int, theta: float | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mean = rng.gamma(0.3, size=(3, n_vars)).astype(np.float32)
    mean[:, rng.random(n_vars) < 0.3] = 0
    assume((mean.sum(1) > 1e-6).all())
    totals = np.array([total, 1, 3 * total])
    shape = None if theta is None else torch.full((n_vars,), theta)
    drawn = [draw_counts(torch.from_numpy(mean), shape, totals, np.random.default_rng(seed)) for _ in range(2)]
    assert (drawn[0] != drawn[1]).nnz == 0
    x = drawn[0].toarray()
    np.testing.assert_array_equal(x.sum(1), totals)
    assert (x >= 0).all()
    assert (x == np.rint(x)).all()
    if (
        theta is None or theta >= 1
    ):  # with hardly any shape, all rates of a row may underflow: equal ones are then taken
        assert (x[:, (mean == 0).all(0)] == 0).all()
    assert drawn[0].has_sorted_indices


@quick
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.integers(1, 100), seeds)
def test_a_multinomial_row(rates: list[float], total: int, seed: int) -> None:
    index, values = multinomial_row(np.array(rates), total, np.random.default_rng(seed))
    assert values.sum() == total
    assert (np.diff(index) > 0).all()
    assert (values > 0).all()
    if sum(rates) > 0:
        assert all(rates[i] > 0 for i in index)


@quick
@given(st.lists(st.integers(2, 5), min_size=1, max_size=4), st.integers(0, 3), st.floats(0.05, 1e4), seeds)
def test_isoforms_add_up_to_their_gene(sizes: list[int], n_alone: int, concentration: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_shared, n_genes = sum(sizes), len(sizes) + n_alone
    totals = sparse.csr_matrix(rng.poisson(rng.choice([0.5, 5, 500], size=(4, n_genes))).astype(np.float32))
    features = rng.permutation(n_shared + n_alone)
    gene_of = np.empty(len(features), dtype=int)
    gene_of[features] = [*np.repeat(np.arange(len(sizes)), sizes), *range(len(sizes), n_genes)]
    logits = rng.normal(scale=2, size=(4, n_shared))
    x = draw_usage(totals, logits, np.full(len(sizes), concentration), np.array(sizes), features, rng).toarray()
    assert (x >= 0).all()
    np.testing.assert_array_equal(x @ (gene_of[:, None] == np.arange(n_genes)), totals.toarray())


# readers --------------------------------------------------------------------------------------------------------


@quick
@given(counts, st.booleans(), st.data())
def test_tables_and_matrices_come_back(x: np.ndarray, zipped: bool, data: st.DataObject) -> None:
    """Cells x transcripts, written in every text form, with names of any script."""
    cells, transcripts = named(data, x.shape[0]), named(data, x.shape[1])
    whole = x.astype(int)
    rows = ["\t".join([t, *map(str, whole[:, j])]) for j, t in enumerate(transcripts)]
    i, j = np.nonzero(whole)
    entries = [f"{b + 1} {a + 1} {whole[a, b]}" for a, b in zip(i, j, strict=True)]
    files = {
        "run.transcript_grouped_counts.tsv": ["\t".join(["transcript_id", *cells]), *rows],
        "transcript_count.csv": [",".join(["transcript_id", *cells]), *(r.replace("\t", ",") for r in rows)],
        "matrix.mtx": [
            "%%MatrixMarket matrix coordinate integer general",
            f"{len(transcripts)} {len(cells)} {len(entries)}",
            *entries,
        ],
    }
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "features.tsv").write_text("\n".join(transcripts) + "\n", encoding="utf-8")
        Path(folder, "barcodes.tsv").write_text("\n".join(cells) + "\n", encoding="utf-8")
        for name, lines in files.items():
            text = ("\n".join(lines) + "\n").encode()
            path = Path(folder, name + ".gz" * zipped)
            path.write_bytes(gzip.compress(text) if zipped else text)
            adata = isd.io.read_long_reads(path, "isoquant")
            assert adata.obs_names.tolist() == cells
            assert adata.var_names.tolist() == transcripts
            np.testing.assert_array_equal(adata.X.toarray(), whole)


@quick
@given(counts, st.sampled_from([None, (1, 1), (3, 2), (9, 7)]), st.floats(1e-5, 1), st.data())
def test_archs4_comes_back(x: np.ndarray, chunks, chunk_mb: float, data: st.DataObject) -> None:
    n_samples, n_transcripts = x.shape
    transcripts = named(data, n_transcripts)
    chosen = data.draw(st.lists(st.integers(0, n_samples - 1), min_size=1, max_size=n_samples, unique=True))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "human_transcript_v2.5.h5")
        with h5py.File(path, "w") as file:
            fit = None if chunks is None else tuple(min(c, s) for c, s in zip(chunks, x.T.shape, strict=True))
            file.create_dataset("data/expression", data=x.T.astype("uint32"), chunks=fit)
            file["meta/transcripts/ensembl_id"] = [t.encode() for t in transcripts]
            file["meta/samples/geo_accession"] = [f"GSM{i}".encode() for i in range(n_samples)]
        adata = isd.io.read_archs4(path, samples=chosen, chunk_mb=chunk_mb)
    assert adata.obs_names.tolist() == [f"GSM{i}" for i in chosen]
    assert adata.var_names.tolist() == transcripts
    np.testing.assert_array_equal(adata.X.toarray(), x[chosen])
