"""Preparation of counts: the recipe, rounding, splits, the mapping of transcripts to genes, and MuData."""

from isd.pp._annotate import annotate_genes
from isd.pp._ids import map_ids, read_t2g, strip_version
from isd.pp._mudata import from_mudata, to_mudata
from isd.pp._recipe import recipe
from isd.pp._round import round_counts
from isd.pp._split import split

__all__ = [
    "annotate_genes",
    "from_mudata",
    "map_ids",
    "read_t2g",
    "recipe",
    "round_counts",
    "split",
    "strip_version",
    "to_mudata",
]
