"""Fit a copied model's means to the cells that it meets, before it is trained on them: what two data sets measure differently."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import minimize, minimize_scalar
from scipy.special import gammaln
from scvi import REGISTRY_KEYS
from scvi.module._constants import MODULE_KEYS

from isd.model._dispersions import CLUMPS

if TYPE_CHECKING:
    from isd.model._vae import VAE

#: Cells that expectations are averaged over, at most; cells decoded at once.
_MAX_CELLS, _CHUNK = 2000, 128
#: Cells that one number is fitted to, at most, and how far it may move.
_MAX_NOISE_CELLS, _MAX_SHIFT = 256, 8.0
#: Precisions of the prior that are tried: from a reference that says nothing to one that is believed.
_PRECISIONS = np.geomspace(0.02, 2000.0, 36)
#: Counts that a feature which the reference does not know is given by it.
_UNKNOWN = 0.1


def gamma_precision(counts: np.ndarray, expected: np.ndarray) -> float:
    r"""Precision of a gamma prior around expected counts, by maximum likelihood.

    Each feature's expression differs from what is expected by a factor with mean 1 and variance :math:`1/k`, so that counts
    are negative binomial with size :math:`k`.

    Parameters
    ----------
    counts, expected
        Sums over cells for each feature, shape ``(n_vars,)``.

    Returns
    -------
    :math:`k`, one of a grid from 0.02 to 2,000.
    """
    x, m = counts[expected > 0], expected[expected > 0]
    k = _PRECISIONS[:, None]
    value = gammaln(x + k) - gammaln(k) + k * np.log(k / (k + m)) + x * np.log(m / (k + m))
    return float(_PRECISIONS[value.sum(axis=1).argmax()])


def dirichlet_precision(counts: np.ndarray, usage: np.ndarray, gene_of: np.ndarray) -> float:
    """Precision of a Dirichlet prior around the usage that is expected, by maximum likelihood over genes.

    Parameters
    ----------
    counts, usage
        Sums over cells, and expected share in its gene, of each isoform, shape ``(n,)``.
    gene_of
        Gene of each, from 0.
    """
    totals = np.bincount(gene_of, counts)
    best, where = -np.inf, _PRECISIONS[0]
    for k in _PRECISIONS:
        alpha = np.maximum(k * usage, 1e-8)
        value = (gammaln(counts + alpha) - gammaln(alpha)).sum() + (gammaln(k) - gammaln(totals + k)).sum()
        if value > best:
            best, where = value, k
    return float(where)


@torch.inference_mode()
def expected_sums(model: VAE, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of counts, and of what the model expects of the same cells at their own totals, each of shape ``(n_vars,)``."""
    adata = model.adata
    expected, hidden = np.zeros(model.module.n_input), model.module.unmeasured is not None
    for tensors in model._make_data_loader(adata=adata, indices=np.sort(rows), batch_size=_CHUNK):
        inputs = model.module._get_inference_input(tensors)
        out = model.module.inference(**inputs)
        library = inputs["log_library"].to(out["qzm"].device)
        px = model.module.generative(out["qzm"], library, inputs["codes"], inputs["continuous"], measured_only=hidden)[
            "px"
        ]
        expected += px.mean.sum(dim=0).double().cpu().numpy()
    counts = model.get_from_registry(adata, REGISTRY_KEYS.X_KEY)
    observed = np.asarray(sparse.csr_matrix(counts[np.sort(rows)]).sum(axis=0), dtype=float).ravel()
    return observed, expected


@torch.no_grad()
def calibrate_dispersion(model: VAE, rows: np.ndarray) -> float:
    """Shift all log dispersions by one number, the most likely one for the training cells; clumps and concentrations of usage likewise.

    Bulk averages over cells what makes single cells differ, and a deeper assay has less noise: which feature is noisier than
    another carries over, how noisy all of them are does not. Training alone moves a log dispersion by 1e-2 a step at most.

    Parameters
    ----------
    model
        Model on its own data.
    rows
        Training rows.

    Returns
    -------
    What was added to the log dispersion.
    """
    module: Any = model.module
    if not hasattr(module, "log_theta"):
        return 0.0
    cells = encoded(model, some_rows(rows, _MAX_NOISE_CELLS))

    def moved(parameter: torch.Tensor, bounds: tuple[float, float] = (-_MAX_SHIFT, _MAX_SHIFT)) -> float:
        start = parameter.detach().clone()

        def loss(shift: float) -> float:
            parameter.data = start + shift
            return sum(float(module._reconstruction(*cell)[1].double().sum()) for cell in made())

        def made() -> Any:
            for tensors, q in cells:
                x = tensors[REGISTRY_KEYS.X_KEY]
                yield x, q, module.generative(**module._get_generative_input(tensors, q))

        shift = float(minimize_scalar(loss, bounds=bounds, options={"xatol": 0.1}).x)
        parameter.data = start + shift
        return shift

    shift = moved(module.log_theta)
    if module.log_clump is not None:
        # the variance of small counts may be either's; what goes to nothing would not come back in a training
        now = float(module.log_clump.mean())
        moved(module.log_clump, (float(np.log(CLUMPS[0])) - now, float(np.log(CLUMPS[1])) - now))
        shift += moved(module.log_theta)
    if model.module_params["gene_decoder"] and module.usage_likelihood != "nb":
        module.decoder.mean_log_concentration.data += moved(module.decoder.log_concentration)
    return shift


