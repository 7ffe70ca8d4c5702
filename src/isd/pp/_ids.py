"""Which transcript or gene an identifier means: versions, transcript names, symbols, novel isoforms."""

from __future__ import annotations

import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Literal, overload

import numpy as np
import pandas as pd
from anndata import AnnData

from isd._constants import GENE_ID, GENE_NAME

Target = Literal["transcript_id", "gene_id", "gene_name"]

TRANSCRIPT_ID, TRANSCRIPT_NAME = "transcript_id", "transcript_name"
TARGETS = (TRANSCRIPT_ID, GENE_ID, GENE_NAME)
STATUS = ("mapped", "ambiguous", "unmapped")

_VERSION = re.compile(r"\.\d+$")
#: Accessions, which have versions; the dot of a symbol such as AC011456.1 is part of its name.
_ACCESSION = r"^(?:ENS[A-Z]*[TG]\d{11}|[NX][MR]_\d+)\.\d+$"
#: Ensembl and GENCODE number a gene's transcripts from 201 (older and manual ones from 001).
_TRANSCRIPT_NAME = r"^(.+)-\d{3}$"
#: FLAMES and its like: gene, start, end and number of an isoform that no annotation has.
_NOVEL = r"^(ENS[A-Z]*G\d{11})(?:\.\d+)?_.+$"

#: What other tools call the columns of such a table.
_ALIASES = {
    "transcript_id": ("transcript_id", "transcript", "tx_id", "txname", "txid", "tx", "enst", "enstxp", "target_id"),
    "gene_id": ("gene_id", "gene", "geneid", "ensgene", "ensg", "ens_gene"),
    "gene_name": ("gene_name", "symbol", "gene_symbol", "genename", "ext_gene", "external_gene_name"),
    "transcript_name": ("transcript_name", "external_transcript_name", "tx_name"),
}


@overload
def strip_version(ids: str) -> str: ...
@overload
def strip_version(ids: Iterable[str]) -> pd.Index: ...
def strip_version(ids: str | Iterable[str]) -> str | pd.Index:
    r"""Take the version off identifiers: a dot and digits at the very end (``\.\d+$``), and nothing else.

    Parameters
    ----------
    ids
        One identifier, or several.

    Returns
    -------
    A string for a string, else an :class:`pandas.Index` in the order given.

    Examples
    --------
    >>> import isd
    >>> isd.pp.strip_version("ENST00000456328.2")
    'ENST00000456328'
    >>> list(isd.pp.strip_version(["ENSG00000104435.13_78616340_78665843_1", "A1BG-203"]))
    ['ENSG00000104435.13_78616340_78665843_1', 'A1BG-203']
    """
    if isinstance(ids, str):
        return _VERSION.sub("", ids)
    return pd.Index([_VERSION.sub("", str(i)) for i in ids], dtype=object)


def read_t2g(path: str | PathLike[str]) -> pd.DataFrame:
    r"""Read a table that says which gene a transcript belongs to.

    Parameters
    ----------
    path
        Tab- or comma-separated file, gzipped or not. With a header: columns are recognised by their usual names
        (``transcript_id``, ``tx_id``, ``enst``, ...). Without: transcript, gene, and gene name if there is a third
        column, as salmon and kallisto bustools have them.

    Returns
    -------
    Frame of strings with ``transcript_id``, ``gene_id``, ``gene_name`` and ``transcript_name`` (the last two where there),
    then the other columns; one row a transcript and gene; an empty name is missing (NaN).

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If transcript or gene are not among the columns.

    Examples
    --------
    >>> import isd, pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "t2g.tsv")
    ...     _ = path.write_text("enst\tensgene\tsymbol\nENST00000373020\tENSG00000000003\tTSPAN6\n")
    ...     isd.pp.read_t2g(path)
         transcript_id          gene_id gene_name
    0  ENST00000373020  ENSG00000000003    TSPAN6
    """
    import gzip

    path = Path(path)
    with path.open("rb") as raw:
        gzipped = raw.read(2) == b"\x1f\x8b"  # whatever the name says
    with gzip.open(path, "rt") if gzipped else path.open() as file:
        first = file.readline().rstrip("\r\n")
    separator = "\t" if "\t" in first else ","
    names = [name.strip().strip('"') for name in first.split(separator)]
    known = _known_columns(names)
    table = pd.read_csv(
        path,
        sep=separator,
        header=0 if known else None,
        dtype=str,
        keep_default_na=False,
        na_values=[""],
        compression="gzip" if gzipped else None,
    )
    if known:
        table.columns = pd.Index(names)
        table = table.rename(columns=known)
    else:
        usual = [TRANSCRIPT_ID, GENE_ID, GENE_NAME][: table.shape[1]]
        table.columns = pd.Index(usual + [f"column_{i + 1}" for i in range(len(usual), table.shape[1])])
    table = _checked(table, f"{path.name}: ")
    front = [c for c in (*TARGETS, TRANSCRIPT_NAME) if c in table]
    table = table[front + [c for c in table if c not in front]].dropna(subset=[TRANSCRIPT_ID, GENE_ID])
    return table.drop_duplicates([TRANSCRIPT_ID, GENE_ID]).reset_index(drop=True)


