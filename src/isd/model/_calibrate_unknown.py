"""Fit what a reference cannot know of the cells at hand: rows of features that it lacks, and the head that tells labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS
from torch.nn import functional as F

from isd._progress import track
from isd.model._calibrate import encoded, some_rows
from isd.nn import LowRankLinear

if TYPE_CHECKING:
    from isd.model._vae import VAE

#: Cells that rows are fitted to, at most; draws from each cell's posterior, where there are few cells; values of one block
#: of features; blocks from which on it takes seconds.
_MAX_CELLS, _N_DRAWS, _BLOCK_VALUES, _MANY_BLOCKS = 1000, 4, 2**22, 4
#: Precision of the prior on how far a feature's logits may leave those of its gene (of the mean, where it has none). Much above
#: that of training (5): loadings are fitted to the end here, and training is stopped long before.
_PRECISION = 80.0
_N_ITER = 60
#: Weight decay of the head that tells labels, around the reference's.
_HEAD_PRECISION = 1.0


def fit_unknown_rows(model: VAE, rows: np.ndarray, unknown: np.ndarray, centred: np.ndarray) -> int:
    """Fit loadings and means of features that the reference does not know, its scores of the training cells being given.

    A negative binomial regression of each such feature's counts on the scores of the last layer, with a normal prior on the
    logits. A short training at a small rate would move them by a few hundredths.

    Parameters
    ----------
    model
        Model on its own data, one row of the output layer for each feature.
    rows
        Training rows.
    unknown
        Features to fit, booleans of shape ``(n_vars,)``.
    centred
        Those among them whose start (their gene) is the prior's centre; for the others it is a feature that does not vary.

    Returns
    -------
    Number of features that were fitted; 0 where the decoder has genes, a full output layer, or no negative binomial likelihood.
    """
    module: Any = model.module
    layer = module.decoder.mean
    if module.likelihood != "nb" or model.module_params["gene_decoder"] or not isinstance(layer, LowRankLinear):
        return 0
    columns = np.flatnonzero(unknown)
    scores, offsets, counts, dispersions = _design(model, rows)
    gram = scores.T @ scores / len(scores)
    step = max(1, _BLOCK_VALUES // len(scores))
    starts = range(0, len(columns), step)
    for start in track(starts, "Fitting new features", progress=None if len(starts) > _MANY_BLOCKS else False):
        some = columns[start : start + step]
        here = torch.as_tensor(some, device=scores.device)
        x = torch.as_tensor(counts[:, some].toarray(), dtype=scores.dtype, device=scores.device)
        n_draws = len(scores) // len(x)
        x = x.repeat(n_draws, 1)
        with torch.no_grad():
            log_theta = (module.log_theta[here] + dispersions(here)).clamp(-8.0, 12.0)
            given = offsets(here)
            centre = layer.loadings[:, here] * torch.as_tensor(centred[some], device=scores.device)
        loadings, bias = _regress(x, scores, given, log_theta, gram, centre, layer.bias[here].detach(), n_draws=n_draws)
        with torch.no_grad():
            layer.loadings[:, here] = loadings
            layer.bias[here] = bias
    return len(columns)


def _design(model: VAE, rows: np.ndarray) -> tuple[torch.Tensor, Any, Any, Any]:
    """Scores of draws from each cell's posterior, and functions of features: what else is in their logits, their dispersion."""
    module: Any = model.module
    rows = some_rows(rows, _MAX_CELLS)
    layer, head = module.decoder.mean, module.decoder.heads["dispersion"] if module.decoder.heads else None
    generator = torch.Generator().manual_seed(0)
    hidden, covariates, depth, total = [], [], [], []
    with torch.no_grad():
        cells = encoded(model, rows)
        for _ in range(_n_draws(len(rows))):
            for tensors, q in cells:
                given = module._get_generative_input(tensors, q | {MODULE_KEYS.Z_KEY: _draw(q, generator)})
                columns = module.covariates(given["log_library"], given["codes"], given["continuous"])
                h = module.decoder.body(torch.cat([given["z"], columns], dim=1))
                hidden.append(h)
                covariates.append(columns)
                depth.append(given["log_library"])
                total.append(torch.logsumexp(module.decoder.shifted(layer(h), columns), dim=1, keepdim=True))
        h, columns, level = torch.cat(hidden), torch.cat(covariates), torch.cat(depth) - torch.cat(total)
        scores = layer.scores(h)

    def offsets(here: torch.Tensor) -> torch.Tensor:
        shift = module.decoder.shift
        return level if shift is None else level + columns[:, module.decoder.shift_columns] @ shift[:, here]

    def dispersions(here: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, device=h.device) if head is None else _columns_of(head, h, here)

    counts = sparse.csc_matrix(model.get_from_registry(model.adata, REGISTRY_KEYS.X_KEY)[rows])
    return scores, offsets, counts, dispersions


