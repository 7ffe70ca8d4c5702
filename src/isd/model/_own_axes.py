"""Axes of the cells at hand beside those of a reference: what it has not seen, such as a label that it lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS

from isd.model._calibrate import encoded, some_rows
from isd.model._generated import log_normalized
from isd.model._statistics import principal_loadings

if TYPE_CHECKING:
    from isd.model._vae import VAE

#: Cells that scores are fitted to, at most; penalties of the ridge that leave-one-out cross-validation chooses from.
_MAX_CELLS = 2000
_PENALTIES = np.geomspace(1e-2, 1e5, 15)
#: Share of the fitted scores that a model starts with: the axes were found in the same cells, and show their noise too.
_SHARE = 0.5


@torch.no_grad()
def add_own_axes(model: VAE, rank: int, rows: np.ndarray) -> None:
    """Put what principal axes of the training cells add to the reference's into the free rows of the output layer.

    Their scores start from a ridge regression of the cells' own scores on the decoder's last hidden layer. From zero, a
    short training at a small rate would hardly use them.

    Parameters
    ----------
    model
        Model with the reference's weights, whose output layer has more rows than the reference's.
    rank
        Rows that are the reference's.
    rows
        Training rows.
    """
    from sklearn.linear_model import RidgeCV

    layer: Any = model.module.decoder.mean
    counts = model.get_from_registry(model.adata, REGISTRY_KEYS.X_KEY)
    units = model._unit_sums()
    codes, n_free = model._codes()[rows], len(layer.loadings) - rank
    among = None if model.module.decoder.shift is None else codes[:, 1:]
    axes = principal_loadings(counts, rows, n_free, groups=units, labels=codes[:, 0], among=among)
    known = np.linalg.qr(layer.loadings[:rank].double().cpu().numpy().T)[0]
    axes -= (axes @ known) @ known.T
    length = np.square(axes).sum(axis=1)
    axes, length = axes[length > 1e-8], length[length > 1e-8]
    if not len(axes):
        return
    here = slice(rank, rank + len(axes))
    like = {"dtype": layer.loadings.dtype, "device": layer.loadings.device}
    layer.loadings[here] = torch.as_tensor(axes, **like)
    some = some_rows(rows, _MAX_CELLS)
    hidden = np.concatenate([_last_hidden(model, *cells) for cells in encoded(model, some)])
    chosen = sparse.csr_matrix(counts[some], dtype=np.float32)
    values = log_normalized(chosen if units is None else sparse.csr_matrix(chosen @ units))
    middle = np.asarray(values.mean(axis=0)).ravel()
    scores = (values @ axes.T - middle @ axes.T) / length
    for k, target in enumerate(scores.T):
        ridge = RidgeCV(alphas=_PENALTIES).fit(hidden, target)
        layer.scores.weight[rank + k] = torch.as_tensor(_SHARE * ridge.coef_, **like)
        layer.scores.bias[rank + k] = float(_SHARE * ridge.intercept_)


def _last_hidden(model: VAE, tensors: dict[str, torch.Tensor], q: dict[str, Any]) -> np.ndarray:
    module: Any = model.module
    given = module._get_generative_input(tensors, q)
    covariates = module.covariates(given["log_library"], given["codes"], given["continuous"])
    return module.decoder.body(torch.cat([given["z"], covariates], dim=1)).double().cpu().numpy()
