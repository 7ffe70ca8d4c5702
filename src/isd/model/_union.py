"""Models of more features than their cells were measured for: the reference's and their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from isd._counts import get_counts
from isd.model._transfer import COPIED, axis_of, match_rows

if TYPE_CHECKING:
    from isd.model._vae import VAE


def widen(adata: AnnData, reference: VAE, layer: str) -> tuple[AnnData, np.ndarray]:
    """Cells with their own features, then those of a reference that they lack, without counts.

    Parameters
    ----------
    adata
        Cells; not changed.
    reference
        The reference.
    layer
        Where counts are, ``"X"`` for ``adata.X``.

    Returns
    -------
    A new AnnData with counts in ``X``, the columns of ``obs``, and text columns of ``var``; features without counts,
    booleans of shape ``(n_vars,)``.
    """
    found = match_rows(adata.var_names, reference.feature_names)
    known = np.unique(found.mixing[found.source == COPIED].indices)
    rest = np.setdiff1d(np.arange(len(reference.feature_names)), known)
    names = [*map(str, adata.var_names), *map(str, reference.feature_names[rest])]
    counts = sparse.csr_matrix(get_counts(adata, layer))
    counts = sparse.csr_matrix((counts.data, counts.indices, counts.indptr), shape=(adata.n_obs, len(names)))
    var = pd.concat([adata.var, reference.feature_table.iloc[rest]])
    var.index = pd.Index(names)
    made = AnnData(
        X=counts, obs=adata.obs.copy(), var=var[[c for c in var if c in reference.feature_table or c in adata.var]]
    )
    return made, np.arange(len(names)) >= adata.n_vars


def hide_unmeasured(model: Any) -> None:
    """Tell the module which outputs take no part in the likelihood."""
    unmeasured = getattr(model, "unmeasured_", None)
    if unmeasured is not None:
        model.module.unmeasured = torch.as_tensor(unmeasured, device=model.module.device)


@contextmanager
def kept_unmeasured(model: Any) -> Iterator[None]:
    """Put back, after a training, what it did to features that no cell was measured for: priors alone pull them."""
    unmeasured = getattr(model, "unmeasured_", None)
    if unmeasured is None:
        yield
        return
    held = {}
    for name, value in model.module.named_parameters():
        axis, dim = axis_of(name)
        if axis in ("features", "outputs", "dispersions"):
            held[name] = (value.detach().clone(), dim)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in model.module.named_parameters():
                if name in held:
                    before, dim = held[name]
                    rows = torch.as_tensor(np.flatnonzero(unmeasured), device=value.device)
                    value.index_copy_(dim, rows, before.to(value.device).index_select(dim, rows))
