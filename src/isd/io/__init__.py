"""Readers: files of transcript counts, whichever tool wrote them, become the same AnnData."""

from isd.io._archs4 import read_archs4
from isd.io._gene_map import read_gene_map
from isd.io._info import FileInfo, info
from isd.io._long_reads import read_long_reads
from isd.io._quant import read_quant

__all__ = ["FileInfo", "info", "read_archs4", "read_gene_map", "read_long_reads", "read_quant"]
