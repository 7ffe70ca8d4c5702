"""Outputs of a decoder with genes: genes whose isoforms share its spread, and isoforms that stand by themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from isd.pp._ids import strip_version


def decoder_units(
    gene_of: np.ndarray, gene_names: pd.Index, feature_names: pd.Index, split_genes: Sequence[str] | None
) -> tuple[np.ndarray, pd.Index]:
    r"""What a decoder gives shares of the counts to: genes, and each isoform of genes that are split.

    Parameters
    ----------
    gene_of
        Position in ``gene_names`` of each feature's gene, shape ``(n_vars,)``; genes with several isoforms come first.
    gene_names, feature_names
        Names of genes and features.
    split_genes
        Names of genes whose isoforms stand by themselves, versions (``\.\d+$``) ignored; ``None`` for none.

    Returns
    -------
    Unit of each feature, shape ``(n_vars,)``, those with several isoforms first, and names of units: the gene's, or the feature's where
    its gene is split.

    Examples
    --------
    >>> genes, features = pd.Index(["a", "b", "c"]), pd.Index(["a1", "b1", "b2", "c1", "a2"])
    >>> codes, names = decoder_units(np.array([0, 1, 1, 2, 0]), genes, features, ["a"])
    >>> codes.tolist(), names.tolist()
    ([1, 0, 0, 3, 2], ['b', 'a1', 'a2', 'c'])
    """
    if not split_genes:
        return gene_of, gene_names
    split = np.asarray(strip_version(gene_names.astype(str)).isin(strip_version(pd.Index(list(map(str, split_genes))))))
    whole = ~split & (np.bincount(gene_of, minlength=len(gene_names)) > 1)
    rest = np.flatnonzero(~whole[gene_of])
    rest = rest[np.argsort(gene_of[rest], kind="stable")]
    codes = (np.cumsum(whole) - 1)[gene_of]
    codes[rest] = whole.sum() + np.arange(len(rest))
    alone = np.where(split[gene_of[rest]], feature_names[rest].astype(object), gene_names[gene_of[rest]].astype(object))
    return codes, pd.Index(np.concatenate([np.asarray(gene_names[whole], dtype=object), alone]))