def _n_draws(n_cells: int) -> int:
    return min(_N_DRAWS, max(1, _MAX_CELLS // n_cells))


def _draw(q: dict[str, Any], generator: torch.Generator) -> torch.Tensor:
    """Latents from the posterior, by a generator of its own: the same start whatever the global state."""
    mean, var = q[MODULE_KEYS.QZM_KEY], q[MODULE_KEYS.QZV_KEY]
    drawn: torch.Tensor = mean + var.sqrt() * torch.randn(mean.shape, generator=generator).to(mean.device)
    return drawn


def _columns_of(layer: Any, h: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
    if isinstance(layer, LowRankLinear):
        return torch.addmm(layer.bias[here], layer.scores(h), layer.loadings[:, here])
    return F.linear(h, layer.weight[here], layer.bias[here])


def _regress(
    x: torch.Tensor,
    scores: torch.Tensor,
    offsets: torch.Tensor,
    log_theta: torch.Tensor,
    gram: torch.Tensor,
    centre: torch.Tensor,
    bias: torch.Tensor,
    n_draws: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loadings and bias of the most likely logits ``scores @ loadings + bias + offsets``."""
    loadings, bias = centre.clone().requires_grad_(), bias.clone().requires_grad_()
    start = bias.detach().clone()
    # clumps are left aside: they change how counts scatter around the mean, which is what is fitted
    theta = log_theta.exp()
    optimiser = torch.optim.LBFGS([loadings, bias], max_iter=_N_ITER, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        log_mean = (scores @ loadings + bias + offsets).clamp(-30.0, 15.0)
        # what depends on the mean; draws of one cell count as one cell
        value = ((x + theta) * torch.log(theta + log_mean.exp()) - x * log_mean).sum() / n_draws
        away = loadings - centre
        # a feature without counts would go to minus infinity
        value = value + 0.5 * _PRECISION * ((gram @ away) * away).sum() + 0.05 * (bias - start).square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return loadings.detach(), bias.detach()


def fit_label_head(model: VAE, rows: np.ndarray) -> None:
    """Fit the head that tells labels from latents to the training cells, with a prior around the reference's.

    Labels of another data set, or new ones, are told by weights that say nothing yet; what training makes of the latents in
    the meantime is not kept apart by label.

    Parameters
    ----------
    model
        Model on its own data.
    rows
        Training rows.
    """
    module: Any = model.module
    head = module.label_head
    if head is None:
        return
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        rows = some_rows(rows, _MAX_CELLS)
        n_draws = _n_draws(len(rows))
        cells = encoded(model, rows)
        z = torch.cat([_draw(q, generator) for _ in range(n_draws) for _, q in cells])
        labels = torch.cat([tensors[REGISTRY_KEYS.LABELS_KEY].reshape(-1).long() for tensors, _ in cells]).repeat(
            n_draws
        )
    known = labels < head.out_features
    z, labels = z[known], labels[known]
    if not len(z):
        return
    weight, bias = (p.detach().clone().requires_grad_() for p in (head.weight, head.bias))
    starts = [p.detach().clone() for p in (weight, bias)]
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=_N_ITER, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(F.linear(z, weight, bias), labels, reduction="sum") / n_draws
        for now, start in zip((weight, bias), starts, strict=True):
            value = value + 0.5 * _HEAD_PRECISION * (now - start).square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
