"""What a VAE reads of its cells, and what its module starts from."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scvi import REGISTRY_KEYS

from isd._counts import row_sums
from isd.model._covariate_shifts import covariate_shifts
from isd.model._dispersions import likely_clump, moments
from isd.model._gene_expression import GeneExpression
from isd.model._statistics import feature_share, principal_loadings, usage_loadings
from isd.module import GeneVAEModule


class Start(GeneExpression):
    """Inputs of the cells beside their counts, and the start of a training."""

    def _codes(self, adata: AnnData | None = None) -> np.ndarray:
        """Codes of label, batch and categorical covariates, shape ``(n_obs, n_attributes)``."""
        adata = self._validate_anndata(adata)
        columns = [
            self.label_codes(adata)[:, None],
            np.asarray(self.get_from_registry(adata, REGISTRY_KEYS.BATCH_KEY)).reshape(-1, 1),
        ]
        if self.covariate_categories:
            columns.append(np.asarray(self.get_from_registry(adata, REGISTRY_KEYS.CAT_COVS_KEY)))
        return np.concatenate(columns, axis=1).astype(np.int64)

    def _log_library(self, adata: AnnData | None = None) -> np.ndarray:
        adata = self.adata if adata is None else adata
        if self.setup_args.get("size_factor_key") is not None:
            factors = np.asarray(self.get_from_registry(adata, REGISTRY_KEYS.SIZE_FACTOR_KEY), dtype=float).ravel()
            return np.log(factors * float(self.module.size_factor_scale))
        return np.log(np.maximum(row_sums(self.get_from_registry(adata, REGISTRY_KEYS.X_KEY)), 1.0))

    def _continuous(self, adata: AnnData | None = None) -> np.ndarray | None:
        if not self.n_continuous_cov:
            return None
        adata = self.adata if adata is None else adata
        return np.asarray(self.get_from_registry(adata, REGISTRY_KEYS.CONT_COVS_KEY), dtype=np.float32)

    def _set_templates(self, rows: np.ndarray) -> None:
        """Keep rows that stand in for what generation is not told: depth, batch, covariates."""
        self.template_codes_ = self._codes()[rows]
        self.template_log_library_ = self._log_library()[rows].astype(np.float32)
        continuous = self._continuous()
        if continuous is not None:
            self.template_continuous_ = continuous[rows]

    def _start(self, train: np.ndarray) -> None:
        """Start the module from the training rows: means, dispersions, shifts, and axes of the output layers."""
        counts = self.get_from_registry(self.adata, REGISTRY_KEYS.X_KEY)
        self._set_statistics(train)
        if self.module.decoder.shift is not None:
            self._start_shifts(train)
        units = self._unit_sums()
        codes = self._codes()[train]
        if hasattr(self.module, "log_theta"):
            library = np.exp(self._log_library()[train])
            # genes have dispersions where isoforms have a distribution given their gene, and else isoforms
            groups = units if self.module.n_dispersions != counts.shape[1] else None
            found = moments(counts, train, library, groups=groups, labels=codes[:, 0])
            clump = 0.0 if self.module.log_clump is None else likely_clump(found)
            self.module.set_dispersions(found.dispersions(clump), clump)
        if rank := self.module.output_rank:
            among = None if self.module.decoder.shift is None else codes[:, 1:]
            self.module.set_loadings(
                principal_loadings(counts, train, rank, groups=units, labels=codes[:, 0], among=among)
            )
        if isinstance(self.module, GeneVAEModule):
            unit_of = self._decoder_units(self.split_genes)[0]
            shrinkage, rank = self.module_params["usage_shrinkage"], self.module.usage_rank
            self.module.set_usage_loadings(usage_loadings(counts, train, unit_of, rank, shrinkage=shrinkage))

    def _set_statistics(self, train: np.ndarray) -> None:
        """Give the module what it needs to know of the training rows."""
        counts = self.get_from_registry(self.adata, REGISTRY_KEYS.X_KEY)
        totals = row_sums(counts)[train]
        if self.setup_args.get("size_factor_key") is not None:
            factors = np.asarray(self.get_from_registry(self.adata, REGISTRY_KEYS.SIZE_FACTOR_KEY), dtype=float).ravel()
            self.module.size_factor_scale.fill_(totals.sum() / factors[train].sum())
        self.module.set_training_statistics(self._log_library()[train], feature_share(counts, train), totals.sum())

    def _start_shifts(self, rows: np.ndarray) -> None:
        """Start what batches and categories shift from what the training cells say."""
        counts, codes = self.get_from_registry(self.adata, REGISTRY_KEYS.X_KEY), self._codes()[rows]
        units = self._unit_sums()
        self.module.set_shifts(
            covariate_shifts(counts, rows, codes[:, 0], codes[:, 1:], self.n_categories[1:], groups=units)
        )