def map_ids(
    ids: AnnData | Iterable[str],
    target: Target = "gene_id",
    *,
    t2g: pd.DataFrame | str | PathLike[str],
    ambiguous: Literal["drop", "first"] = "drop",
) -> pd.DataFrame:
    """Find the transcript or gene that each identifier means.

    Understood, in this order: transcript ids and gene ids (as they are, then without their version, on either
    side), transcript names (``A1BG-203``, from ``t2g["transcript_name"]``), gene symbols, transcript names whose gene is
    known by its symbol, and novel isoforms named after their gene (``ENSG00000104435.13_78616340_78665843_1``: no
    annotated transcript, but a gene).

    Parameters
    ----------
    ids
        Identifiers, or an AnnData, whose ``var_names`` they are.
    target
        What to look up: ``"transcript_id"``, ``"gene_id"`` or ``"gene_name"``.
    t2g
        Transcript-to-gene table, as :func:`read_t2g` or :func:`isd.io.read_gene_map` gives it, or its path.
    ambiguous
        Where an identifier means several targets (a symbol that two genes share): ``"drop"`` leaves it missing,
        ``"first"`` takes the first of them in alphabetical order. Both count it as ambiguous.

    Returns
    -------
    Frame with a row for each identifier, in their order, indexed by them: the column ``target`` (missing where nothing was
    found), ``id_type`` (what it was taken for: ``"transcript_id"``, ``"gene_id"``, ``"transcript_name"``,
    ``"gene_name"``, ``"novel"`` or ``"unknown"``) and ``status`` (categorical: ``"mapped"``, ``"ambiguous"``,
    ``"unmapped"``). ``table["status"].value_counts()`` counts what could not be mapped.

    Raises
    ------
    ValueError
        If ``target`` or ``ambiguous`` is something else, or ``t2g`` lacks a column.

    Examples
    --------
    >>> import isd, pandas as pd
    >>> t2g = pd.DataFrame(
    ...     {"transcript_id": ["ENST00000263100"], "gene_id": ["ENSG00000121410"], "gene_name": ["A1BG"]}
    ... )
    >>> found = isd.pp.map_ids(["ENST00000263100.8", "A1BG-203", "A1BG", "XYZ"], "gene_id", t2g=t2g)
    >>> found["gene_id"].fillna("-").tolist()
    ['ENSG00000121410', 'ENSG00000121410', 'ENSG00000121410', '-']
    >>> found["status"].value_counts().to_dict()
    {'mapped': 3, 'unmapped': 1, 'ambiguous': 0}
    """
    if target not in TARGETS:
        raise ValueError(f"target is {target!r}; expected one of {', '.join(map(repr, TARGETS))}.")
    if ambiguous not in ("drop", "first"):
        raise ValueError(f'ambiguous is {ambiguous!r}; expected "drop" or "first".')
    table = _checked(t2g, "t2g: ") if isinstance(t2g, pd.DataFrame) else read_t2g(t2g)
    if target not in table:
        raise ValueError(f"t2g has no column {target!r}; it has {list(table.columns)}.")
    names = pd.Index([str(i) for i in (ids.var_names if isinstance(ids, AnnData) else ids)], dtype=object)
    unique = pd.Series(names.unique(), dtype=object)

    found = np.full(unique.size, np.nan, dtype=object)
    several = np.zeros(unique.size, dtype=bool)
    kind = np.full(unique.size, "unknown", dtype=object)
    for id_type, keys, column, versions in _readings(unique, table):
        rows = np.flatnonzero((kind == "unknown") & keys.notna().to_numpy())
        if column not in table or rows.size == 0:
            continue
        known, lookup, shared = _lookup(table, column, target, versions, keys.iloc[rows])
        rows = rows[keys.iloc[rows].isin(known).to_numpy()]
        kind[rows] = id_type
        if target == TRANSCRIPT_ID and id_type in (TRANSCRIPT_NAME, "novel") and column in (GENE_ID, GENE_NAME):
            continue  # read through its gene: which of the gene's transcripts it is, is not known
        hits = keys.iloc[rows]
        found[rows] = hits.map(lookup).to_numpy(dtype=object)
        several[rows] = hits.isin(shared).to_numpy()
    if ambiguous == "drop":
        found[several] = np.nan
    status = np.where(several, "ambiguous", np.where(pd.notna(found), "mapped", "unmapped"))
    result = pd.DataFrame(
        {target: found, "id_type": kind, "status": pd.Categorical(status, categories=STATUS)},
        index=pd.Index(unique, name="id"),
    )
    return result.loc[names].rename_axis("id")


