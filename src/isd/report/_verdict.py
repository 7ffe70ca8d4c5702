"""What comes first: the verdict in words, and what to be careful about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from isd.report import _html as html

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

VERDICTS = ("indistinguishable", "close", "far")


def verdict(table: pd.DataFrame, real: AnnData, generated: AnnData) -> Iterator[str]:
    """What a reader should take home, before any table."""
    from isd.pl._metrics import number, pretty

    overall = table[table["group"] == "all"]
    says = [
        f"{pretty(row.metric, row.space)}: {number(row.value)}, where real cells against real cells give {number(row.floor)}"
        f" ({number(row.floor_lower)} to {number(row.floor_upper)})" + (f": {row.verdict}." if row.verdict else ".")
        for row in overall[overall["metric"] == "random_forest_auc"].itertuples()
        if row.value == row.value
    ]
    counted = overall["verdict"].value_counts().to_dict()
    parts = [f"{counted[name]} {name}" for name in VERDICTS if counted.get(name)]
    judged = overall[overall["verdict"] != ""]
    kind = ""
    if parts:
        n_close = int(counted.get("close", 0))
        if counted.get("far"):
            kind = "far"
            head = f"Generated cells are far from real ones by {counted['far']} of {len(judged)} metrics."
        elif n_close > max(1, 0.1 * len(judged)):
            kind, head = "close", "Generated cells are close to real cells, but some metrics tell them apart."
        else:
            kind = "indistinguishable"
            head = "Generated cells are as near to real cells as real cells are to each other."
            if n_close:
                # intervals hold 95%: of many metrics, some lie outside by chance
                head = f"{head[:-1]}, but for {n_close} of {len(judged)} metrics, which may be chance."
        says.insert(0, head)
        says.append(f"Of {len(judged)} metrics over all cells: {', '.join(parts)}.")
        worst = judged[judged["verdict"] == "far"]
        if len(worst):
            says.append("Far: " + "; ".join(pretty(row.metric, row.space) for row in worst.itertuples()) + ".")
    elif not says:
        says = ["No metric over all cells has a verdict: see the table."]
    labels = table[(table["group"] != "all") & (table["verdict"] == "far")]
    if len(labels):
        most = labels["group"].value_counts()
        named = ", ".join(f"{label} ({n})" for label, n in most.head(5).items())
        says.append(f"Labels with most metrics far from the floor: {named}.")
    yield html.paragraph(
        f"{generated.n_obs:,} generated cells against {real.n_obs:,} real cells (held-out ones among them), "
        f"{real.n_vars:,} features. Each number stands beside its floor: the same between held-out real cells.",
        kind="soft",
    )
    yield html.box(says, kind=f"verdict {kind}".strip())
    warnings = _warnings(table)
    if warnings:
        yield html.box(["Read with care:", *warnings], kind="warn")


def _warnings(table: pd.DataFrame) -> list[str]:
    """Each remark once, with the number of rows that carry it; small labels are counted."""
    rows: dict[str, int] = {}
    for note in table["note"]:
        for remark in dict.fromkeys(part.strip() for part in note.split("; ") if part.strip()):
            rows[remark] = rows.get(remark, 0) + 1
    small = table[table["note"].str.contains("n too small") & (table["group"] != "all")]["group"].nunique()
    texts = [
        f"{remark} ({count} of {len(table)} rows)." if count < len(table) else f"{remark}."
        for remark, count in rows.items()
        if "n too small" not in remark
    ]
    if small:
        texts.append(f"{small} labels are too small for some metrics: they have no number there.")
    return texts
