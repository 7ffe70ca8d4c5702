"""What VAE, LatentDiffusion and Classifier share: registration, labels, saving and loading."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import rich.pretty  # noqa: F401  scvi's view_anndata_setup uses it without importing it
from anndata import AnnData
from pandas.api.types import infer_dtype
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data._utils import _check_if_view
from scvi.data.fields import (
    CategoricalJointObsField,
    CategoricalObsField,
    LayerField,
    NumericalJointObsField,
    NumericalObsField,
)
from scvi.utils import setup_anndata_dsp

from isd._constants import GENE_ID, SPLIT_KEY
from isd._hash import fingerprint, hash_names
from isd.model._fields import GENES_KEY, GenesField, LabelsField
from isd.model._mudata import prepare_mudata
from isd.model._saving import Saving
from isd.model._split import resolve_split
from isd.model._validation import as_csr_in_place, check_features, validate_adata
from isd.pp._mudata import ISOFORM
from isd.settings import settings

_FIELDS, _STATE = "field_registries", "state_registry"


@contextmanager
def quiet_setup() -> Iterator[None]:
    """Hide scvi's warnings on setup that nobody can act on: small categories by the name of an internal column."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*has fewer than 3 cells.*", category=UserWarning)
        yield


class IsdModel(Saving):
    """Base of the models of :mod:`isd.model`."""

    #: colours of the labels where no AnnData is attached
    _colors: list[str] | None = None
    _adata: AnnData | None
    _var: pd.DataFrame | None = None

    # -- registration ------------------------------------------------------------------------------------------

    @classmethod
    @setup_anndata_dsp.dedent
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        labels_key: str | None = "leiden",
        batch_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
        size_factor_key: str | None = None,
        gene_key: str | None = None,
        unlabeled_category: str = "Unknown",
        **kwargs: Any,
    ) -> None:
        """Register an AnnData with the model; one argument suffices.

        Parameters
        ----------
        adata
            Cells or samples by transcripts. Keeps all that it has; the slots below are added.
        layer
            Layer of raw counts. ``None`` takes ``"counts"`` if there, else ``X``; ``"X"`` takes ``X``.
        labels_key
            Column of ``obs`` to condition on, ``None`` for one class. The order of its categories is kept.
        batch_key
            Column of ``obs`` with batches.
        categorical_covariate_keys, continuous_covariate_keys
            Further columns of ``obs`` that encoder and decoder see; categorical ones condition the latent model too.
        size_factor_key
            Column of ``obs`` to use in place of the total counts.
        gene_key
            Column of ``var`` with the gene of each transcript, such as ``"gene_id"``: the model then knows isoforms of a
            gene as such. ``None`` where genes are not known. A transcript without a gene is a gene of its own.
        unlabeled_category
            Value of ``labels_key`` that means "no label"; missing values mean it anyhow.
        **kwargs
            Passed to :meth:`scvi.data.AnnDataManager.register_fields`.

        Raises
        ------
        KeyError
            If a key or layer is absent.
        ValueError
            If the values are no counts (negative, NaN, normalised, fractional), a cell has no counts, there are fewer
            than two cells, names of features repeat, or ``adata`` is a view.

        Notes
        -----
        Writes ``obs["_scvi_labels"]``, ``obs["_scvi_batch"]``, ``uns["_scvi_uuid"]`` and
        ``uns["_scvi_manager_uuid"]``, ``obsm["_scvi_extra_*"]`` for covariates. Counts that are csc or a sparse array
        are replaced by the same values as ``csr_matrix``; values that a csr matrix stores twice are added up.

        Examples
        --------
        >>> import isd
        >>> adata = isd.datasets.simulated(n_obs=60, n_vars=50, n_labels=2)
        >>> isd.model.VAE.setup_anndata(adata)
        """
        setup_method_args = cls._get_setup_method_args(**locals())
        resolved = validate_adata(
            adata,
            layer=layer,
            labels_key=None if kwargs.get("source_registry") is not None else labels_key,
            batch_key=batch_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
            size_factor_key=size_factor_key,
            gene_key=None if kwargs.get("source_registry") is not None else gene_key,
            unlabeled_category=unlabeled_category,
        )
        as_csr_in_place(adata, resolved)
        # what was found is written down: a copy with other layers must not be read from another place
        setup_method_args["setup_args"]["layer"] = "X" if resolved is None else resolved
        fields = [
            LayerField(REGISTRY_KEYS.X_KEY, resolved, is_count_data=True),
            LabelsField(REGISTRY_KEYS.LABELS_KEY, labels_key, unlabeled_category),
            CategoricalObsField(REGISTRY_KEYS.BATCH_KEY, batch_key),
            CategoricalJointObsField(REGISTRY_KEYS.CAT_COVS_KEY, categorical_covariate_keys),
            NumericalJointObsField(REGISTRY_KEYS.CONT_COVS_KEY, continuous_covariate_keys),
            NumericalObsField(REGISTRY_KEYS.SIZE_FACTOR_KEY, size_factor_key, required=False),
        ]
        if gene_key is not None:
            fields.append(GenesField(GENES_KEY, gene_key))
        manager = AnnDataManager(fields=fields, setup_method_args=setup_method_args)
        with quiet_setup():
            manager.register_fields(adata, **kwargs)
        cls.register_manager(manager)

    @classmethod
    def setup_mudata(
        cls,
        mdata: Any,
        *,
        isoform: str = ISOFORM,
        gene: str | None = None,
        gene_key: str = GENE_ID,
        gene_layer: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Register the isoforms of a MuData, and the genes of the same cells where they were measured besides.

        The VAE is a model of the isoforms' counts. A ``gene`` modality feeds the gene encoder alone
        (:meth:`VAE.fit_gene_encoder`): the usage of isoforms is then told by the principal components of *its* counts, in
        fitting and in :func:`isd.tl.differential_usage`, and :func:`isd.tl.infer_isoforms` is to be given gene counts of
        that kind. Name it where it is deeper than, or another measurement than, the sums of the isoforms; without it these sums
        tell.

        Parameters
        ----------
        mdata
            MuData with a modality of transcripts; :func:`isd.pp.to_mudata` makes one.
        isoform
            Name of that modality.
        gene
            Name of a modality with raw counts of genes of the same cells, in any order; genes are matched as in
            :func:`isd.tl.infer_isoforms`. ``None``: the sums of the isoforms.
        gene_key
            Column of the isoforms' ``var`` that says which gene a transcript belongs to.
        gene_layer
            Layer of the counts of genes; ``None`` takes ``"counts"`` if there, else ``X``.
        **kwargs
            Of :meth:`setup_anndata`, for the isoforms (``layer``, ``labels_key``, ``batch_key``, ...). Columns of
            ``mdata.obs`` serve as keys, too.

        Raises
        ------
        TypeError
            If ``mdata`` is no MuData.
        KeyError
            If a modality, layer or key is absent.
        ValueError
            If cells of the isoforms are not in the gene modality, or values are no counts.

        Notes
        -----
        Writes, besides what :meth:`setup_anndata` writes to the isoforms' AnnData, ``obsm["isd_gene_counts"]`` there (csr, a
        column for each of its genes), columns of ``mdata.obs`` that it lacks, and ``mdata.uns["_isd_isoform"]``.

        Examples
        --------
        >>> import isd
        >>> mdata = isd.pp.to_mudata(isd.datasets.simulated(n_obs=80, n_vars=60, n_labels=2))
        >>> isd.model.VAE.setup_mudata(mdata)
        >>> vae = isd.model.VAE(mdata, n_latent=4, n_hidden=16)
        """
        cls.setup_anndata(prepare_mudata(mdata, isoform, gene, gene_layer, gene_key), gene_key=gene_key, **kwargs)

    def _validate_anndata(self, adata: AnnData | None = None, copy_if_view: bool = True) -> AnnData:
        if adata is None and self.adata is None:
            raise ValueError(
                f"this {type(self).__name__} was loaded without data; give adata= to this call, or load it with "
                f"{type(self).__name__}.load(folder, adata)."
            )
        attached = self._adata
        if adata is not None and adata is not attached:
            check_features(self.feature_names, adata.var_names)
            managers = self._per_instance_manager_store.get(self.id, {}).values()
            if not any(manager.adata is adata for manager in managers):
                # data that the model sees for the first time are checked like those that it was set up with
                _check_if_view(adata, copy_if_view=copy_if_view)
                keys = {
                    k: v
                    for k, v in self.setup_args.items()
                    if k not in ("labels_key", "gene_key", "unlabeled_category")
                }
                as_csr_in_place(adata, validate_adata(adata, labels_key=None, min_obs=1, **keys))
        logger = logging.getLogger("scvi.model.base._base_model")
        level = logger.level
        logger.setLevel(logging.WARNING)  # that a setup is transferred is what anyone would expect here
        try:
            with quiet_setup():
                adata = super()._validate_anndata(adata, copy_if_view=copy_if_view)
        finally:
            logger.setLevel(level)
        # scvi makes the first data that a model without data is asked about the model's own
        self._adata = attached
        return adata

    def _attach_data(self, adata: AnnData) -> None:
        """Make data the model's own."""
        self._validate_anndata(adata)
        self._adata = adata
        self._adata_manager = self.get_anndata_manager(adata, required=True)

    # -- what was registered -----------------------------------------------------------------------------------

    def _state(self, registry_key: str) -> dict[str, Any]:
        return self.registry_[_FIELDS][registry_key][_STATE]

    @property
    def setup_args(self) -> dict[str, Any]:
        """Arguments of :meth:`setup_anndata`, with the layer that was found."""
        return self.registry_["setup_args"]

    @property
    def layer(self) -> str | None:
        """Layer of counts, ``None`` for ``X``."""
        layer = self.setup_args["layer"]
        return None if layer == "X" else layer

    @property
    def labels_key(self) -> str | None:
        """Column of labels, ``None`` for one class."""
        return self.setup_args["labels_key"]

    @property
    def labels(self) -> np.ndarray:
        """Labels in the order of their categories; the code of a label is its position here."""
        return np.asarray(self._state(REGISTRY_KEYS.LABELS_KEY)["categorical_mapping"], dtype=object)

    @property
    def label_colors(self) -> list[str] | None:
        """Colours of the labels, as scanpy keeps them in ``uns[f"{labels_key}_colors"]``."""
        if self.labels_key is None:
            return None
        if self._adata is not None and self.labels_key in self._adata.obs:
            colors = self._adata.uns.get(f"{self.labels_key}_colors")
            column = self._adata.obs[self.labels_key]
            if colors is not None and isinstance(column.dtype, pd.CategoricalDtype):
                by_label = dict(zip(column.cat.categories, colors, strict=False))
                if all(label in by_label for label in self.labels):
                    return [str(by_label[label]) for label in self.labels]
        return self._colors

    @property
    def batches(self) -> np.ndarray:
        """Batches in the order of their codes."""
        return np.asarray(self._state(REGISTRY_KEYS.BATCH_KEY)["categorical_mapping"], dtype=object)

    @property
    def covariate_categories(self) -> dict[str, np.ndarray]:
        """Categories of each categorical covariate."""
        state = self._state(REGISTRY_KEYS.CAT_COVS_KEY)
        return {k: np.asarray(v, dtype=object) for k, v in state.get("mappings", {}).items()}

    @property
    def n_categories(self) -> tuple[int, ...]:
        """Number of labels, of batches, and of each categorical covariate."""
        extra = [len(v) for v in self.covariate_categories.values()]
        return (len(self.labels), len(self.batches), *extra)

    @property
    def n_continuous_cov(self) -> int:
        """Number of continuous covariates."""
        return int(self.summary_stats.get("n_extra_continuous_covs", 0))

    @property
    def feature_names(self) -> pd.Index:
        """Names of the features, in the model's order."""
        return pd.Index(np.asarray(self._state(REGISTRY_KEYS.X_KEY)["column_names"], dtype=object))

    @property
    def feature_table(self) -> pd.DataFrame:
        """Text columns of ``var`` (``gene_id``, ``gene_name``, ...), by feature name."""
        if self._var is not None:
            return self._var
        if self._adata is None:
            return pd.DataFrame(index=self.feature_names)
        return text_columns(self._adata.var)

    @property
    def gene_key(self) -> str | None:
        """Column of ``var`` with the gene of each transcript; ``None`` where genes are not known."""
        return self.setup_args.get("gene_key")

    @property
    def gene_names(self) -> pd.Index | None:
        """Genes in the model's order, those with several isoforms first; ``None`` where genes are not known."""
        if self.gene_key is None:
            return None
        return pd.Index(np.asarray(self._state(GENES_KEY)[GenesField.NAMES], dtype=object))

    @property
    def gene_of(self) -> np.ndarray | None:
        """Position in :attr:`gene_names` of each transcript's gene, shape ``(n_vars,)``."""
        if self.gene_key is None:
            return None
        return np.asarray(self._state(GENES_KEY)[GenesField.CODES], dtype=np.int64)

    @property
    def fingerprint(self) -> str | None:
        """Digest of the weights: equal for two models only if they compute the same. ``None`` before training."""
        if not self.is_trained_:
            return None
        parts: list[str | np.ndarray] = [type(self).__name__]
        for name, value in sorted(self.module.state_dict().items()):
            parts += [name, value.detach().cpu().numpy()]
        return fingerprint(*parts)

    def label_codes(self, adata: AnnData | None = None) -> np.ndarray:
        """Code of each cell's label; ``len(labels)`` where it has none.

        Examples
        --------
        >>> import isd
        >>> adata = isd.datasets.simulated(n_obs=60, n_vars=50, n_labels=2)
        >>> isd.model.VAE.setup_anndata(adata)
        >>> vae = isd.model.VAE(adata, n_latent=4, n_hidden=16)
        >>> bool((vae.labels[vae.label_codes()] == adata.obs["leiden"]).all())
        True
        """
        adata = self._validate_anndata(adata)  # another model may have written its own codes there
        return np.asarray(self.get_from_registry(adata, REGISTRY_KEYS.LABELS_KEY)).ravel().astype(np.int64)

    def rows_of(self, adata: AnnData) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Rows for training, validation and test that the model was trained with, if ``adata`` has the same rows.

        Parameters
        ----------
        adata
            Data that may be those of the training.

        Returns
        -------
        Three arrays of positions, or ``None`` where the names of the rows are others.

        Examples
        --------
        >>> import isd
        >>> adata = isd.datasets.simulated(n_obs=60, n_vars=50, n_labels=2)
        >>> isd.model.VAE.setup_anndata(adata)
        >>> vae = isd.model.VAE(adata, n_latent=4, n_hidden=16)
        >>> vae.train(max_steps=2, progress=False)
        >>> [len(rows) for rows in vae.rows_of(adata)]
        [54, 6, 0]
        >>> vae.rows_of(adata[:20]) is None
        True
        """
        parts = (self.train_indices_, self.validation_indices_, self.test_indices_)
        if any(p is None for p in parts) or self.train_obs_hash is None:
            return None
        train, validation, test = (np.asarray(p, dtype=int) for p in parts)
        if len(train) + len(validation) + len(test) != adata.n_obs:
            return None
        seen = hash_names(adata.obs_names[np.concatenate([train, validation])])
        return (train, validation, test) if np.isin(seen, self.train_obs_hash).all() else None

    def _split(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows for training, validation and test of the attached data: those of an earlier training, where it had any.

        A split in ``obs`` goes before.
        """
        rows = None if SPLIT_KEY in self.adata.obs else self.rows_of(self.adata)
        if rows is not None:
            return rows
        return resolve_split(self.adata, self.label_codes(), seed=settings.seed)

    @property
    def train_obs_hash(self) -> np.ndarray | None:
        """Sorted 64-bit hashes of the names of the rows that training or its model selection saw."""
        return getattr(self, "train_obs_hash_", None)

    def _remember_rows(self, train: np.ndarray, validation: np.ndarray, test: np.ndarray) -> None:
        """Keep the rows of a training; what an earlier training saw stays seen."""
        self.train_indices_, self.validation_indices_, self.test_indices_ = train, validation, test
        seen = hash_names(self.adata.obs_names[np.concatenate([train, validation]).astype(int)])
        before = np.zeros(0, dtype=np.uint64) if self.train_obs_hash is None else self.train_obs_hash
        self.train_obs_hash_ = np.union1d(before, seen)


def text_columns(var: pd.DataFrame) -> pd.DataFrame:
    """Columns of ``var`` that describe features in words; numbers there are statistics of the real data."""
    keep = [c for c in var.columns if infer_dtype(var[c].astype(object), skipna=True) == "string"]
    return pd.DataFrame({str(c): var[c].astype(object).to_numpy() for c in keep}, index=var.index.astype(str))
