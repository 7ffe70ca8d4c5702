"""Which rows of a reference's weights a new model starts from: matching by identifier, and copying along named axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from isd._constants import GENE_ID
from isd.pp._ids import strip_version

if TYPE_CHECKING:
    from isd.model._latent_diffusion import LatentDiffusion
    from isd.model._vae import VAE

COPIED, FROM_GENE, NEW, DROPPED = SOURCES = ("copied", "from gene", "new", "dropped")


@dataclass(frozen=True)
class RowMap:
    """How each row of a new axis is made of rows of the reference's.

    Parameters
    ----------
    mixing
        Weights, csr of shape ``(n_new, n_reference)``; rows add up to 1, or are empty and give zeros.
    source
        Where each new row comes from, one of :data:`SOURCES`, shape ``(n_new,)``.
    fill_mean
        Whether rows that are new have the mean over the reference's rows, and not zeros: as weights, this mean would take
        a place for each pair of rows.
    """

    mixing: sparse.csr_matrix
    source: np.ndarray
    fill_mean: bool = False

    @property
    def copied(self) -> np.ndarray:
        """Rows that are in both, booleans of shape ``(n_new,)``."""
        return self.source == COPIED

    def shuffled(self, rng: np.random.Generator) -> RowMap:
        """The same with the reference's rows in a random order."""
        order = rng.permutation(self.mixing.shape[1])
        return RowMap(sparse.csr_matrix(self.mixing[:, order]), self.source, self.fill_mean)

    def __call__(self, tensor: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Rows of the new axis along ``dim`` of a tensor of the reference."""
        values = np.moveaxis(tensor.detach().cpu().numpy(), dim, 0)
        flat = values.reshape(len(values), -1)
        # one weight of 1 leaves a row as it is, to the last bit
        made = np.asarray(self.mixing @ flat, dtype=flat.dtype)
        if self.fill_mean:
            made[self.source == NEW] = flat.mean(axis=0, dtype=np.float64)
        made = made.reshape(-1, *values.shape[1:])
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(made, 0, dim)))


def match_rows(
    names: pd.Index,
    reference: pd.Index,
    genes: np.ndarray | None = None,
    reference_genes: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> RowMap:
    r"""Match names as they are, then without versions (``\.\d+$``), then by gene.

    Parameters
    ----------
    names, reference
        Names of the new and of the reference's rows.
    genes, reference_genes
        Gene of each, missing where it has none; ``None`` where genes are not known.
    weights
        Weight of each row of the reference among the isoforms of its gene, such as its usage; equal by default.

    Returns
    -------
    :class:`RowMap`. A row that is not matched is the weighted mean over its gene's isoforms in the reference, else the mean
    over all rows.

    Examples
    --------
    >>> found = match_rows(pd.Index(["T1.2", "T9"]), pd.Index(["T2", "T1.7"]))
    >>> found.source.tolist(), found(torch.tensor([2.0, 4.0]))
    (['copied', 'new'], tensor([4., 3.]))
    """
    names, reference = names.astype(str), reference.astype(str)
    position = reference.get_indexer(names) if reference.is_unique else np.full(len(names), -1)
    bare = pd.Series(np.arange(len(reference)), index=strip_version(reference))
    # of several versions of one transcript none is the one that is meant
    bare = bare[~bare.index.duplicated(keep=False)]
    open_rows = np.flatnonzero(position < 0)
    position[open_rows] = bare.reindex(strip_version(names[open_rows])).fillna(-1).to_numpy(dtype=np.int64)
    source = np.where(position >= 0, COPIED, NEW).astype(object)
    rows, cols = [np.flatnonzero(position >= 0)], [position[position >= 0]]
    values = [np.ones(len(rows[0]))]
    if genes is not None and reference_genes is not None:
        wanted = _gene_names(genes)
        missing = np.flatnonzero(position < 0)
        by_gene = _of_genes(reference_genes, weights, {wanted[row] for row in missing})
        for row in missing:
            gene = wanted[row]
            if gene is not None and gene in by_gene:
                members, share = by_gene[gene]
                rows.append(np.full(len(members), row))
                cols.append(members)
                values.append(share)
                source[row] = FROM_GENE
    mixing = sparse.csr_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(cols))), shape=(len(names), len(reference))
    )
    return RowMap(mixing, source, fill_mean=True)


def match_classes(names: list[str], reference: list[str], fill: np.ndarray | None = None) -> RowMap:
    """Match categories by name; a new one has the mean over the reference's, weighted by ``fill``, or zeros without it."""
    known = pd.Index(reference).get_indexer(pd.Index(names)) if reference else np.full(len(names), -1)
    mixing = np.zeros((len(names), len(reference)))
    for row, col in enumerate(known):
        if col >= 0:
            mixing[row, col] = 1.0
        elif fill is not None and len(reference):
            mixing[row] = fill
    return RowMap(sparse.csr_matrix(mixing), np.where(known >= 0, COPIED, NEW).astype(object))


def _gene_names(genes: np.ndarray) -> list[str | None]:
    text = pd.Series(np.asarray(genes, dtype=object))
    missing = text.isna() | (text.astype(str).str.strip() == "")
    return [None if none else name for none, name in zip(missing, strip_version(text.astype(str)), strict=True)]


def _of_genes(
    genes: np.ndarray, weights: np.ndarray | None, wanted: set[str | None]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rows of each gene that is wanted, and their shares."""
    frame = pd.DataFrame({"gene": _gene_names(genes), "weight": 1.0 if weights is None else weights})
    frame = frame[frame["gene"].isin(wanted)]
    found = {}
    for gene, part in frame.dropna(subset="gene").groupby("gene", sort=False):
        share = part["weight"].to_numpy(dtype=float)
        share = share / share.sum() if share.sum() > 0 else np.full(len(share), 1 / len(share))
        found[str(gene)] = part.index.to_numpy(), share
    return found


def genes_of(model: VAE) -> np.ndarray | None:
    """Gene of each feature of a model, by the column it was set up with, else ``gene_id``; ``None`` where there is none."""
    key = model.gene_key or GENE_ID
    table = model.feature_table
    return table[key].to_numpy(dtype=object) if key in table else None


def pooled_usage(model: VAE) -> np.ndarray:
    """Weights by which a model's features stand for their gene: what it expects of each at its mean, unnormalised."""
    module: Any = model.module
    if model.module_params["gene_decoder"]:
        usage = np.ones(module.n_input)
        usage[module.shared.cpu().numpy()] = module.decoder.log_pooled.exp().cpu().numpy()
        # of a gene that is split, each isoform has a mean of its own
        bias = module.decoder.mean.bias.detach().cpu().numpy().astype(float)
        return usage * np.exp(bias - bias.max())[module.gene_of.cpu().numpy()]
    if module.likelihood == "normal":
        return np.ones(module.n_input)
    bias = module.decoder.mean.bias.detach().cpu().numpy().astype(float)
    return np.exp(bias - bias.max())


def feature_map(model: VAE, reference: VAE) -> RowMap:
    """Rows of a model's features."""
    return match_rows(
        model.feature_names, reference.feature_names, genes_of(model), genes_of(reference), pooled_usage(reference)
    )


def report(model: VAE, reference: VAE, features: RowMap) -> pd.DataFrame:
    """One row for each feature of the model, then one for each of the reference that it lacks."""
    names, theirs = model.feature_names.astype(str), reference.feature_names.astype(str)
    found = np.full(len(names), "", dtype=object)
    copied = np.flatnonzero(features.copied)
    used = features.mixing[copied].indices
    found[copied] = theirs[used]
    from_gene = np.flatnonzero(features.source == FROM_GENE)
    genes = genes_of(model)
    if genes is not None:
        found[from_gene] = genes[from_gene].astype(str)
    n_unmeasured = int(getattr(model, "unmeasured_", np.zeros(0)).sum())
    left = np.delete(np.asarray(theirs, dtype=object), np.unique(used))
    return pd.DataFrame(
        {
            "feature": np.concatenate([np.asarray(names, dtype=object), left]),
            "source": pd.Categorical(np.concatenate([features.source, np.full(len(left), DROPPED)]), SOURCES),
            "reference": np.concatenate([found, left]),
            "measured": np.arange(len(names) + len(left)) < len(names) - n_unmeasured,
        }
    )


def covariate_map(model: VAE, reference: VAE) -> tuple[RowMap, np.ndarray]:
    """Columns of covariates, matched by key, then by class.

    Returns
    -------
    Map of the columns, and weights of shape ``(n_reference_columns,)`` with which columns of the reference go into the
    bias: where it tells batches apart and the model does not, these stand for its training cells' mean over batches.
    """
    ours, theirs = _covariate_blocks(model), _covariate_blocks(reference)
    mixing = sparse.lil_matrix((sum(map(len, ours.values())), sum(map(len, theirs.values()))))
    constant = np.zeros(mixing.shape[1])
    shares = {key: _class_shares(reference, key) for key in theirs}
    column = 0
    for key, known in theirs.items():
        here = slice(column, column + len(known))
        column += len(known)
        if key not in ours:
            constant[here] = shares[key]
            continue
        row = sum(len(names) for other, names in ours.items() if list(ours).index(other) < list(ours).index(key))
        mixing[row : row + len(ours[key]), here] = match_classes(ours[key], known, shares[key]).mixing
    made = sparse.csr_matrix(mixing)
    return RowMap(made, np.where(np.diff(made.indptr) > 0, COPIED, NEW).astype(object)), constant


def covariate_names(model: VAE | LatentDiffusion) -> list[tuple[str, list[str]]]:
    """Key and classes of labels, batches and categorical covariates, in the order of a model's codes."""
    own = [(f"class:{key}", [str(v) for v in names]) for key, names in model.covariate_categories.items()]
    return [("labels", [str(v) for v in model.labels]), ("batches", [str(v) for v in model.batches]), *own]


def _covariate_blocks(model: VAE) -> dict[tuple[str, str], list[str]]:
    """Names of the columns of each covariate, in the order in which networks see them."""
    blocks = {("library", ""): [""]} if model.module.use_library else {}
    blocks[("batch", "")] = [str(v) for v in model.batches]
    blocks |= {("class", key): [str(v) for v in names] for key, names in model.covariate_categories.items()}
    # one category is no column
    blocks = {key: names for key, names in blocks.items() if key[0] == "library" or len(names) > 1}
    return blocks | {("number", str(k)): [str(k)] for k in model.setup_args.get("continuous_covariate_keys") or ()}


def _class_shares(model: VAE, key: tuple[str, str]) -> np.ndarray:
    """Share of the training cells in each class of a covariate; 0 for what is no class."""
    if key[0] not in ("batch", "class"):
        return np.zeros(1)
    column = 1 if key[0] == "batch" else 2 + list(model.covariate_categories).index(key[1])
    n = model.n_categories[column]
    return np.bincount(model.template_codes_[:, column], minlength=n)[:n] / len(model.template_codes_)


def transferred_state(
    model: VAE, reference: VAE, features: RowMap, *, labels: bool, order_seed: int | None = None
) -> dict[str, torch.Tensor]:
    """Weights and buffers of the new model, made of the reference's along the axes that the two share by name.

    Parameters
    ----------
    model, reference
        Models of one architecture on their own features.
    features
        As :func:`feature_map` gives it.
    labels
        Whether classes of the same name mean the same.
    order_seed
        Where given, the reference's features (and genes) come in an order drawn with it.

    Raises
    ------
    ValueError
        If a tensor of the model has no counterpart.
    """
    ours, theirs = model.module.state_dict(), reference.module.state_dict()
    n_latent = reference.module.n_latent
    covariates, constant = covariate_map(model, reference)
    latents = RowMap(sparse.identity(n_latent, format="csr"), np.full(n_latent, COPIED, dtype=object))
    inputs = RowMap(
        sparse.csr_matrix(sparse.block_diag([latents.mixing, covariates.mixing])),
        np.concatenate([latents.source, covariates.source]),
    )
    axes = {"features": features, "outputs": features, "dispersions": features}
    if model.module_params["gene_decoder"]:
        axes |= _gene_axes(model, reference)
    if order_seed is not None:
        # every tensor of an axis in the same order
        axes = {name: axis.shuffled(np.random.default_rng(order_seed)) for name, axis in axes.items()}
    names = [str(v) for v in model.labels] if labels else [""] * len(model.labels)
    known = [str(v) for v in reference.labels]
    axes["labels"] = match_classes(names, known, np.full(len(known), 1 / len(known)))
    axes |= {"covariates": covariates, "decoder_inputs": inputs}
    state: dict[str, torch.Tensor] = {}
    for name, own in ours.items():
        if name == "gene_of":
            state[name] = own
            continue
        if name == "decoder.shift":
            state[name] = _shifts(own, theirs.get(name), covariates, axes["outputs"], model, reference)
            continue
        axis, dim = axis_of(name)
        source = theirs.get(name)
        if (source is None and name.startswith("label_head")) or (name.endswith(".covariates") and source is None):
            # the reference has one class, or no covariates: nothing to copy, and nothing that these say yet
            state[name] = torch.zeros_like(own)
            continue
        if source is None:
            raise ValueError(_misfit(name, "nothing of that name"))
        made = axes[axis](source, dim) if axis else source.detach().cpu().clone()
        if name in ("log_theta", "log_clump"):
            made[axes[axis].source == NEW] = _usual(theirs[name], theirs)
        if name.startswith("decoder.mean.") and made.shape != own.shape and made.ndim and model.module.output_rank:
            made = _widen(made, own.shape)
        if made.shape != own.shape:
            raise ValueError(_misfit(name, f"shape {tuple(made.shape)} against {tuple(own.shape)}"))
        state[name] = made
    _fold_constants(state, theirs, constant, n_latent)
    if "decoder.shift" in theirs:
        mean = constant[_shift_columns(reference)] @ theirs["decoder.shift"].detach().cpu().numpy()
        if mean.any():
            added = axes["outputs"](torch.as_tensor(mean, dtype=torch.float32))
            state["decoder.mean.bias"] = state["decoder.mean.bias"] + added
    return state


def _usual(values: torch.Tensor, theirs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mean log dispersion (or size of clumps) of a reference's features (or genes), each with the weight of its counts.

    Those of features with few counts are where training found them, near Poisson; most features have few.
    """
    values, bias = values.detach().cpu(), theirs.get("decoder.mean.bias")
    if bias is None or bias.shape != values.shape:
        return values.mean()
    return torch.softmax(bias.detach().cpu().double(), dim=0).to(values.dtype) @ values


def _shift_columns(model: VAE) -> slice:
    columns: slice = model.module.decoder.shift_columns
    return columns


def _shifts(
    own: torch.Tensor,
    theirs: torch.Tensor | None,
    covariates: RowMap,
    outputs: RowMap,
    model: VAE,
    reference: VAE,
) -> torch.Tensor:
    """Shifts of logits: categories along one axis, features or genes along the other."""
    if theirs is None:
        return torch.zeros_like(own)
    mixing = sparse.csr_matrix(covariates.mixing)[_shift_columns(model)][:, _shift_columns(reference)]
    along = RowMap(sparse.csr_matrix(mixing), covariates.source[_shift_columns(model)])
    return outputs(along(theirs, 0), 1)


def _misfit(name: str, what: str) -> str:
    return (
        f"the reference's architecture does not fit: {name} has {what}. Train the reference with this version of isd."
    )


def _widen(made: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Rows for further axes, which say nothing yet."""
    out = made.new_zeros(shape)
    out[tuple(slice(n) for n in made.shape)] = made
    return out


def axis_of(name: str) -> tuple[str, int]:
    """Axis of a tensor that differs between data sets, and its dimension; ``""`` for none."""
    fixed = {
        "encoder.body.0.0.weight": ("features", 0),
        "encoder.body.0.0.covariates": ("covariates", 0),
        "decoder.body.0.0.weight": ("decoder_inputs", 1),
        "log_theta": ("dispersions", 0),
        "log_clump": ("dispersions", 0),
        "decoder.log_pooled": ("shared", 0),
        "decoder.log_concentration": ("multi", 0),
        "label_head.weight": ("labels", 0),
        "label_head.bias": ("labels", 0),
    }
    if name in fixed:
        return fixed[name]
    layers = {
        "decoder.mean.": "outputs",
        "decoder.heads.": "dispersions",
        "decoder.usage.": "shared",
        "decoder.concentration.": "multi",
    }
    for prefix, axis in layers.items():
        if name.startswith(prefix):
            last = name.rsplit(".", 1)[1]
            if name.endswith(("scores.weight", "scores.bias")):
                return "", 0
            return axis, 1 if last == "loadings" else 0
    return "", 0


def match_units(model: VAE, reference: VAE) -> RowMap:
    """Outputs of decoders with genes: genes by name, and isoforms that stand by themselves as features are matched."""
    (codes, names), (theirs, known) = (m._decoder_units(m.split_genes) for m in (model, reference))
    split = model.split_genes
    if not split:
        return match_rows(names, known)
    # isoforms of a gene that is split may start from others of that gene
    ours, of_reference = _unit_genes(model, codes, split), _unit_genes(reference, theirs, split)
    bias = reference.module.decoder.mean.bias.detach().cpu().numpy().astype(float)
    return match_rows(names, known, ours, of_reference, np.exp(bias - bias.max()))


def _unit_genes(model: VAE, unit_of: np.ndarray, split_genes: list[str]) -> np.ndarray:
    """Gene of each unit of one of these genes, missing for others."""
    assert model.gene_names is not None and model.gene_of is not None
    of_unit = np.zeros(int(unit_of.max()) + 1, dtype=np.int64)
    of_unit[unit_of] = model.gene_of
    genes = np.asarray(model.gene_names, dtype=object)[of_unit]
    genes[~strip_version(genes).isin(strip_version(split_genes))] = None
    return genes


def _gene_axes(model: VAE, reference: VAE) -> dict[str, RowMap]:
    units = match_units(model, reference)
    our_names, their_names = (m._decoder_units(m.split_genes)[1] for m in (model, reference))
    ours, theirs = (m.module.shared.cpu().numpy() for m in (model, reference))
    shared = match_rows(
        model.feature_names[ours],
        reference.feature_names[theirs],
        _take(genes_of(model), ours),
        _take(genes_of(reference), theirs),
        pooled_usage(reference)[theirs],
    )
    n, m = model.module.n_multi, reference.module.n_multi
    found = {"outputs": units, "shared": shared, "multi": match_rows(our_names[:n], their_names[:m])}
    if model.module.usage_likelihood != "nb":
        found["dispersions"] = units
    return found


def _take(values: np.ndarray | None, rows: np.ndarray) -> np.ndarray | None:
    return None if values is None else values[rows]


def _fold_constants(
    state: dict[str, torch.Tensor], theirs: Mapping[str, torch.Tensor], constant: np.ndarray, n_latent: int
) -> None:
    """Put what the reference's batches add on average into the biases, where the model does not tell batches apart."""
    if not constant.any():
        return
    weights = torch.as_tensor(constant, dtype=torch.float32)
    columns = theirs["decoder.body.0.0.weight"].detach().cpu()[:, n_latent:]
    state["decoder.body.0.0.bias"] = state["decoder.body.0.0.bias"] + columns @ weights
    state["encoder.body.0.0.bias"] = (
        state["encoder.body.0.0.bias"] + weights @ theirs["encoder.body.0.0.covariates"].detach().cpu()
    )
