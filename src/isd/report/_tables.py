"""The table over all cells, and labels by metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from isd.report import _html as html
from isd.report._html import Cell

if TYPE_CHECKING:
    import pandas as pd

#: Columns of the table that have a place of their own; others are shown as they are.
_KNOWN = {
    "metric", "space", "group", "value", "lower", "upper", "floor", "floor_lower", "floor_upper", "p_value",
    "n_real", "n_generated", "note", "verdict",
}  # fmt: skip


def all_cells_table(table: pd.DataFrame) -> str:
    """One row a metric: value, floor, verdict, p value, numbers of cells, whatever else the table has, note."""
    from isd.pl._metrics import pretty

    rows = []
    overall = table[table["group"] == "all"]
    extra = [name for name in table.columns if name not in _KNOWN and overall[name].notna().any()]
    has_p = bool("p_value" in table and overall["p_value"].notna().any())
    has_n = "n_real" in table and "n_generated" in table
    has_note = bool((overall["note"] != "").any())
    for record in overall.to_dict("records"):
        row = [Cell(pretty(record["metric"], record["space"]))]
        row += [
            _number_cell(record, "value", "lower", "upper"),
            _number_cell(record, "floor", "floor_lower", "floor_upper"),
        ]
        row.append(Cell(record["verdict"] or "-", mark=record["verdict"]))
        if has_p:
            row.append(_plain_cell(record["p_value"]))
        if has_n:
            row += [_plain_cell(record["n_real"]), _plain_cell(record["n_generated"])]
        row += [_plain_cell(record[name]) for name in extra]
        rows.append([*row, *([Cell(record["note"])] if has_note else [])])
    heads = ["metric", "value", "floor", "verdict", *["p value"] * has_p, *["real cells", "generated cells"] * has_n]
    return html.table(
        [*heads, *(name.replace("baseline_", "baseline: ").replace("_", " ") for name in extra), *["note"] * has_note],
        rows,
        sortable=True,
    )


def _number_cell(record: dict[str, Any], value: str, low: str, high: str, **options: Any) -> Cell:
    from isd.pl._metrics import number

    if record[value] != record[value]:
        return Cell("n too small" if "n too small" in record["note"] else "-", None)
    below = f"{number(record[low])} to {number(record[high])}" if record[low] == record[low] else ""
    return Cell(number(record[value]), float(record[value]), below, **options)


def _plain_cell(value: Any) -> Cell:
    from isd.pl._metrics import number

    if isinstance(value, str):
        return Cell(value)
    if value is None or value != value:
        return Cell("-", None)
    return Cell(f"{int(value):,}" if float(value).is_integer() else number(value), float(value))


def csv_link(table: pd.DataFrame) -> str:
    """The whole table, to be saved."""
    return html.download(table.to_csv(index=False), name="metrics.csv", says="Save the whole table (csv, all labels)")


def label_table(table: pd.DataFrame, key: str | None, n_cells: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Labels by metrics, sortable: where generated cells fail."""
    from isd.pl._metrics import pretty

    rows = table[table["group"] != "all"]
    labels = list(dict.fromkeys(rows["group"]))
    if not labels:
        return
    yield f"<h2>Label by label ({html.escape(str(key or 'label'))})</h2>"
    yield html.paragraph("A click on a column's name sorts by it; floors stand below values.", kind="soft")
    valued = rows[rows["value"].notna()]
    columns = list(dict.fromkeys(zip(valued["metric"], valued["space"], strict=True)))
    has_verdict = bool((rows["verdict"] != "").any())
    cells = []
    for label in labels:
        of_label = rows[rows["group"] == label]
        found = {(r["metric"], r["space"]): r for r in of_label.to_dict("records")}
        row = [Cell(label)]
        row += [_plain_cell(n_cells[source].get(label, 0)) for source in ("real", "generated")]
        if has_verdict:
            n_far = int((of_label["verdict"] == "far").sum())
            row.append(Cell(str(n_far), n_far))
        for column in columns:
            row.append(_label_cell(found[column]) if column in found else Cell("-", None))
        cells.append(row)
    heads = [str(key or "label"), "real cells", "generated cells", *["metrics far"] * has_verdict]
    yield html.table([*heads, *(pretty(*column) for column in columns)], cells, kind="labels", sortable=True)


def _label_cell(record: dict[str, Any]) -> Cell:
    from isd.pl._metrics import number

    if record["value"] != record["value"]:
        return _number_cell(record, "value", "lower", "upper")
    title = f"{number(record['lower'])} to {number(record['upper'])}; floor {number(record['floor_lower'])} to "
    title += f"{number(record['floor_upper'])}. {record['note']}".strip()
    return Cell(number(record["value"]), float(record["value"]), number(record["floor"]), record["verdict"], title)
