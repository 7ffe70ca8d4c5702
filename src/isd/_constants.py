"""Names of the slots that isd writes, and of the columns that it looks for."""

from __future__ import annotations

UNS_KEY = "isd"
SPLIT_KEY = "isd_split"
SPLIT_TRAIN, SPLIT_VALIDATION, SPLIT_TEST = "train", "validation", "test"
SOURCE_KEY = "isd_source"
SOURCE_REAL, SOURCE_GENERATED = "real", "generated"
OBSM_VAE = "X_isd_vae"
OBSM_UMAP = "X_isd_umap"
COUNTS_LAYER = "counts"
GENE_ID, GENE_NAME = "gene_id", "gene_name"
TARGET_SUM = 1e4