@torch.no_grad()
def calibrate_posterior(model: VAE, rows: np.ndarray) -> tuple[float, float]:
    """Scale the means of all posteriors, and their variances, by one number each: what the evidence bound of the training cells likes best.

    An encoder that has learnt of a million counts a sample is far too sure of a cell of two thousand, and pays for it in
    the KL divergence.

    Parameters
    ----------
    model
        Model on its own data.
    rows
        Training rows.

    Returns
    -------
    Factor of the means, and logarithm of that of the variances.
    """
    module: Any = model.module
    if module.deterministic or module.encoder.l2_normalize:
        return 1.0, 0.0
    cells = encoded(model, some_rows(rows, _MAX_NOISE_CELLS))
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(q[MODULE_KEYS.QZM_KEY].shape, generator=generator) for _, q in cells]

    def loss(values: np.ndarray) -> float:
        total = 0.0
        for (tensors, q), drawn in zip(cells, noise, strict=True):
            mean = float(np.exp(values[0])) * q[MODULE_KEYS.QZM_KEY]
            var = float(np.exp(values[1])) * q[MODULE_KEYS.QZV_KEY]
            here = q | {MODULE_KEYS.Z_KEY: mean + var.sqrt() * drawn.to(mean.device)}
            made = module.generative(**module._get_generative_input(tensors, here))
            each = module._reconstruction(tensors[REGISTRY_KEYS.X_KEY], here, made)[1]
            kl = 0.5 * (mean.square() + var - 1.0 - var.log()).sum(dim=1)
            total += float((each + kl).double().sum())
        return total

    options = {"xatol": 0.03, "fatol": 0.5, "maxiter": 60, "initial_simplex": [[0.0, 0.0], [-0.3, 0.0], [0.0, 1.0]]}
    scale, log_factor = minimize(loss, np.zeros(2), method="Nelder-Mead", options=options).x
    module.encoder.mean.weight *= float(np.exp(scale))
    module.encoder.mean.bias *= float(np.exp(scale))
    module.encoder.log_var.bias += float(log_factor)
    return float(np.exp(scale)), float(log_factor)


def encoded(model: VAE, rows: np.ndarray) -> list[tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """Chunks of cells, with the means of their latents in place of draws."""
    module: Any = model.module
    found = []
    for tensors in model._make_data_loader(adata=model.adata, indices=rows, batch_size=_CHUNK):
        moved = {k: v.to(module.device) for k, v in tensors.items()}
        q = module.inference(**module._get_inference_input(moved))
        found.append((moved, q | {MODULE_KEYS.Z_KEY: q[MODULE_KEYS.QZM_KEY]}))
    return found


def some_rows(rows: np.ndarray, n: int) -> np.ndarray:
    return np.sort(np.random.default_rng(0).choice(rows, n, replace=False) if len(rows) > n else rows)


def calibrate_means(model: VAE, rows: np.ndarray, known: np.ndarray, n_rounds: int = 2) -> float:
    """Move the output layer's bias so that means over cells agree with the counts, as far as these tell.

    The factor between counts and expectation has a gamma prior for each feature (for each gene, where the decoder has genes,
    and a Dirichlet one for usage), whose precision is estimated from all of them: a reference of the same protocol is believed
    where counts are few, one that knows nothing of these cells is not.

    Parameters
    ----------
    model
        Model on its own data.
    rows
        Training rows.
    known
        Outputs of the mean's layer (features or genes) that the reference knows, booleans.
    n_rounds
        How often: better means give better latents.

    Returns
    -------
    The precision of the last round, in counts.
    """
    rows = some_rows(rows, _MAX_CELLS)
    module: Any = model.module
    precision = np.inf
    genes = module.gene_of.cpu().numpy() if model.module_params["gene_decoder"] else None
    bias, start = module.decoder.mean.bias, module.decoder.mean.bias.detach().clone()
    unmeasured = module.unmeasured
    hidden = np.zeros(len(known), dtype=bool) if unmeasured is None else unmeasured.cpu().numpy()
    known = known & ~hidden
    pooled = None if genes is None else module.decoder.log_pooled.clone()
    for _ in range(n_rounds):
        observed, expected = expected_sums(model, rows)
        if pooled is not None:
            assert genes is not None
            _calibrate_usage(module, observed, expected, pooled)
            observed, expected = (np.bincount(genes, v, module.n_genes) for v in (observed, expected))
        # the prior is about what the reference says, before any round
        expected = np.maximum(expected * (start - bias).detach().double().exp().cpu().numpy(), 1e-6)
        expected *= observed.sum() / expected.sum()
        precision = gamma_precision(observed[known], expected[known])
        k = np.where(known, precision, _UNKNOWN)
        factor = np.log((observed + k) / (expected + k))
        factor = np.where(hidden, 0.0, factor - factor[~hidden].mean())
        with torch.no_grad():
            bias.copy_(start + torch.as_tensor(factor, dtype=bias.dtype, device=bias.device))
    return precision


def _calibrate_usage(module: Any, observed: np.ndarray, expected: np.ndarray, start: torch.Tensor) -> None:
    """Pooled usage by what the reference says of it (``start``) and the counts of each gene."""
    shared, pooled = module.shared.cpu().numpy(), module.decoder.log_pooled
    inner = module.gene_of.cpu().numpy()[shared]
    x = observed[shared]
    usage = np.maximum(expected[shared] * (start - pooled).double().exp().cpu().numpy(), 1e-9)
    usage /= np.bincount(inner, usage)[inner]
    precision = dirichlet_precision(x, usage, inner)
    made = np.log((x + precision * usage) / (np.bincount(inner, x)[inner] + precision) / usage)
    logits = start.double().cpu().numpy() + made
    # what the softmax leaves open
    logits -= np.log(np.bincount(inner, np.exp(logits)))[inner]
    pooled.copy_(torch.as_tensor(logits, dtype=pooled.dtype))
