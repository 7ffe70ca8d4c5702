"""Results of an experiment beside what the starting project published."""

from __future__ import annotations

import pandas as pd

from isd.datasets import published_results
from isd.metrics import SEED_METRICS

#: Name of the columns of the starting project's numbers.
PUBLISHED_COLUMN = "starting project"
_ALL = "all"


def summarize(results: pd.DataFrame, metrics: list[str] | None = None) -> pd.DataFrame:
    """One row for each cell of the grid and metric: each arm's mean over seeds, the floor, and the starting project's number.

    Parameters
    ----------
    results
        What :func:`run` returned, or its ``results.csv``.
    metrics
        Metrics to show; ``None`` for all.

    Returns
    -------
    Indexed by ``metric``, ``space`` and ``cell``; columns ``(arm, "mean")``, ``(arm, "sd")`` over seeds, ``("floor", "mean")``,
    ``("ratio", ARM)`` for areas under ROC curves: (first arm - 0.5) / (ARM - 0.5), and ``("starting project", "published")`` for
    its definitions: those were computed on other data, against training cells.

    Examples
    --------
    >>> import pandas as pd
    >>> rows = [("sc NG", arm, value, 0.5) for arm, value in (("default", 0.6), ("published", 1.0))]
    >>> results = pd.DataFrame(rows, columns=["cell", "arm", "value", "floor"]).assign(
    ...     seed=0, group="all", metric="random_forest_auc", space="pcs"
    ... )
    >>> float(summarize(results)["ratio", "published"].round(2).iloc[0])
    0.2
    """
    frame = results[results["metric"].isin(metrics)] if metrics is not None else results
    frame = frame.copy()
    frame["group"] = frame["group"].astype(str)
    # one label of the guided single cells is a column of the published table
    guided = frame[(frame["cell"] == "sc G") & (frame["group"] != _ALL)]
    judged = guided.loc[guided["metric"].isin(list(SEED_METRICS)), "group"].unique()
    single = guided[guided["group"].isin(judged)]
    single = single.assign(cell="sc G cluster " + single["group"], group=_ALL)
    frame = pd.concat([frame[frame["group"] == _ALL], single], ignore_index=True)
    keys = ["metric", "space", "cell"]
    arms = list(dict.fromkeys(frame["arm"]))
    columns: dict[tuple[str, str], pd.Series] = {}
    for arm in arms:
        grouped = frame[frame["arm"] == arm].groupby(keys)["value"]
        columns[arm, "mean"], columns[arm, "sd"] = grouped.mean(), grouped.std()
    columns["floor", "mean"] = frame.groupby(keys)["floor"].mean()
    out = pd.DataFrame(columns)
    auc = out.index.get_level_values("metric").str.endswith("_auc")
    for arm in arms[1:]:
        ratio = (out[arms[0], "mean"] - 0.5).clip(lower=0) / (out[arm, "mean"] - 0.5)
        out["ratio", arm] = ratio.where(auc & (out[arm, "mean"] > 0.5))
    published = published_results()
    out[PUBLISHED_COLUMN, "published"] = [
        published.loc[cell, metric] if metric in SEED_METRICS and cell in published.index else float("nan")
        for metric, _, cell in out.index
    ]
    order = {cell: i for i, cell in enumerate(published.index)}
    by = sorted(range(len(out)), key=lambda i: (*out.index[i][:2], order.get(out.index[i][2], len(order))))
    return out.iloc[by]


def markdown(table: pd.DataFrame) -> str:
    """A table of :func:`summarize` as markdown."""
    head = ["metric", "space", "cell", *(" ".join(part for part in column if part) for column in table.columns)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for index, row in zip(table.index, table.to_numpy(), strict=True):
        values = ["" if value != value else f"{value:.3g}" for value in row]
        lines.append("| " + " | ".join([*index, *values]) + " |")
    return "\n".join(lines) + "\n"
