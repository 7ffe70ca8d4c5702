"""The one function of :mod:`isd.metrics` that knows AnnData: a table of metrics, each beside its floor."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from isd._constants import GENE_ID, UNS_KEY
from isd._counts import classify_counts, get_counts, resolve_layer, where
from isd.metrics._baselines import baselines_of_rows
from isd.metrics._between_rows import between_rows
from isd.metrics._compare_rows import compare_rows
from isd.metrics._genes import GeneMap
from isd.metrics._label_rows import label_rows
from isd.metrics._labels import Labels, labels_as_strings, resolve_labels
from isd.metrics._memorization import row_hashes
from isd.metrics._memory_rows import memory_rows
from isd.metrics._reference import Reference, ReferenceRows, choose_rows, provenance
from isd.metrics._registry import METRICS, NEED_GENES, SEED_METRICS, Metric
from isd.metrics._sample import ALL, Context, Sample, freeze, make_sample
from isd.metrics._seed_rows import seed_rows
from isd.metrics._usage_rows import usage_rows
from isd.metrics._verdict import verdict
from isd.metrics._yardstick import Yardstick

COLUMNS = (
    "metric", "space", "group", "value", "lower", "upper", "floor", "floor_lower", "floor_upper", "p_value",
    "verdict", "n_real", "n_generated", "note",
)  # fmt: skip
_ROC_COLUMNS = ("space", "group", "source", "fpr", "tpr", "tpr_lower", "tpr_upper")
#: Training cells that the yardstick is fitted on, and that nearest neighbours are looked for among.
_MAX_FITTED, _MAX_TRAIN = 10_000, 50_000


def evaluate(
    real: AnnData,
    generated: AnnData,
    *,
    labels_key: str | None = None,
    layer: str | None = None,
    groups: bool | Sequence[str] = True,
    metrics: Sequence[str] | str | None = None,
    baselines: bool | Mapping[str, AnnData] = False,
    reference: Reference = "test",
    n_boot: int = 200,
    n_jobs: int = 1,
    max_cells: int = 5000,
    min_cells: int | None = None,
    seed: int = 0,
    key_added: str | None = "metrics",
    progress: bool | None = None,
) -> pd.DataFrame:
    """Compare generated cells with held-out real cells, globally and per label, each metric beside its floor.

    Features, principal components and kernel bandwidths are fitted on real training cells only
    (:class:`~isd.metrics.Yardstick`) and frozen. The floor is the same metric between disjoint random halves of the
    reference cells: what cells of the very same distribution give. Equal numbers of real and generated cells are
    drawn, without replacement. Forests have 200 trees, or 100 above 1,000 cells, and 60 for the floor and for single
    labels.

    The **verdict** sets a value against its floor's 95% interval, of width ``w``: ``"indistinguishable"`` inside it (or
    on its better side), ``"close"`` up to one more ``w`` beyond it, ``"far"`` further away, and empty where a number is
    missing. Among many rows, a few of perfectly good cells are "close" by chance: one in twenty is outside.

    Parameters
    ----------
    real
        Real cells with counts, held-out ones among them: rows whose ``obs["isd_split"]`` is ``reference``. Without
        that column, rows that the model has not trained on (``generated.uns["isd"]["train_obs_hash"]``).
    generated
        Generated cells, as ``isd.tl.generate`` makes them; same features in any order.
    labels_key
        Column of ``obs`` with the labels of both. By default the one the cells were generated with, else ``"leiden"``
        if both have it.
    layer
        Layer of the counts in both; by default ``"counts"`` where there is one, else ``X``.
    groups
        ``True``: also one row a label; ``False``: all cells together only; or a list of labels.
    metrics
        Names out of ``isd.metrics.METRICS``; by default all that are quick (``Metric.default``), which leaves out the
        classifiers other than the forest. ``"all"``: those too. ``"seed"``: the starting project's own definitions
        (30 components fitted on the union of both, MMD with gamma = 1, ...), only for comparison with
        :func:`isd.datasets.published_results`. Isoform metrics need ``real.var["gene_id"]`` and are left out without.
    baselines
        ``True``: also columns ``baseline_...`` with each metric's value for those of :func:`isd.metrics.baselines` that
        need no model, made from the training cells; or a dict of AnnData, such as ``baselines(real, model=model)``.
    reference
        ``"test"`` or ``"validation"`` rows of ``obs["isd_split"]``, or ``"all"`` to ignore that column.
    n_boot
        Number of bootstrap samples, permutations and (for the MMD) halvings; at least 20 are made.
    n_jobs
        Processor cores for random forests; -1 for all. Results do not depend on it.
    max_cells
        Largest number of cells compared from either side (some metrics have a smaller limit, see ``METRICS``).
    min_cells
        Groups with fewer reference or generated cells get "n too small" and no number. By default each metric's own
        ``min_n``: 40 (halves of 20) for comparisons of samples, 20 for what is counted by neighbours, 10 for
        classifiers of labels. Not below 10.
    seed
        Seed of every draw. A row does not depend on which other rows are asked for.
    key_added
        Key of ``generated.uns["isd"]`` that the table is written to, and with it the ROC curves, in ``"roc"``
        (``f"{key_added}_roc"`` for another key than the default). ``None``, or a view of an AnnData as ``generated``:
        nothing is written.
    progress
        Show a progress bar; by default as ``isd.settings.progress`` says.

    Returns
    -------
    One row per metric, space (``"features"``: log-normalised values, ``"pcs"``, ``"counts"``, ``"usage"`` of isoforms)
    and group, with columns ``metric``, ``space``, ``group``, ``value``, ``lower``, ``upper`` (95% interval), ``floor``,
    ``floor_lower``, ``floor_upper``, ``p_value`` (permutation test, for the MMD), ``verdict``, ``n_real``,
    ``n_generated`` (cells compared), ``note``, and one ``baseline_...`` per baseline. For ``label_agreement`` and
    ``train_on_synthetic``, ``floor`` is what real cells reach in the place of the generated ones.

    Raises
    ------
    KeyError
        If ``labels_key`` or a group is absent.
    ValueError
        If features are missing, values are not counts, a metric is unknown or needs ``var["gene_id"]``, or there are no
        reference cells.

    Warns
    -----
    UserWarning
        If the reference may have been trained on: numbers then flatter a model that copies.

    Examples
    --------
    >>> import anndata as ad
    >>> rng = np.random.default_rng(0)
    >>> rate = rng.lognormal(0.5, 1.0, size=30)
    >>> real = ad.AnnData(rng.poisson(rate, size=(200, 30)).astype("float32"))
    >>> real.obs["isd_split"] = ["train"] * 100 + ["test"] * 100
    >>> fake = ad.AnnData(rng.poisson(rate, size=(100, 30)).astype("float32"))
    >>> table = evaluate(real, fake, metrics=["mmd"], n_boot=50)
    >>> table["group"].tolist(), bool(table["value"].abs().max() < 0.1)
    (['all', 'all'], True)
    """
    chosen = _resolve_metrics(metrics, has_genes=GENE_ID in real.var)
    if min_cells is not None and min_cells < 10:
        raise ValueError(f"min_cells={min_cells} is below 10; no metric means anything with fewer cells.")
    if max_cells < 10:
        raise ValueError(f"max_cells={max_cells} is below 10; no metric means anything with fewer cells.")
    fractional = _check_counts(real, generated, layer)
    for name, cells in baselines.items() if isinstance(baselines, Mapping) else ():
        _check_counts(real, cells, layer, f"baselines[{name!r}]")
    rows = choose_rows(real, generated, reference, seed)
    labels = resolve_labels(real, generated, labels_key, groups, rows.reference)
    if "seen in training" in rows.note:
        warnings.warn(
            f"{rows.note}. Split before training (isd.pp.split) and give the same AnnData here.",
            UserWarning,
            stacklevel=2,
        )

    needs = _needs(chosen)
    ctx = _make_context(real, layer, rows, labels, needs, n_boot, n_jobs, max_cells, min_cells, seed)
    sample = _sample(ctx, generated, layer, needs)
    table = _all_rows(ctx, sample, chosen, with_floor=True, progress=progress)
    frame = _finish(table, chosen, labels, rows, fractional)
    if baselines is True:
        n_obs = min(rows.train.size, max_cells)
        baselines = baselines_of_rows(real, rows.train, labels_key=labels.key, layer=layer, n_obs=n_obs, seed=seed)
    for name, cells in (baselines or {}).items():
        of_baseline = _all_rows(ctx, _sample(ctx, cells, layer, needs), chosen, with_floor=False, progress=progress)
        found = {(row["metric"], row["space"], row["group"]): row["value"] for row in of_baseline}
        keys = zip(frame["metric"], frame["space"], frame["group"], strict=True)
        frame[f"baseline_{name}"] = [float(found.get(key, np.nan)) for key in keys]
    if key_added is not None and not generated.is_view:
        slot = generated.uns.setdefault(UNS_KEY, {})
        slot[key_added] = frame.copy()
        if any(metric.name == "random_forest_auc" for metric in chosen):
            slot["roc" if key_added == "metrics" else f"{key_added}_roc"] = _roc_frame(table)
    return frame


def _resolve_metrics(metrics: Sequence[str] | str | None, *, has_genes: bool) -> list[Metric]:
    if isinstance(metrics, str) and metrics == "seed":
        return list(SEED_METRICS.values())
    if metrics is None or (isinstance(metrics, str) and metrics == "all"):
        possible = [metric for metric in METRICS.values() if has_genes or metric.name not in NEED_GENES]
        return [metric for metric in possible if metric.default or metrics == "all"]
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise ValueError(
            f"metrics {unknown or names} are not known; choose out of {list(METRICS)}, or give 'all' or 'seed'."
        )
    lacking = sorted(NEED_GENES.intersection(names))
    if lacking and not has_genes:
        raise ValueError(
            f'metrics {lacking} need real.var["{GENE_ID}"], the gene of each transcript, which is not there; '
            "add it, or leave these metrics out."
        )
    return [METRICS[name] for name in METRICS if name in names]


def _needs(metrics: Sequence[Metric]) -> frozenset[str]:
    """What samples have to hold for these metrics."""
    needs = {metric.points for metric in metrics if metric.points in ("residuals", "pairs")}
    if any(metric.kind == "usage" or metric.name in SEED_METRICS for metric in metrics):
        needs.add("counts")
    if any(metric.name == "exact_copy_rate" for metric in metrics):
        needs.add("hashes")
    return frozenset(str(name) for name in needs)


def _check_counts(real: AnnData, generated: AnnData, layer: str | None, what: str = "generated") -> bool:
    """Check both matrices before time is spent; returns whether only the real counts have fractions."""
    for name, adata in (("real", real), (what, generated)):
        if adata.n_obs == 0:
            raise ValueError(f"`{name}` has no cells.")
        duplicated = int(adata.var_names.duplicated().sum())
        if duplicated:
            raise ValueError(f"{duplicated} var_names of `{name}` are duplicates; call {name}.var_names_make_unique().")
    kinds = [
        classify_counts(
            get_counts(adata, layer),
            f"{name}: {where(resolve_layer(adata, layer))}",
            # cells of a model with squared error are fractions of counts, all of them
            known=adata is generated and provenance(adata).get("likelihood") == "normal",
        )
        for name, adata in (("real", real), (what, generated))
    ]
    missing = (~real.var_names.isin(generated.var_names)).sum()
    if missing:
        raise ValueError(
            f"{missing} of the {real.n_vars} features of `real` are missing in `{what}`; "
            "subset the real data first: real[:, generated.var_names]."
        )
    return kinds == ["fractional", "integer"]


def _thin(rows: np.ndarray, size: int, seed: int) -> np.ndarray:
    if rows.size <= size:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, size=size, replace=False))


def _take(matrix: Any, rows: np.ndarray) -> sparse.csr_matrix:
    """Rows (in increasing order) of a dense, sparse or backed matrix, as csr."""
    return sparse.csr_matrix(matrix[rows])


def _make_context(
    real: AnnData,
    layer: str | None,
    rows: ReferenceRows,
    labels: Labels,
    needs: frozenset[str],
    n_boot: int,
    n_jobs: int,
    max_cells: int,
    min_cells: int | None,
    seed: int,
) -> Context:
    """Everything that training cells fix, and the reference measured with it."""
    fitted = _thin(rows.train, _MAX_FITTED, seed)
    counts = _take(get_counts(real, layer), fitted)
    yardstick = Yardstick.fit(counts, real.var_names, seed=seed)
    genes = GeneMap.from_ids(real.var[GENE_ID]) if GENE_ID in real.var else None
    frozen = freeze(counts, yardstick.features(counts), labels.of_real[fitted], labels.known, genes)
    del counts

    def sample(chosen: np.ndarray, wanted: frozenset[str]) -> Sample:
        of_rows = labels.of_real[chosen]
        return make_sample(
            yardstick, frozen, real, layer, chosen, of_rows, needs=wanted, max_counts=max_cells, seed=seed
        )

    hashes = None
    if "hashes" in needs:
        # all training cells, not a sample of them: a copy is a copy of one
        matrix = get_counts(real, layer)
        blocks = np.array_split(rows.train, -(-rows.train.size // 4096))
        hashes = np.unique(np.concatenate([row_hashes(_take(matrix, block)) for block in blocks]))
    return Context(
        yardstick=yardstick,
        frozen=frozen,
        labels=labels,
        train=sample(_thin(rows.train, _MAX_TRAIN, seed), frozenset()),
        reference=sample(rows.reference, needs),
        n_boot=n_boot,
        n_jobs=n_jobs,
        max_cells=max_cells,
        min_cells=min_cells,
        seed=seed,
        train_hashes=hashes,
    )


def _sample(ctx: Context, adata: AnnData, layer: str | None, needs: frozenset[str]) -> Sample:
    """Generated cells (or a baseline's) measured with what training cells fixed."""
    key = ctx.labels.key
    named = key is not None and key in adata.obs
    labels = labels_as_strings(adata.obs[key]) if named else np.full(adata.n_obs, None, dtype=object)
    return make_sample(
        ctx.yardstick,
        ctx.frozen,
        adata,
        layer,
        np.arange(adata.n_obs),
        labels,
        needs=needs,
        max_counts=ctx.max_cells,
        seed=ctx.seed,
    )


def _all_rows(
    ctx: Context, sample: Sample, metrics: Sequence[Metric], *, with_floor: bool, progress: bool | None
) -> list[dict[str, Any]]:
    """Rows of all kinds of metrics, for one set of cells."""
    kinds: dict[str, list[Metric]] = {}
    for metric in metrics:
        kinds.setdefault("seed" if metric.name in SEED_METRICS else metric.kind, []).append(metric)
    table = compare_rows(ctx, sample, kinds.get("samples", []), with_floor=with_floor, progress=progress)
    if "seed" in kinds:
        table += seed_rows(ctx, sample, kinds["seed"], with_floor=with_floor, progress=progress)
    for kind, function in (
        ("memory", memory_rows),
        ("labels", label_rows),
        ("between_labels", between_rows),
        ("usage", usage_rows),
    ):
        if kind in kinds:
            table += function(ctx, sample, kinds[kind], with_floor=with_floor)
    return table


def _finish(
    table: list[dict[str, Any]], metrics: Sequence[Metric], labels: Labels, rows: ReferenceRows, fractional: bool
) -> pd.DataFrame:
    """The table in its order, with verdicts, and with the notes that concern all rows."""
    order = {metric.name: position for position, metric in enumerate(metrics)}
    listed = {metric.name: metric for metric in metrics}
    groups = {group: position for position, group in enumerate((ALL, *labels.groups))}
    table = sorted(table, key=lambda row: (groups[row["group"]], order[row["metric"]]))
    general = [rows.note, "real counts have fractions, generated ones have none" if fractional else ""]
    finished = []
    for row in table:
        metric = listed[row["metric"]]
        own = labels.proportions_note if row["group"] == ALL else ""
        judged = verdict(
            row["value"], row["floor_lower"], row["floor_upper"], better=metric.better, tolerance=metric.tolerance
        )
        note = "; ".join(part for part in (row["note"], own, *general) if part)
        finished.append(row | {"verdict": judged, "note": note})
    return pd.DataFrame(finished, columns=list(COLUMNS)).astype({"n_real": int, "n_generated": int})


def _roc_frame(table: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Curves of the random forest, generated cells and floor."""
    curves = [
        pd.DataFrame(roc).assign(space=row["space"], group=row["group"], source=source)
        for row in table
        if row["metric"] == "random_forest_auc"
        for source, roc in zip(("generated", "floor"), row["roc"], strict=True)
        if roc is not None
    ]
    if not curves:
        strings = {name: pd.Series([], dtype=object) for name in _ROC_COLUMNS[:3]}
        return pd.DataFrame(strings | {name: pd.Series([], dtype=float) for name in _ROC_COLUMNS[3:]})
    return pd.concat(curves, ignore_index=True)[list(_ROC_COLUMNS)]
