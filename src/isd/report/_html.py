"""Pieces of a self-contained HTML page: nothing is loaded from anywhere, and every text is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape as escape
from typing import Any

#: Nothing may be fetched, whatever a label is called: pictures lie in the page, styles and scripts, too.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light; --ink: #1d1d1f; --soft: #5c5c62; --line: #d9d9de; --paper: #ffffff; --shade: #f5f5f7; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 1180px; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; } p { margin: .4rem 0; max-width: 80ch; } .soft { color: var(--soft); }
.verdict { border: 1px solid var(--line); border-left: 6px solid var(--soft); background: var(--shade);
  padding: .8rem 1.1rem; margin: 1rem 0; border-radius: 4px; } .verdict p:first-child { font-size: 1.1rem; }
.verdict.indistinguishable { border-left-color: #0072b2; } .verdict.close { border-left-color: #e69f00; }
.verdict.far { border-left-color: #d55e00; } .warn { border-left: 6px solid #e69f00; padding: .1rem 1rem; margin: .8rem 0; }
figure { margin: 1rem 0; } .row { display: flex; flex-wrap: wrap; gap: 0 2rem; } .row figure { max-width: 30rem; } figure img { max-width: 100%; height: auto; } figcaption { color: var(--soft); font-size: .88rem;
  max-width: 85ch; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .86rem; margin: .6rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } td.n { white-space: nowrap; }
table.labels thead th { max-width: 9rem; }
thead th { background: var(--shade); vertical-align: bottom; position: sticky; top: 0; }
tbody th { font-weight: 600; white-space: nowrap; } table.labels th:first-child { position: sticky; left: 0; background: var(--paper); z-index: 1; }
table.labels thead th:first-child { background: var(--shade); z-index: 2; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: inherit; } th button:hover, th button:focus-visible { text-decoration: underline; }
th button::after { content: "\\2195"; color: #a0a0a6; margin-left: .3em; }
th[aria-sort=ascending] button::after { content: "\\2191"; color: inherit; }
th[aria-sort=descending] button::after { content: "\\2193"; color: inherit; }
small { color: var(--soft); } .mark { white-space: nowrap; } .mark::before { margin-right: .35em; }
.mark.indistinguishable::before { content: "\\25CF"; color: #0072b2; } .mark.close::before { content: "\\25C6"; color: #b87f00; }
.mark.far::before { content: "\\25A0"; color: #d55e00; } td.far { background: #fbe9df; } td.close { background: #fdf4dc; }
a { color: #005a8f; }
@media print { thead th, table.labels th:first-child { position: static; } figure { break-inside: avoid; } }
"""

# sorts by data-v where there is one (a number, or empty for none), else by text; what has no number stays below
_SCRIPT = """
document.querySelectorAll("table.sortable").forEach(function (table) {
  var heads = table.tHead.rows[0].cells;
  function key(row, column) {
    var cell = row.cells[column], v = cell.dataset.v;
    if (v === undefined) return cell.textContent.trim();
    return v === "" ? null : Number(v);
  }
  Array.prototype.forEach.call(heads, function (head, column) {
    var button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", function () {
      var down = head.getAttribute("aria-sort") === "ascending", body = table.tBodies[0];
      var rows = Array.prototype.map.call(body.rows, function (row, i) { return [key(row, column), i, row]; });
      rows.sort(function (a, b) {
        if (a[0] === null || b[0] === null) return (a[0] === null) - (b[0] === null) || a[1] - b[1];
        var order = typeof a[0] === "number" ? a[0] - b[0] : a[0].localeCompare(b[0], undefined, { numeric: true });
        return (down ? -order : order) || a[1] - b[1];
      });
      rows.forEach(function (r) { body.appendChild(r[2]); });
      Array.prototype.forEach.call(heads, function (h) { h.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
    });
  });
});
"""


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Parameters
    ----------
    text
        What it says.
    sort
        Number to sort by; ``None`` sorts last; ``"text"`` sorts by what it says.
    below
        A second, smaller line.
    mark
        A verdict, shown as a sign before the text.
    title
        Shown where the pointer rests.
    """

    text: str
    sort: float | str | None = "text"
    below: str = ""
    mark: str = ""
    title: str = ""

    @property
    def numeric(self) -> bool:
        """Whether it is sorted, and aligned, as a number."""
        return self.sort != "text"


def paragraph(text: str, *, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{escape(kind)}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def box(paragraphs: Iterable[str], *, kind: str) -> str:
    """A framed box of plain paragraphs."""
    return f'<div class="{escape(kind)}">' + "".join(paragraph(text) for text in paragraphs) + "</div>"


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell]], *, kind: str = "", sortable: bool = False) -> str:
    """A table whose first column names the rows.

    Parameters
    ----------
    heads
        Names of columns.
    rows
        Cells of each row.
    kind
        Classes of the table.
    sortable
        Whether a click on a column's name sorts by it.
    """
    numeric = [any(row[i].numeric for row in rows) for i in range(len(heads))]
    names = []
    for name, is_number in zip(heads, numeric, strict=True):
        inner = f'<button type="button">{escape(name)}</button>' if sortable else escape(name)
        names.append(f'<th scope="col"{_number_class(is_number)}>{inner}</th>')
    body = []
    for row in rows:
        first, *others = row
        cells = [f'<th scope="row">{escape(first.text)}</th>']
        body.append("<tr>" + "".join(cells + [_cell(cell) for cell in others]) + "</tr>")
    classes = " ".join([kind, *(["sortable"] if sortable else [])]).strip()
    return (
        f'<div class="wide"><table class="{escape(classes)}"><thead><tr>{"".join(names)}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _number_class(is_number: bool) -> str:
    return ' class="n"' if is_number else ""


def _cell(cell: Cell) -> str:
    classes = [*(["n"] if cell.numeric else []), *([cell.mark] if cell.mark else [])]
    attributes = f' class="{escape(" ".join(classes))}"' if classes else ""
    if cell.numeric:
        attributes += f' data-v="{"" if cell.sort is None else repr(float(cell.sort))}"'
    if cell.title:
        attributes += f' title="{escape(cell.title)}"'
    text = escape(cell.text)
    if cell.mark:
        text = f'<span class="mark {escape(cell.mark)}">{text}</span>'
    if cell.below:
        text += f"<br><small>{escape(cell.below)}</small>"
    return f"<td{attributes}>{text}</td>"


def picture(figure: Any, *, alt: str, caption: str, dpi: int = 160) -> str:
    """A matplotlib figure as a PNG within the page, at its own size in inches.

    Parameters
    ----------
    figure
        A matplotlib figure.
    alt
        What it shows, for those who cannot see it.
    caption
        Text below.
    dpi
        Pixels per inch.
    """
    buffer = io.BytesIO()
    # no date and no version in the file: the same cells give the same picture
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    width = round(96 * float(figure.get_figwidth()))
    return (
        f'<figure><img src="data:image/png;base64,{data}" width="{width}" alt="{escape(alt)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def download(text: str, *, name: str, says: str) -> str:
    """A link that saves a text, which lies in the page, as a file."""
    data = base64.b64encode(text.encode()).decode("ascii")
    return f'<p><a download="{escape(name)}" href="data:text/csv;base64,{data}">{escape(says)}</a></p>'


def page(title: str, body: Iterable[str]) -> str:
    """The whole page.

    Parameters
    ----------
    title
        Its name.
    body
        HTML of its parts.
    """
    parts = "\n".join(body)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{parts}\n"
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )
