"""The one function of :mod:`isd.metrics` that knows AnnData: a table of metrics, each beside its floor."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from isd._constants import UNS_KEY
from isd._counts import classify_counts, get_counts, resolve_layer, where
from isd._progress import track
from isd.metrics._label_rows import label_agreement_rows
from isd.metrics._labels import Labels, resolve_labels
from isd.metrics._reference import Reference, ReferenceRows, choose_rows
from isd.metrics._registry import METRICS, Estimate, Metric, Options
from isd.metrics._yardstick import Yardstick

ALL = "all"
COLUMNS = (
    "metric", "space", "group", "value", "lower", "upper", "floor", "floor_lower", "floor_upper", "p_value",
    "n_real", "n_generated", "note",
)  # fmt: skip
_ROC_COLUMNS = ("space", "group", "source", "fpr", "tpr", "tpr_lower", "tpr_upper")
_CHUNK = 4096


def evaluate(
    real: AnnData,
    generated: AnnData,
    *,
    labels_key: str | None = None,
    layer: str | None = None,
    groups: bool | Sequence[str] = True,
    metrics: Sequence[str] | str | None = None,
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
    drawn, without replacement. Forests have 300 trees, or 150 above 1,000 cells, and 100 for the floor and for single
    labels.

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
        Names out of ``isd.metrics.METRICS``; by default all.
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
        ``min_n``: 40 (halves of 20) for comparisons of samples, 20 for coverage and density, 10 for
        ``label_agreement``. Not below 10.
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
    One row per metric, space (``"features"``: log-normalised values, ``"pcs"``) and group, with columns ``metric``,
    ``space``, ``group``, ``value``, ``lower``, ``upper`` (95% interval), ``floor``, ``floor_lower``,
    ``floor_upper``, ``p_value`` (permutation test, for the MMD), ``n_real``, ``n_generated`` (cells compared) and
    ``note``. For ``label_agreement``, ``floor`` is the agreement of held-out real cells.

    Raises
    ------
    KeyError
        If ``labels_key`` or a group is absent.
    ValueError
        If features are missing, values are not counts, a metric is unknown, or there are no reference cells.

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
    chosen_metrics = _resolve_metrics(metrics)
    if min_cells is not None and min_cells < 10:
        raise ValueError(f"min_cells={min_cells} is below 10; no metric means anything with fewer cells.")
    if max_cells < 10:
        raise ValueError(f"max_cells={max_cells} is below 10; no metric means anything with fewer cells.")
    fractional = _check_counts(real, generated, layer)
    rows = choose_rows(real, generated, reference, seed)
    labels = resolve_labels(real, generated, labels_key, groups, rows.reference)
    if "seen in training" in rows.note:
        warnings.warn(
            f"{rows.note}. Split before training (isd.pp.split) and give the same AnnData here.",
            UserWarning,
            stacklevel=2,
        )

    train_rows = _thin(rows.train, 10_000, seed)
    train_counts = _take(get_counts(real, layer), train_rows)
    yardstick = Yardstick.fit(train_counts, real.var_names, seed=seed)
    spaces = {
        "reference": _project(yardstick, real, layer, rows.reference),
        "generated": _project(yardstick, generated, layer, np.arange(generated.n_obs)),
    }
    table, curves = _compare_groups(
        spaces, yardstick, labels, chosen_metrics, n_boot, n_jobs, max_cells, min_cells, seed, progress
    )
    if "label_agreement" in {metric.name for metric in chosen_metrics} and labels.key is not None:
        table += label_agreement_rows(
            yardstick.features(train_counts),
            labels.of_real[train_rows],
            spaces["reference"]["features"],
            labels.of_real[rows.reference],
            spaces["generated"]["features"],
            labels,
            min_cells=METRICS["label_agreement"].min_n if min_cells is None else min_cells,
            seed=seed,
            n_jobs=n_jobs,
        )
    frame = _finish(table, chosen_metrics, labels, rows, fractional)
    if key_added is not None and not generated.is_view:
        slot = generated.uns.setdefault(UNS_KEY, {})
        slot[key_added] = frame.copy()
        if any(metric.name.endswith("_auc") for metric in chosen_metrics):
            slot["roc" if key_added == "metrics" else f"{key_added}_roc"] = _roc_frame(curves)
    return frame


def _resolve_metrics(metrics: Sequence[str] | str | None) -> list[Metric]:
    names = list(METRICS) if metrics is None else [metrics] if isinstance(metrics, str) else list(metrics)
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise ValueError(f"metrics {unknown or names} are not known; choose out of {list(METRICS)}.")
    return [METRICS[name] for name in METRICS if name in names]


def _check_counts(real: AnnData, generated: AnnData, layer: str | None) -> bool:
    """Check both matrices before time is spent; returns whether only the real counts have fractions."""
    for name, adata in (("real", real), ("generated", generated)):
        if adata.n_obs == 0:
            raise ValueError(f"`{name}` has no cells.")
        duplicated = int(adata.var_names.duplicated().sum())
        if duplicated:
            raise ValueError(f"{duplicated} var_names of `{name}` are duplicates; call {name}.var_names_make_unique().")
    kinds = {
        name: classify_counts(get_counts(adata, layer), f"{name}: {where(resolve_layer(adata, layer))}")
        for name, adata in (("real", real), ("generated", generated))
    }
    missing = (~real.var_names.isin(generated.var_names)).sum()
    if missing:
        raise ValueError(
            f"{missing} of the {real.n_vars} features of `real` are missing in `generated`; "
            "subset the real data first: real[:, generated.var_names]."
        )
    return kinds == {"real": "fractional", "generated": "integer"}


def _thin(rows: np.ndarray, size: int, seed: int) -> np.ndarray:
    if rows.size <= size:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, size=size, replace=False))


def _take(matrix: Any, rows: np.ndarray) -> sparse.csr_matrix:
    """Rows (in increasing order) of a dense, sparse or backed matrix, as csr."""
    return sparse.csr_matrix(matrix[rows])


def _project(yardstick: Yardstick, adata: AnnData, layer: str | None, rows: np.ndarray) -> dict[str, Any]:
    """Rows in both spaces, a few thousand at a time: the counts of all features are never held twice."""
    counts = get_counts(adata, layer)
    parts = [
        yardstick.features(_take(counts, rows[start : start + _CHUNK]), adata.var_names)
        for start in range(0, rows.size, _CHUNK)
    ]
    features = sparse.csr_matrix(sparse.vstack(parts, format="csr"))
    return {"features": features, "pcs": yardstick.project(features)}


def _seed_of(seed: int, *names: str) -> int:
    """Seed of one comparison: the same whatever else is computed."""
    return int(np.random.SeedSequence([seed, *(zlib.crc32(name.encode()) for name in names)]).generate_state(1)[0] >> 1)


def _compare_groups(
    spaces: dict[str, dict[str, Any]],
    yardstick: Yardstick,
    labels: Labels,
    metrics: Iterable[Metric],
    n_boot: int,
    n_jobs: int,
    max_cells: int,
    min_cells: int | None,
    seed: int,
    progress: bool | None,
) -> tuple[list[dict[str, Any]], list[pd.DataFrame]]:
    """All rows of metrics that compare two samples, and their ROC curves."""
    tasks = [
        (group, metric, space)
        for group in (ALL, *labels.groups)
        for metric in metrics
        if metric.compare is not None
        for space in metric.spaces
    ]
    table: list[dict[str, Any]] = []
    curves: list[pd.DataFrame] = []
    for group, metric, space in track(tasks, "Comparing", progress=progress):
        members = {"reference": labels.reference_rows(group), "generated": labels.generated_rows(group)}
        row = {"metric": metric.name, "space": space, "group": group}
        smallest = min(rows.size for rows in members.values())
        if smallest < (metric.min_n if min_cells is None else min_cells):
            table.append(row | _too_small(members["reference"].size, members["generated"].size))
            continue
        # one draw of cells per group, so that metrics of a group speak of the same cells
        points = [
            _dense(
                spaces[name][space],
                np.random.default_rng(_seed_of(seed, group, name)).permutation(rows)[: min(max_cells, metric.max_n)],
            )
            for name, rows in members.items()
        ]
        options = Options(
            yardstick.bandwidths[space], n_boot, n_jobs, _seed_of(seed, group, metric.name, space), group != ALL
        )
        assert metric.compare is not None and metric.floor is not None
        in_reference, in_generated = points
        value = metric.compare(in_reference, in_generated, in_reference.shape[0] // 2, options)
        floor = metric.floor(in_reference, options)
        table.append(row | _filled(value, floor))
        for source, estimate in (("generated", value), ("floor", floor)):
            if estimate.roc is not None:
                curve = pd.DataFrame(estimate.roc)
                curves.append(curve.assign(space=space, group=group, source=source))
    return table, curves


def _dense(points: Any, rows: np.ndarray) -> np.ndarray:
    """Points of at most ``max_cells`` rows in the given order: a block of bounded size."""
    return points[rows].toarray() if sparse.issparse(points) else np.asarray(points)[rows]


def _filled(value: Estimate, floor: Estimate) -> dict[str, Any]:
    return {
        "value": value.value,
        "lower": value.lower,
        "upper": value.upper,
        "floor": floor.value,
        "floor_lower": floor.lower,
        "floor_upper": floor.upper,
        "p_value": value.p_value,
        "n_real": value.n,
        "n_generated": value.n,
        "note": value.note,
    }


def _too_small(n_real: int, n_generated: int) -> dict[str, Any]:
    numbers = ("value", "lower", "upper", "floor", "floor_lower", "floor_upper", "p_value")
    return dict.fromkeys(numbers, np.nan) | {"n_real": n_real, "n_generated": n_generated, "note": "n too small"}


def _finish(
    table: list[dict[str, Any]], metrics: Iterable[Metric], labels: Labels, rows: ReferenceRows, fractional: bool
) -> pd.DataFrame:
    """The table in its order, with the notes that concern all rows."""
    order = {name: position for position, name in enumerate(metric.name for metric in metrics)}
    groups = {group: position for position, group in enumerate((ALL, *labels.groups))}
    table = sorted(table, key=lambda row: (groups[row["group"]], order[row["metric"]]))
    frame = pd.DataFrame(table, columns=list(COLUMNS))
    general = [rows.note, "real counts have fractions, generated ones have none" if fractional else ""]
    notes = []
    for group, note in zip(frame["group"], frame["note"], strict=True):
        own = labels.proportions_note if group == ALL else ""
        notes.append("; ".join(part for part in (note, own, *general) if part))
    frame["note"] = notes
    return frame.astype({"n_real": int, "n_generated": int})


def _roc_frame(curves: list[pd.DataFrame]) -> pd.DataFrame:
    if not curves:
        strings = {name: pd.Series([], dtype=object) for name in _ROC_COLUMNS[:3]}
        return pd.DataFrame(strings | {name: pd.Series([], dtype=float) for name in _ROC_COLUMNS[3:]})
    return pd.concat(curves, ignore_index=True)[list(_ROC_COLUMNS)]
