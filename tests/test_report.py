"""The report: what it says, and that a browser can open and sort it."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import isd
from isd.report._html import Cell, table

BROWSER = next(
    (found for name in ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)  # fmt: skip
# a name that would do harm if it were not escaped
NASTY = "<img src=x onerror=alert(1)>&\"'"


def cells(n_obs: int, seed: int) -> AnnData:
    rng = np.random.default_rng(seed)
    label = np.array(["10", NASTY, "2"])[np.arange(n_obs) % 3]
    rate = np.array([[8.0, 1, 3, 3, 1, 1], [1.0, 8, 3, 3, 1, 1], [3.0, 3, 8, 1, 1, 1]])[np.arange(n_obs) % 3]
    counts = sparse.csr_matrix(rng.poisson(np.tile(rate, 5)).astype(np.float32))
    obs = pd.DataFrame({"kind": pd.Categorical(label, ["10", NASTY, "2"])}, index=[f"c{i}" for i in range(n_obs)])
    var = pd.DataFrame({"gene_id": [f"g{i // 2}" for i in range(30)]}, index=[f"t{i}" for i in range(30)])
    return AnnData(counts, obs=obs, var=var)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> tuple[AnnData, AnnData]:
    """Held-out cells and generated ones; the map, which is tested elsewhere and slow, is two principal components."""
    import isd.tl._embed as embedding

    monkeypatch.setattr(embedding, "_umap", lambda real, fake, **_: [real[:, :2], fake[:, :2]])
    real, fake = cells(240, 0), cells(120, 1)
    real.obs["isd_split"] = ["train"] * 120 + ["test"] * 120
    fake.uns["isd"] = {"model": "LatentDiffusion", "seed": 7, "labels_key": "kind", "guidance_scale": 1.5}
    fake.uns["isd"]["train_obs_hash"] = np.arange(120, dtype=np.uint64)
    return real, fake


def made_up(labels: list[str]) -> pd.DataFrame:
    rows = []
    for group, value in zip(["all", *labels], [0.6, 0.9, 0.55, np.nan], strict=True):
        numbers = {"value": value, "lower": value - 0.05, "upper": value + 0.05}
        floor = {"floor": 0.5, "floor_lower": 0.45, "floor_upper": 0.55}
        note = "n too small" if value != value else "label proportions differ" if group == "all" else ""
        rows.append({"metric": "random_forest_auc", "space": "pcs", "group": group} | numbers | floor)
        rows[-1] |= {"p_value": np.nan, "n_real": 40, "n_generated": 40, "note": note}
        rows[-1]["verdict"] = "" if value != value else "far" if value > 0.8 else "close"
    return pd.DataFrame(rows)


class Reader(HTMLParser):
    """What a page asks for, and whether its elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        self.images += tag == "img"
        if tag == "img":
            assert dict(attrs)["alt"]
        if tag not in ("img", "meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(path: Path) -> tuple[str, Reader]:
    text = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return text, reader


def test_the_page_needs_nothing_else_and_holds_all_parts(data, tmp_path):
    real, fake = data
    path = isd.report(
        real, fake, tmp_path / "deep" / "report.html", metrics=["random_forest_auc", "coverage"], n_boot=20
    )
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    text, reader = read(path)
    assert all(address.startswith("data:") for address in reader.addresses)
    assert "http://" not in text and "https://" not in text
    heads = re.findall(r"<h2>(.*?)</h2>", text)
    assert text.index('class="verdict') < text.index("<h2>")
    assert heads[0] == "All cells together" and heads[-1] == "Provenance"
    assert {"Can a classifier tell them apart?", "On one map", "Isoforms"} < set(heads)
    assert reader.images >= 10
    for part in ("LatentDiffusion", "guidance_scale", "1.5", "120", f"<td>{isd.__version__}</td>", "bootstrap samples"):
        assert part in text
    assert NASTY not in text and "&lt;img src=x" in text
    # the table of the slot is the one of the page
    csv = next(a for a in reader.addresses if a.startswith("data:text/csv"))
    rows = base64.b64decode(csv.split(",", 1)[1]).decode().splitlines()
    assert len(rows) == 1 + len(fake.uns["isd"]["metrics"])


def test_pictures_are_pngs(data, tmp_path):
    real, fake = data
    _, reader = read(isd.report(real, fake, tmp_path / "r.html", table=made_up(["10", NASTY, "2"])))
    pictures = [a for a in reader.addresses if a.startswith("data:image/png")]
    assert len(pictures) == reader.images
    assert all(base64.b64decode(p.split(",", 1)[1])[:8] == b"\x89PNG\r\n\x1a\n" for p in pictures)


def test_the_verdict_counts_and_names(data, tmp_path):
    real, fake = data
    text, _ = read(isd.report(real, fake, tmp_path / "r.html", table=made_up(["10", NASTY, "2"]), genes=["g0"]))
    verdict = text[text.index('class="verdict') : text.index("<h2>")]
    assert "random forest AUC, PCs: 0.6, where real cells against real cells give 0.5 (0.45 to 0.55): close." in verdict
    assert "Of 1 metrics over all cells: 1 close." in verdict
    assert "Labels with most metrics far from the floor: 10 (1)." in verdict
    assert "label proportions differ (1 of 4 rows)." in verdict
    assert "1 labels are too small" in verdict
    assert "g0: asked for" in text


def test_tables_without_verdicts_and_data_without_labels_or_genes(data, tmp_path):
    real, fake = data
    for adata in data:
        del adata.obs["kind"]
        del adata.var["gene_id"]
    table = made_up(["10", NASTY, "2"]).iloc[:1].drop(columns=["verdict", "n_real", "n_generated", "p_value"])
    text, _ = read(isd.report(real, fake, tmp_path / "r.html", table=table.assign(baseline_copies=0.25)))
    assert "Isoforms" not in text and "Label by label" not in text
    assert "baseline: copies" in text and "0.25" in text


def test_nothing_is_left_where_it_fails_and_an_older_file_stays(data, tmp_path):
    real, fake = data
    old = tmp_path / "r.html"
    old.write_text("old")
    with pytest.raises(KeyError, match="gene 'nope'"):
        isd.report(real, fake, old, genes=["nope"])
    with pytest.raises(KeyError, match="lacks"):
        isd.report(real, fake, old, table=pd.DataFrame({"metric": ["mmd"]}))
    with pytest.raises(KeyError, match="labels_key 'nope'"):
        isd.report(real, fake, old, labels_key="nope")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("r.html", "old")]
    with pytest.raises(IsADirectoryError, match="folder"):
        isd.report(real, fake, tmp_path)


