"""Models that start from a trained one: what :meth:`isd.model.VAE.from_pretrained` copies, freezes and reports."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
import torch

from isd.model._calibrate import calibrate_dispersion, calibrate_means, calibrate_posterior
from isd.model._calibrate_unknown import fit_label_head, fit_unknown_rows
from isd.model._fields import GENES_KEY, GenesField
from isd.model._files import MODEL_FILE
from isd.model._mudata import isoforms_of
from isd.model._own_axes import add_own_axes
from isd.model._presets import default_vae
from isd.model._transfer import FROM_GENE, RowMap, feature_map, match_units, report, transferred_state
from isd.model._union import hide_unmeasured, widen

if TYPE_CHECKING:
    from anndata import AnnData

    from isd.model._vae import VAE

Part = Literal["encoder", "decoder", "first_layer", "last_layer", "trunk"]
PARTS: tuple[str, ...] = ("encoder", "decoder", "first_layer", "last_layer", "trunk")
VAE_FOLDER = "vae"
#: Standard deviations of the reference's log library size beyond which cells are those of another depth.
FAR = 2.0
#: Precision of the prior on means (counts) below which a reference says little of the cells at hand.
KNOWS_LITTLE = 0.5
#: Share of the features that the reference knows, below which there is a warning.
FEW_SHARED = 0.2
_FIRST = ("encoder.body.0.0.",)
#: What has a row or a column for each feature or gene.
_LAST = (
    "decoder.mean.loadings", "decoder.mean.weight", "decoder.mean.bias", "decoder.shift", "decoder.heads.", "decoder.usage.loadings",
    "decoder.usage.bias", "decoder.log_pooled", "decoder.log_concentration", "decoder.concentration.", "log_theta", "log_clump",
)  # fmt: skip


def is_in_part(name: str, part: str) -> bool:
    """Whether a parameter of a VAE's module belongs to a part that can be frozen.

    Parameters
    ----------
    name
        Name in the module.
    part
        One of ``PARTS``.

    Examples
    --------
    >>> [is_in_part("encoder.body.0.0.weight", part) for part in PARTS]
    [True, False, True, False, False]
    """
    if part in ("encoder", "decoder"):
        return name.startswith(f"{part}.") or (part == "decoder" and name in ("log_theta", "log_clump"))
    if part == "first_layer":
        return name.startswith(_FIRST)
    if part == "last_layer":
        return name.startswith(_LAST)
    return name.startswith(("encoder.", "decoder.")) and not name.startswith(_FIRST + _LAST)


def check_parts(freeze: Sequence[str] | str) -> list[str]:
    """Names of parts to freeze, in their order.

    Raises
    ------
    ValueError
        For a name that is none.
    """
    given = [freeze] if isinstance(freeze, str) else list(freeze)
    unknown = [part for part in given if part not in PARTS]
    if unknown:
        raise ValueError(f"freeze names {unknown}, which is no part of a VAE; choose of {list(PARTS)}.")
    return [part for part in PARTS if part in given]


def resolve_reference(reference: Any, cls: Any) -> VAE:
    """The VAE that a reference is, or holds, or that lies in a folder.

    Raises
    ------
    FileNotFoundError
        If the folder holds no model.
    TypeError
        If the reference is something else.
    ValueError
        If it is not trained.
    """
    if isinstance(reference, str | Path):
        path = Path(reference)
        inner = path / VAE_FOLDER
        # the folder of a latent diffusion model has its VAE inside
        reference = cls.load(inner if (inner / MODEL_FILE).is_file() else path, False, "cpu")
    reference = getattr(reference, "vae", reference)
    if not isinstance(reference, cls):
        raise TypeError(
            f"reference must be an isd.model.{cls.__name__}, a LatentDiffusion, or the folder of one; got "
            f"{type(reference).__name__}."
        )
    if not reference.is_trained:
        raise ValueError("the reference is not trained yet; call reference.train() first.")
    return reference


class PretrainedMixin:
    """What :class:`VAE` can do with a trained model of other data."""

    #: what :meth:`from_pretrained` did; ``None`` for a model that started from nothing
    pretrained_: dict[str, Any] | None = None
    #: parts that training leaves as they are
    frozen_: Sequence[str] = ()
    transfer_report_: pd.DataFrame | None = None

    @classmethod
    def from_pretrained(
        cls,
        reference: VAE | str | Path,
        adata: AnnData,
        *,
        vocabulary: Literal["target", "union"] = "target",
        freeze: Sequence[Part] | Part = (),
        own_axes: int = 12,
        calibrate: bool = True,
        match_labels: bool = True,
        seed: int | None = None,
    ) -> Self:
        r"""A VAE on the features of ``adata`` that starts from one trained on other data, such as an atlas or bulk.

        Weights with a row for each feature are copied by identifier (as it is, then without its version, ``\.\d+$``). A feature
        that the reference does not know starts from the isoforms of its gene that the reference has, each weighed by its usage
        there, where both say which gene a transcript belongs to (``gene_key``, else ``var["gene_id"]``); else from the mean over
        all features. Hidden layers, normalisation, dispersions and their heads are carried over as they are. Genes are matched
        in the same way where the reference's decoder has genes.

        Then the output layer is fitted to the training cells: each feature's mean is moved towards theirs as far as its counts
        tell, by a gamma prior around what the copied model expects whose precision is estimated from all features
        (``pretrained_["precision"]``, in counts: large where the reference is right about these cells, below 1 where it says
        nothing). All dispersions are moved by one number, the most likely one: bulk averages over cells what makes single
        cells differ. All posteriors are widened or narrowed alike, by the evidence bound: an encoder that has learnt of a million
        counts a sample is too sure of a cell of two thousand. Features that the reference does not know are regressed on its
        scores of the training cells (not where it is far from them: ``pretrained_["far"]``), and the head that tells labels is fitted to them. The principal axes of the training cells that the reference lacks are added to its own, with scores that a
        ridge regression finds in what the copied decoder makes of these cells.

        The model can be used at once; :meth:`train` fine-tunes it.

        Parameters
        ----------
        reference
            A trained :class:`VAE`, a :class:`LatentDiffusion` (its VAE), or the folder of either. Not changed.
        adata
            Cells registered with :meth:`setup_anndata`. Labels, batches and covariates are those registered there.
        vocabulary
            ``"target"``: the features of ``adata``. ``"union"``: these, then the reference's others, which keep its weights and take no
            part in training and likelihood, as these cells were not measured for them; generated cells have them. The model's
            ``adata`` is then a new AnnData with columns for them. Not for a decoder with genes.
        freeze
            Parts that :meth:`train` leaves as they are: ``"encoder"``, ``"decoder"``, ``"first_layer"`` (of the encoder: a row
            for each feature), ``"last_layer"`` (of the decoder: what has a row for each feature), ``"trunk"`` (all else of
            both). None by default.
        own_axes
            Principal axes of the training cells to add to the output layer at most; none where the decoder or part of it is
            frozen, or the layer is full.
        calibrate
            Whether to fit means, dispersions, posteriors, unknown features and the label head to the training cells before
            training. Posteriors stay as they are where encoder or trunk are frozen, unknown features where the decoder or its
            last layer are.
        match_labels
            Whether labels of the same name mean the same in both. Say no for numbers of clusters that were found apart.
        seed
            Seed of weights that have no counterpart; ``None`` takes ``isd.settings.seed``.

        Returns
        -------
        A model of the reference's architecture, with :attr:`transfer_report`. Dropout follows the number of cells.

        Raises
        ------
        FileNotFoundError
            If the folder holds no model.
        TypeError
            If the reference is no model.
        ValueError
            If ``adata`` is not registered, the reference is not trained, no feature is shared, the reference's decoder has genes
            and ``adata`` was registered without, or a part has another name.

        Warns
        -----
        UserWarning
            If the reference knows less than a fifth of the features.

        Notes
        -----
        Classes of batches and covariates are matched by name: a new class starts from the mean over the reference's, and where
        the model knows no batches, this mean goes into the biases. The reference's library sizes stay the scale on which
        depth is seen, unless these cells' mean is more than two of its standard deviations away (bulk and single cell).
        Rows that the reference saw in training count as seen (:attr:`train_obs_hash`).

        Examples
        --------
        >>> import isd
        >>> atlas = isd.datasets.simulated(n_obs=120, n_vars=60, n_labels=3)
        >>> isd.model.VAE.setup_anndata(atlas)
        >>> reference = isd.model.VAE(atlas, n_latent=4, n_hidden=16, output_rank=8)
        >>> reference.train(max_steps=20, progress=False)
        >>> mine = atlas[:40, 10:].copy()
        >>> isd.model.VAE.setup_anndata(mine)
        >>> vae = isd.model.VAE.from_pretrained(reference, mine)
        >>> vae.transfer_report["source"].value_counts().to_dict()
        {'copied': 50, 'dropped': 10, 'from gene': 0, 'new': 0}
        >>> vae.train(max_steps=5, progress=False)
        """
        return _pretrained(cls, reference, adata, vocabulary, freeze, own_axes, calibrate, match_labels, seed)

    @property
    def transfer_report(self) -> pd.DataFrame | None:
        """Where each feature's weights started from; ``None`` for a model that started from nothing.

        Columns ``feature``; ``source``: ``"copied"``, ``"from gene"`` (the mean of its gene's isoforms), ``"new"`` (the mean of
        all features) or ``"dropped"`` (a feature of the reference that the model lacks); ``reference``: the reference's name
        of the feature where it is copied or dropped, the gene where it is from the gene; ``measured``: whether the cells were
        measured for it.
        """
        return self.transfer_report_

    @property
    def frozen(self) -> list[str]:
        """Parts that training leaves as they are, by name."""
        return list(self.frozen_)

    def _keep_depth(self: Any, rows: np.ndarray) -> bool:
        """The reference's scale of depth, or the cells' own where they are of another depth altogether (``True``)."""
        own, module = self._log_library()[rows], self.module
        module.n_train.fill_(float(len(rows)))
        far = bool(abs(own.mean() - float(module.library_mean)) > FAR * float(module.library_std))
        if far and not {"encoder", "decoder", "trunk"} & set(self.frozen_):
            module.library_mean.fill_(float(own.mean()))
            module.library_std.fill_(max(float(own.std()), 1e-2))
        return far

    def _apply_frozen(self: Any) -> None:
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(not any(is_in_part(name, part) for part in self.frozen_))

    def _restore_extra(self: Any, meta: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        super()._restore_extra(meta, tensors)  # type: ignore[misc]
        hide_unmeasured(self)
        self._apply_frozen()


def shuffled_pretrained(cls: Any, reference: Any, adata: AnnData, *, order_seed: int, **options: Any) -> Any:
    """:meth:`PretrainedMixin.from_pretrained` with the reference's features in a random order: what knowing nothing gives."""
    settings: dict[str, Any] = {
        "vocabulary": "target",
        "freeze": (),
        "own_axes": 12,
        "calibrate": True,
        "match_labels": True,
        "seed": None,
        **options,
    }
    return _pretrained(cls, reference, adata, **settings, order_seed=order_seed)


