"""The variational autoencoder of counts that users hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from anndata import AnnData
from scvi import REGISTRY_KEYS

from isd._counts import row_sums
from isd.model._coding import Coding
from isd.model._gene_encoder import GeneEncoderMixin
from isd.model._gene_expression import (
    refuse_usage_options,
    use_gene_decoder,
)
from isd.model._keep_best import ENOUGH_VALIDATION, KeepBest
from isd.model._loading import Reader, SparseDataSplitter, check_reader
from isd.model._mudata import isoforms_of
from isd.model._presets import (
    PUBLISHED,
    Preset,
    check_preset,
    default_vae,
    default_vae_train,
    pretrained_train,
    resolve,
)
from isd.model._pretrained import PretrainedMixin
from isd.model._scimilarity import FromSCimilarity
from isd.model._settle import LRSchedule, settle
from isd.model._statistics import density
from isd.model._training import fit, seeded
from isd.model._union import kept_unmeasured
from isd.module import GeneVAEModule, SummedVAEModule, VAEModule
from isd.module._vae import DENSE_ABOVE

#: folder of a VAE in that of its diffusion model
VAE_FOLDER = "vae"


class VAE(FromSCimilarity, PretrainedMixin, GeneEncoderMixin, Coding):
    """Variational autoencoder of isoform counts.

    Parameters
    ----------
    adata
        Data registered with :meth:`setup_anndata`, or a MuData registered with :meth:`setup_mudata`.
    n_hidden, n_latent, n_layers
        Width and depth of encoder and decoder, width of the latent. ``None``: latent 32, two layers, width 128 below
        1,000 training cells or 100 counts per feature, else 256.
    likelihood
        ``"nb"`` (default), ``"zinb"``, ``"poisson"``, or ``"normal"``: mean squared error on log-normalised values,
        which gives no counts.
    dispersion
        ``"cell"`` (per feature and cell) or ``"feature"``.
    clumps
        Whether counts come in clumps, whose mean size is learnt for each feature: cells have fewer single counts, and more of
        two and three, than a negative binomial says (:class:`isd.module.ClumpedNegativeBinomial`). ``None``: yes, with
        ``likelihood="nb"``; other likelihoods have none.
    dropout
        Dropout in encoder and decoder. ``None``: 0.1 below 5,000 training cells (200 where counts are deep, as of bulk), else none.
    output_rank, dispersion_rank
        Rank of the decoder's output layers, for means and for dispersion; 0 for full layers. ``None``: 32 and 8. The
        layer for means starts from the principal axes of the training cells.
    shrinkage, dispersion_shrinkage
        Precision of the normal priors on how far a feature's logits are from their mean, and on what a cell adds to
        the log dispersion of a feature; 0 for none. ``None``: 5 and 10. Features with few counts stay near their mean;
        those with many are hardly held back.
    label_weight
        Weight of the log-likelihood of a cell's label given its latent; 0 for an autoencoder that does not see
        labels. ``None``: 5.
    covariate_shift
        Whether batches and categorical covariates shift each feature's logit by a number of its own, whatever the
        latent, besides entering encoder and decoder. ``None``: yes, where there are any.
    gene_decoder
        Whether the decoder gives genes a share of the counts and isoforms a share of their gene
        (:class:`isd.module.GeneVAEModule`); needs ``gene_key`` in :meth:`setup_anndata`. ``None``: where there is one and
        counts have a negative binomial or Poisson likelihood; but not above 20,000 transcripts where training cells say that
        ``usage_likelihood`` is ``"nb"``, which is slow there and brings the likelihood nothing over a decoder without genes.
    split_genes
        Names of genes whose isoforms stand by themselves in a decoder with genes, as in one without. ``None``: none of them where
        ``usage_likelihood`` is given; else see there.
    preset
        ``"default"`` or ``"published"``, the autoencoder of the starting project: three layers of 1024 with batch norm
        and PReLU, 128 latents on the unit sphere, mean squared error.
    seed
        Seed of the initial weights; ``None`` takes ``isd.settings.seed``.
    registry
        Registry of a saved model, where there is no ``adata``.
    **module_kwargs
        Further arguments of :class:`isd.module.VAEModule` (``norm``, ``activation``, ``deterministic``,
        ``l2_normalize``, ``use_library``), and with genes those of :class:`isd.module.GeneVAEModule`
        (``usage_likelihood``, ``usage_rank``, ``usage_shrinkage``, ``concentration_rank``, ``concentration_shrinkage``). Without
        ``usage_likelihood``, it is what is likelier where half of the training cells (1,000 at most) tell others:
        ``"dirichlet-multinomial"``, whose isoforms share their gene's spread, or ``"nb"``, each isoform by itself. Where the two are
        alike, some genes have the first, and the others are ``split_genes``.

    Raises
    ------
    ValueError
        If ``gene_decoder=True`` and there are no genes, none of them has several isoforms, or the likelihood has no
        gene level; if an option of usage is given without genes.

    Examples
    --------
    >>> import isd
    >>> adata = isd.datasets.simulated(n_obs=80, n_vars=60, n_labels=2)
    >>> isd.model.VAE.setup_anndata(adata)
    >>> vae = isd.model.VAE(adata, n_latent=4, n_hidden=16)
    >>> vae.train(max_steps=5, progress=False)
    >>> vae.get_latent_representation().shape
    (80, 4)
    >>> mean, std = vae.encode_distribution()
    >>> vae.decode(mean[:3], library_size=100, seed=0).sum(axis=1).A1.tolist()
    [100.0, 100.0, 100.0]
    >>> vae.get_normalized_expression(indices=[0, 1]).shape
    (2, 60)
    >>> vae.posterior_predictive_sample(indices=[0, 1], seed=0).shape, vae.sample_prior(5, seed=0).shape
    ((2, 60), (5, 60))
    """

    _module_cls = VAEModule

    def __init__(
        self,
        adata: AnnData | None = None,
        *,
        n_hidden: int | None = None,
        n_latent: int | None = None,
        n_layers: int | None = None,
        likelihood: Literal["nb", "zinb", "poisson", "normal"] | None = None,
        dispersion: Literal["cell", "feature"] | None = None,
        dropout: float | None = None,
        clumps: bool | None = None,
        output_rank: int | None = None,
        dispersion_rank: int | None = None,
        shrinkage: float | None = None,
        dispersion_shrinkage: float | None = None,
        label_weight: float | None = None,
        covariate_shift: bool | None = None,
        gene_decoder: bool | None = None,
        split_genes: Sequence[str] | None = None,
        preset: Preset = "default",
        seed: int | None = None,
        registry: dict[str, Any] | None = None,
        **module_kwargs: Any,
    ) -> None:
        adata = isoforms_of(adata)
        super().__init__(adata, registry)
        check_preset(preset)
        given = {
            "n_hidden": n_hidden,
            "n_latent": n_latent,
            "n_layers": n_layers,
            "likelihood": likelihood,
            "dispersion": dispersion,
            "clumps": clumps,
            "dropout": dropout,
            "output_rank": output_rank,
            "dispersion_rank": dispersion_rank,
            "shrinkage": shrinkage,
            "dispersion_shrinkage": dispersion_shrinkage,
            "label_weight": label_weight,
            "covariate_shift": covariate_shift,
            "split_genes": None if split_genes is None else [str(name) for name in split_genes],
            **module_kwargs,
        }
        rule = PUBLISHED["vae"] if preset == "published" else default_vae(*self._size())
        self.preset = preset
        params = resolve(given, rule)
        with_genes = use_gene_decoder(gene_decoder, params["likelihood"], self.gene_key, self.gene_of)
        if with_genes:
            with_genes, params = self._with_usage(params, gene_decoder, self._size()[0])
        split_genes = params.pop("split_genes", None)
        if with_genes:
            params["gene_of"] = unit_of = self._decoder_units(split_genes)[0]
            if (np.bincount(unit_of) < 2).all():
                raise ValueError(
                    "split_genes names all genes that have several transcripts here: none is left to share its spread. "
                    "Name fewer, or give gene_decoder=False."
                )
        else:
            refuse_usage_options(params if split_genes is None else {**params, "split_genes": split_genes})
        # of from_scimilarity
        summed = params.pop("summed_genes", None)
        module_cls = GeneVAEModule if with_genes else VAEModule if summed is None else SummedVAEModule
        with seeded(seed):
            self.module = module_cls(
                int(self.summary_stats["n_vars"]),
                n_batch=len(self.batches),
                n_labels=len(self.labels),
                n_cats_per_cov=self.n_categories[2:],
                n_continuous_cov=self.n_continuous_cov,
                use_size_factor=self.setup_args.get("size_factor_key") is not None,
                **params,
                **(summed or {}),
            )
        params.pop("gene_of", None)
        self.module_params = {**params, "gene_decoder": with_genes}
        if split_genes:
            self.module_params["split_genes"] = split_genes
        if summed is not None:
            self.module_params["summed_genes"] = summed
        self.module.eval()
        self.init_params_ = {"kwargs": {}, "non_kwargs": {**self.module_params, "preset": preset}}
        self._model_summary_string = (
            f"isd VAE: {self.module_params['likelihood']}, {self.module_params['n_latent']} latents, "
            f"{self.module_params['n_layers']} layers of {self.module_params['n_hidden']}"
            f"{f', {len(self.gene_names)} genes' if with_genes and self.gene_names is not None else ''}"
        )

    # -- training ----------------------------------------------------------------------------------------------

    def _size(self) -> tuple[int, float]:
        """What default settings follow: number of training cells, and counts of a feature in all of them."""
        if self._adata is None:
            return 0, np.inf
        rows = self._split()[0]
        some = np.sort(np.random.default_rng(0).choice(rows, min(len(rows), 1000), replace=False))
        depth = float(row_sums(self.get_from_registry(self.adata, REGISTRY_KEYS.X_KEY)[some]).mean())
        return len(rows), len(rows) * depth / self.adata.n_vars

    def _train_rule(self) -> dict[str, Any]:
        """Settings of a training where it is told nothing else."""
        rule = PUBLISHED["vae_train"] if self.preset == "published" else default_vae_train(*self._size())
        if self.fine_tuning_ is not None:
            return rule | self.fine_tuning_
        if self.pretrained_ is None:
            return rule
        return pretrained_train(rule, self._size()[0], far=bool(self.pretrained_.get("far")))

    def train(
        self,
        max_epochs: int | None = None,
        *,
        max_steps: int | None = None,
        max_minutes: float | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
        lr_schedule: LRSchedule | None = None,
        kl_warmup: float | None = None,
        max_kl_weight: float = 1.0,
        dispersion_lr: float = 1e-2,
        early_stopping: bool | None = None,
        early_stopping_patience: int = 5,
        checkpoint_every: int | None = None,
        checkpoint_dir: str | Path | None = None,
        resume: bool | str | Path | None = None,
        log_every: int = 10,
        sparse: bool | None = None,
        gene_encoder: bool | None = None,
        reader: Reader = "rows",
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        progress: bool | None = None,
        seed: int | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train on the rows that ``obs["isd_split"]`` marks as train, or on 90% of the rows without it.

        Parameters
        ----------
        max_epochs, max_steps, max_minutes
            Length of the training; steps and minutes may be given together, the first that is reached ends it, and
            the learning rate anneals to whichever comes first. ``None`` follows the number of training cells:
            5 steps for 2 cells below 500 (100 at least, 800 at most; deep counts as of bulk 800 below 200, then 1,600), 1,600 below
            1,000 cells, 2,000 below 5,000 (1,500 with fewer than 100 counts per feature), then about 40 epochs. After
            :meth:`from_pretrained`, half of that, a quarter below 200 cells.
        batch_size, lr, weight_decay, lr_schedule
            Of the optimiser (AdamW); ``None`` follows the preset. After :meth:`from_pretrained`, ``lr`` is 3e-4, but 1e-3 for
            200 training cells or more where the reference is of another depth (bulk) or its means say nothing of these cells
            (``pretrained_["far"]``). Several processes split each batch.
        kl_warmup
            Share of the training over which the weight of the KL divergence rises (default 0.3; 0 after
            :meth:`from_pretrained`).
        max_kl_weight
            Final weight of the KL divergence.
        dispersion_lr
            Learning rate of the log dispersion; log concentrations of usage have twice that.
        early_stopping, early_stopping_patience
            Stop when the loss of the validation cells has not improved for so many validations, and take back the weights
            that were best. ``None``: off, because a schedule that is cut off is worse than a shorter one, but on after
            :meth:`from_pretrained` and :meth:`from_scimilarity` where there are at least 20 validation cells.
        checkpoint_every, checkpoint_dir
            Save the model every so many steps to this folder, and with it the state that the training needs to go on. Without
            ``checkpoint_every``, ten times. The folder holds a model as :meth:`save` writes it, at any time.
        resume
            ``True``: go on with the training in ``checkpoint_dir``, if there is one, to the same weights as without the
            interruption (bit for bit on a CPU); a folder: with that in it. ``max_minutes`` is then the length of this call,
            and the learning rate follows the steps of the whole. ``False``: begin anew. ``None``: begin anew, and refuse to
            overwrite a training that is not finished.
        log_every
            Steps between logged values.
        sparse
            Whether the encoder's first layer reads minibatches as csr (``True``) or dense (``False``). ``None`` takes
            what is faster: csr on a CPU where at most 30% of the training cells' counts are not zero. The result is
            the same to the precision of floating point.
        gene_encoder
            Whether to fit afterwards what tells isoforms from the counts of genes (:meth:`fit_gene_encoder`). ``None``:
            where a gene map was registered that has genes with several transcripts.
        reader
            How minibatches of backed counts are read. ``"rows"``: training cells at random, each row by itself, from memory,
            h5ad or zarr. ``"annbatch"``: blocks of 64 neighbouring cells of a zarr store, shuffled and mixed within up to
            256 MB, for storage that is slow at single rows (Python 3.12, the extra ``annbatch``). Cells of a file that is
            sorted by label or batch should be shuffled before.
        accelerator, devices
            As in scvi-tools.
        progress
            Progress bar; ``None`` follows ``isd.settings.progress``.
        seed
            Seed of the training; ``None`` takes ``isd.settings.seed``.
        **trainer_kwargs
            Passed to :class:`scvi.train.Trainer` (``strategy``, ``num_nodes``, ``callbacks``, ``logger``, ...).

        Notes
        -----
        Writes ``history``, ``train_indices``, ``validation_indices`` and ``test_indices``. A second call goes on
        from the weights that are there.

        Ctrl-C (SIGINT) and SIGTERM end the training after the step that runs: a last checkpoint is written where there is a
        ``checkpoint_dir``, the model keeps its weights, and ``KeyboardInterrupt`` or ``SystemExit`` is raised. A second
        Ctrl-C ends it at once.

        With ``strategy="ddp"`` and several ``devices`` (or ``num_nodes``), each batch is split over the processes: it is the
        training of one process, only faster. Metrics are averaged over them, ``history`` lives on the first, and
        the first alone writes.
        """
        adata = self._validate_anndata()  # another model may have rewritten obs["_scvi_labels"]
        check_reader(reader, self.get_from_registry(adata, REGISTRY_KEYS.X_KEY))
        train_idx, val_idx, test_idx = self._split()
        n_train = len(train_idx)
        if early_stopping is None:
            starts_elsewhere = self.pretrained_ is not None or self.fine_tuning_ is not None
            early_stopping = starts_elsewhere and len(val_idx) >= ENOUGH_VALIDATION
        if early_stopping:
            if not len(val_idx):
                raise ValueError("early_stopping needs validation cells; run isd.pp.split(adata) first.")
            trainer_kwargs["callbacks"] = [*trainer_kwargs.get("callbacks", []), KeepBest(early_stopping_patience)]
        settled = settle(
            {
                "max_steps": max_steps,
                "batch_size": batch_size,
                "lr": lr,
                "weight_decay": weight_decay,
                "lr_schedule": lr_schedule,
                "kl_warmup": kl_warmup,
                "gradient_clip_val": trainer_kwargs.pop("gradient_clip_val", None),
            },
            self._train_rule(),
            n_train=n_train,
            n_val=len(val_idx),
            max_epochs=max_epochs,
            max_minutes=max_minutes,
            fit_options={
                "accelerator": accelerator,
                "devices": devices,
                "checkpoint_every": checkpoint_every,
                "checkpoint_dir": checkpoint_dir,
                "resume": resume,
                "seed": seed,
                "checkpoint_part": "" if self._saved_within is None else VAE_FOLDER,
                "log_every": log_every,
                "progress": progress,
            },
            trainer_kwargs=trainer_kwargs,
        )
        if sparse is None:
            counts = self.get_from_registry(adata, REGISTRY_KEYS.X_KEY)
            # on other devices the module goes by the device; dense counts stay dense
            stored_dense = isinstance(counts, np.ndarray | h5py.Dataset)
            sparse = False if stored_dense or density(counts, train_idx) > DENSE_ABOVE else None
        self.module.sparse_input = sparse
        data = SparseDataSplitter(
            self.adata_manager,
            external_indexing=[train_idx, val_idx, test_idx],
            batch_size=settled.batch_size,
            drop_last=True,
            reader=reader,
        )
        if not self.is_trained_:
            self._start(train_idx)
        self._remember_rows(train_idx, val_idx, test_idx)
        self._set_templates(train_idx)
        with seeded(seed), kept_unmeasured(self):
            finished = fit(
                self,
                data,
                settled,
                n_train=n_train,
                dispersion_lr=dispersion_lr,
                max_kl_weight=max_kl_weight,
            )
        if not finished:
            return
        if gene_encoder is None:
            gene_encoder = self.gene_of is not None and bool((np.bincount(self.gene_of) > 1).any())
        if gene_encoder:
            # a training that is cut short is short here, too
            steps = settled.steps if self.pretrained_ is None and self.fine_tuning_ is None else max_steps
            self.fit_gene_encoder(max_steps=steps, seed=seed, progress=progress)