def test_the_same_cells_give_the_same_pictures(data, tmp_path):
    real, fake = data
    options = {"table": made_up(["10", NASTY, "2"]), "genes": ["g0"]}
    texts = [read(isd.report(real, fake, tmp_path / name, **options))[0] for name in ("a.html", "b.html")]
    same = [re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", text) for text in texts]
    assert same[0] == same[1]


def test_cells_of_tables_are_escaped():
    made = table([NASTY], [[Cell(NASTY)]]) + table(["a", "b"], [[Cell("x"), Cell(NASTY, 1.0, NASTY, "far", NASTY)]])
    assert "<img" not in made and made.count("&lt;img") == 5


# what a reader would do, and what came of it, written where --dump-dom shows it
CHECK = """
<script>
function column(table, i) {
  return Array.prototype.map.call(table.tBodies[0].rows, function (r) { return r.cells[i].textContent; });
}
var labels = document.querySelector("table.labels"), heads = labels.tHead.rows[0].cells, out = {};
out.before = column(labels, 0);
heads[0].querySelector("button").click(); out.byName = column(labels, 0);
var auc = Array.prototype.findIndex.call(heads, function (h) { return h.textContent.indexOf("AUC") >= 0; });
heads[auc].querySelector("button").click(); out.up = column(labels, 0); out.aria = heads[auc].getAttribute("aria-sort");
heads[auc].querySelector("button").click(); out.down = column(labels, 0); out.named = heads[0].getAttribute("aria-sort");
out.widths = Array.prototype.map.call(document.images, function (i) { return i.complete && i.naturalWidth > 100; });
out.errors = window.caught;
var found = document.createElement("pre"); found.id = "found"; found.textContent = JSON.stringify(out);
document.body.appendChild(found);
</script>
"""
CATCH = "<script>window.caught = []; window.onerror = function (m) { window.caught.push(String(m)); };</script>"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_a_browser_opens_it_without_errors_and_sorts_labels(data, tmp_path):
    import html
    import json

    real, fake = data
    path = isd.report(real, fake, tmp_path / "r.html", table=made_up(["10", NASTY, "2"]), genes=["g0"])
    text = path.read_text(encoding="utf-8")
    opened = tmp_path / "opened.html"
    opened.write_text(text.replace("<title>", CATCH + "<title>").replace("</body>", CHECK + "</body>"), "utf-8")
    command = [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom", opened.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    found = json.loads(html.unescape(re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]))
    assert found["errors"] == []
    assert all(found["widths"]) and len(found["widths"]) == text.count("<img ") > 3
    assert found["before"] == ["10", NASTY, "2"]
    assert found["byName"] == [NASTY, "2", "10"]  # numbers in names by their value
    # AUC 0.9, 0.55 and none: what has no number comes last either way
    assert found["up"] == [NASTY, "10", "2"] and found["aria"] == "ascending"
    assert found["down"] == ["10", NASTY, "2"] and found["named"] is None