def _pretrained(
    cls: Any,
    reference: Any,
    adata: AnnData,
    vocabulary: str,
    freeze: Sequence[str] | str,
    own_axes: int,
    calibrate: bool,
    match_labels: bool,
    seed: int | None,
    order_seed: int | None = None,
) -> Any:
    if own_axes < 0:
        raise ValueError(f"own_axes is {own_axes}; expected a number of axes, 0 for none.")
    if vocabulary not in ("target", "union"):
        raise ValueError(f'vocabulary is {vocabulary!r}; expected "target" or "union".')
    parts = check_parts(freeze)
    model, known = _new_model(cls, reference, adata, parts, own_axes, seed, union=vocabulary == "union")
    features = feature_map(model, known)
    _check_shared(model, known, features)
    state = transferred_state(model, known, features, labels=match_labels, order_seed=order_seed)
    model.module.load_state_dict(state)
    rows = model._split()[0]
    model._set_templates(rows)
    far = model._keep_depth(rows)
    if model.module.decoder.shift is not None and known.module.decoder.shift is None:
        # the reference knows nothing of batches: what the cells at hand say of theirs
        model._start_shifts(rows)
    if model.module.output_rank > known.module.output_rank:
        add_own_axes(model, known.module.output_rank, rows)
    precision, shift = None, 0.0
    if calibrate and model.module.likelihood != "normal":
        outputs = (match_units(model, known) if model.module_params["gene_decoder"] else features).copied
        precision = calibrate_means(model, rows, outputs)
        shift = calibrate_dispersion(model, rows)
        if not {"encoder", "trunk"} & set(parts):
            calibrate_posterior(model, rows)
        far = far or precision < KNOWS_LITTLE
        # scores of a reference that is not right about these cells are no ground for a regression
        if not far and not {"decoder", "last_layer"} & set(parts):
            measured = ~getattr(model, "unmeasured_", np.zeros(len(features.source), dtype=bool))
            fit_unknown_rows(model, rows, ~features.copied & measured, features.source == FROM_GENE)
        fit_label_head(model, rows)
    model.transfer_report_ = report(model, known, features)
    model.pretrained_ = {
        "reference": known.fingerprint,
        "precision": precision,
        "dispersion_shift": shift,
        "far": far,
    }
    model._remember_rows(*model._split())
    model.train_obs_hash_ = np.union1d(model.train_obs_hash_, np.asarray(known.train_obs_hash))
    model._apply_frozen()
    return model