def _readings(ids: pd.Series, table: pd.DataFrame) -> list[tuple[str, pd.Series, str, bool]]:
    """Ways to read the identifiers: type, key (missing where it cannot be that), column to find it in, versions off."""
    bare = ids.where(~ids.str.match(_ACCESSION), ids.str.replace(_VERSION, "", regex=True))
    return [
        (TRANSCRIPT_ID, ids, TRANSCRIPT_ID, False),
        (GENE_ID, ids, GENE_ID, False),
        (TRANSCRIPT_ID, bare, TRANSCRIPT_ID, True),
        (GENE_ID, bare, GENE_ID, True),
        (TRANSCRIPT_NAME, ids, TRANSCRIPT_NAME, False),
        (GENE_NAME, ids, GENE_NAME, False),
        (TRANSCRIPT_NAME, ids.str.extract(_TRANSCRIPT_NAME)[0], GENE_NAME, False),
        ("novel", ids.str.extract(_NOVEL)[0], GENE_ID, True),
    ]


def _lookup(
    table: pd.DataFrame, column: str, target: str, versions: bool, wanted: pd.Series
) -> tuple[pd.Index, pd.Series, pd.Index]:
    """Of the wanted keys: those that the table has, the first target of each, and those that have several."""
    keys = table[column]
    if versions and keys.str.contains(".", regex=False, na=False).any():
        keys = keys.where(~keys.str.match(_ACCESSION, na=False), keys.str.replace(_VERSION, "", regex=True))
    rows = keys.isin(wanted).to_numpy()
    pairs = pd.DataFrame({"key": keys[rows].to_numpy(), "target": table[target].to_numpy()[rows]})
    known = pd.Index(pairs["key"].unique())
    pairs = pairs.dropna().drop_duplicates().sort_values("target", kind="stable")
    shared = pd.Index(pairs["key"][pairs["key"].duplicated()].unique())
    return known, pairs.drop_duplicates("key").set_index("key")["target"], shared


def _known_columns(names: list[str]) -> dict[str, str]:
    """Our name of each column whose name is a usual one; the first where two are."""
    known: dict[str, str] = {}
    for ours, aliases in _ALIASES.items():
        for alias in aliases:
            match = next((n for n in names if n.lower() == alias and n not in known), None)
            if match is not None:
                known[match] = ours
                break
    return known


def _checked(table: pd.DataFrame, what: str) -> pd.DataFrame:
    if table.index.name == TRANSCRIPT_ID and TRANSCRIPT_ID not in table:
        table = table.reset_index()  # as isd.io.read_gene_map gives it
    missing = [c for c in (TRANSCRIPT_ID, GENE_ID) if c not in table]
    if missing:
        raise ValueError(
            f"{what}no column {' and '.join(map(repr, missing))} among {list(map(str, table.columns))}; "
            "a transcript-to-gene table needs transcript_id and gene_id."
        )
    return table
