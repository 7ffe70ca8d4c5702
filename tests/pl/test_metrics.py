from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from isd.pl import metrics
from isd.pl._metrics import VERDICTS, _distance, as_table


def row(metric, space, group, value, floor, width, verdict="", note="") -> dict:
    numbers = {"value": value, "lower": value - width / 2, "upper": value + width / 2}
    floors = {"floor": floor, "floor_lower": floor - width, "floor_upper": floor + width}
    names = {"metric": metric, "space": space, "group": group}
    return names | numbers | floors | {"n_real": 50, "n_generated": 50, "note": note, "verdict": verdict}


@pytest.fixture
def table() -> pd.DataFrame:
    rows = [
        row("random_forest_auc", "features", "all", 0.6, 0.5, 0.05, "close"),
        row("mmd", "pcs", "all", 0.9, 0.0, 0.001, "far"),
        row("coverage", "pcs", "all", 0.95, 0.9, 0.05, "indistinguishable"),
        row("usage_of_something_new", "usage", "all", 0.2, 0.3, 0.02, "far"),
        row("density", "pcs", "all", np.nan, np.nan, np.nan, "", "n too small"),
    ]
    for group, shift in (("T/NK", 0.0), ("B", 0.1), ("tiny", np.nan)):
        note = "n too small" if group == "tiny" else ""
        rows.append(row("random_forest_auc", "features", group, 0.5 + shift, 0.5, 0.05, "", note))
        rows.append(row("mmd", "pcs", group, 0.01 + shift, 0.0, 0.02))
    return pd.DataFrame(rows)


def points(ax) -> dict[float, float]:
    """x of each marker by its y."""
    found = [line for line in ax.lines if line.get_marker() not in ("None", None, "") and len(line.get_xdata()) == 1]
    return {float(line.get_ydata()[0]): float(line.get_xdata()[0]) for line in found}


def test_distances_are_in_widths_of_the_floor_and_grow_with_what_is_worse(table):
    ax = metrics(table, show=False)
    drawn = points(ax)
    assert drawn[0] == pytest.approx(2.0)  # (0.6 - 0.5) / 0.05
    assert drawn[1] == pytest.approx(900.0)
    assert drawn[2] == pytest.approx(-1.0)  # more coverage is better
    assert drawn[3] == pytest.approx(5.0)  # of an unknown metric any deviation counts
    assert 4 not in drawn
    texts = [text.get_text() for text in ax.texts]
    assert "n too small" in texts and "0.95" in texts


def test_a_deviation_whose_interval_holds_the_floor_starts_at_nought(table):
    values = table.iloc[[3]].assign(value=0.29, lower=0.25, upper=0.32)
    assert _distance(next(values.itertuples())) == pytest.approx((0.5, 0.0, 2.5))


def test_verdicts_differ_in_colour_and_shape(table):
    ax = metrics(table, show=False)
    markers = {line.get_ydata()[0]: line for line in ax.lines if len(line.get_xdata()) == 1}
    for y, verdict in ((0, "close"), (1, "far"), (2, "indistinguishable")):
        assert (markers[y].get_color(), markers[y].get_marker()) == VERDICTS[verdict]
    assert len({marker for _, marker in VERDICTS.values()}) == len({to_rgba(c) for c, _ in VERDICTS.values()}) == 3
    assert {text.get_text() for text in ax.figure.legends[0].get_texts()} == set(VERDICTS)


def test_without_a_column_of_verdicts(table):
    ax = metrics(table.drop(columns=["verdict", "note"]), show=False)
    assert len(points(ax)) == 4 and not ax.figure.legends


def test_labels_get_a_panel_a_metric(table):
    axes = metrics(table, groups=True, show=False)
    assert [ax.get_title() for ax in axes] == ["random forest AUC, features", "MMD, PCs"]
    assert points(axes[0]) == {0.0: 0.5, 1.0: 0.6}
    assert [text.get_text() for text in axes[0].texts] == ["n too small"]
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["T/NK", "B", "tiny"]
    one = metrics(table, groups="B", metrics="mmd", show=False)
    assert points(one) == {0.0: pytest.approx(0.11)}


def test_out_of_a_slot_a_csv_and_into_given_axes(table, tmp_path):
    cells = AnnData(np.ones((2, 2), dtype=np.float32))
    cells.uns["isd"] = {"metrics": table}
    ax = Figure().subplots()
    assert metrics(cells, ax=ax) is ax and len(points(ax)) == 4
    table.to_csv(tmp_path / "t.csv", index=False)
    read = as_table(pd.read_csv(tmp_path / "t.csv"))
    assert read["verdict"].tolist() == table["verdict"].tolist()
    metrics(read, groups=True, save=tmp_path / "m.png")
    assert (tmp_path / "m.png").stat().st_size > 5000


def test_text_can_be_read(table, assert_readable):
    assert_readable(metrics(table, return_fig=True))
    assert_readable(metrics(table, groups=True, return_fig=True))


def test_what_was_not_evaluated_is_refused(table):
    with pytest.raises(KeyError, match=r"run isd\.metrics\.evaluate"):
        metrics(AnnData(np.ones((2, 2), dtype=np.float32)))
    with pytest.raises(KeyError, match=r"metric \['nope'\]"):
        metrics(table, metrics="nope")
    with pytest.raises(KeyError, match=r"group \['z'\]"):
        metrics(table, groups=["z"])
    with pytest.raises(KeyError, match=r"lacks \['floor'\]"):
        metrics(table.drop(columns="floor"))
    with pytest.raises(KeyError, match="no rows of all cells"):
        metrics(table[table["group"] != "all"])
    with pytest.raises(ValueError, match="no number to plot"):
        metrics(table[table["group"] == "tiny"].assign(value=np.nan), groups=True)
    with pytest.raises(ValueError, match="one panel"):
        metrics(table, groups=True, ax=Figure().subplots())


def test_baselines_are_drawn_beside_and_named(table, assert_readable):
    table["baseline_independent_nb"] = table["value"] + 0.2
    table["baseline_my own"] = np.nan
    figure = metrics(table, show=False, return_fig=True)
    hollow = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    rows = table[(table["group"] == "all") & table["value"].notna()]
    expected = [_distance(row, row.baseline_independent_nb)[0] for row in rows.itertuples()]
    np.testing.assert_allclose([line.get_xdata()[0] for line in hollow], np.clip(expected, -1000, 1000))
    texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert "independent nb" in texts
    assert "my own" not in texts  # has no number
    assert_readable(figure)