def _new_model(
    cls: Any, reference: Any, adata: AnnData, frozen: list[str], own_axes: int, seed: int | None, *, union: bool
) -> tuple[Any, Any]:
    """A model of the reference's architecture on its own data, with random weights, and the reference."""
    adata = isoforms_of(adata)
    if adata is None or cls._get_most_recent_anndata_manager(adata, required=False) is None:
        raise ValueError(
            f"adata is not registered yet; call isd.model.{cls.__name__}.setup_anndata(adata, ...) first, with the labels, "
            "batches and genes that the new model shall know."
        )
    reference = resolve_reference(reference, cls)
    if "summed_genes" in reference.module_params:
        raise ValueError(
            "the reference reads genes, as SCimilarity published them, and not the transcripts of its data; start from the same "
            "weights: VAE.from_scimilarity(folder, adata)."
        )
    unmeasured = None
    if union:
        if reference.module_params["gene_decoder"] or reference.module.likelihood == "normal":
            raise ValueError(
                'vocabulary="union" needs a reference whose decoder has no genes and gives counts; take vocabulary="target".'
            )
        own = cls._get_most_recent_anndata_manager(adata).registry["setup_args"]
        adata, unmeasured = widen(adata, reference, own["layer"])
        cls.setup_anndata(adata, **{**own, "layer": "X"})
    options = {**reference.module_params, "preset": reference.preset, "seed": seed}
    n_outputs = adata.n_vars
    if options["gene_decoder"]:
        registry = cls._get_most_recent_anndata_manager(adata).registry
        if registry["setup_args"].get("gene_key") is None:
            raise ValueError(
                f"the reference's decoder has genes (gene_key={reference.gene_key!r}), and adata was registered without; name "
                'the column of adata.var that holds the gene of each transcript: setup_anndata(adata, ..., gene_key="gene_id").'
            )
        n_outputs = len(registry["field_registries"][GENES_KEY]["state_registry"][GenesField.NAMES])
    rank = reference.module.output_rank
    if rank and not {"decoder", "last_layer", "trunk"} & set(frozen):
        # a layer of as many axes as it has inputs or outputs would be a full one
        options["output_rank"] = max(rank, min(rank + own_axes, min(options["n_hidden"], n_outputs) - 1))
    model = cls(adata, **options)
    if reference.preset == "default":
        # what holds back overfitting follows the cells at hand and not those of the reference
        dropout = default_vae(*model._size())["dropout"]
        if dropout != options["dropout"]:
            model = cls(adata, **{**options, "dropout": dropout})
    model.frozen_ = frozen
    model.is_trained_ = True
    if unmeasured is not None:
        model.unmeasured_ = unmeasured
        hide_unmeasured(model)
    return model, reference


def _check_shared(model: Any, reference: Any, features: RowMap) -> None:
    measured = ~getattr(model, "unmeasured_", np.zeros(len(features.source), dtype=bool))
    n, shared = int(measured.sum()), int((features.copied & measured).sum())
    shown = (", ".join(map(str, names[:3])) for names in (model.feature_names, reference.feature_names))
    if not shared:
        ours, theirs = shown
        raise ValueError(
            f"none of the {n} features of adata ({ours}) is one of the reference's {reference.module.n_input} ({theirs}). "
            "Features are matched by identifier, versions aside: check species and naming (isd.pp.map_ids)."
        )
    if shared < FEW_SHARED * n:
        warnings.warn(
            f"the reference knows {shared} of the {n} features of adata; the others start from their gene or from the mean. "
            "isd.tl.transfer_gain says whether that helps.",
            UserWarning,
            stacklevel=4,
        )
