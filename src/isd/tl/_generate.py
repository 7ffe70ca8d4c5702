"""Generation of isoform counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from anndata import AnnData
from scvi.model._utils import parse_device_args

from isd._hash import fingerprint
from isd._target import checked_target
from isd.model._classifier import Classifier
from isd.model._files import isd_version
from isd.model._generated import (
    COUNTS_STREAM,
    TILE,
    Cells,
    broadcast_library,
    decode_counts,
    generated_parts,
    with_counts,
)
from isd.model._latent_diffusion import LatentDiffusion
from isd.pp import to_mudata
from isd.settings import settings
from isd.tl._accept import accepted_cells
from isd.tl._conditions import asked_codes, extrapolated, heard_codes
from isd.tl._guides import GuideSpec, as_pairs, resolve_guides, resolve_scales
from isd.tl._labels import Labels, check_conditions, label_codes
from isd.tl._plan import LATENTS, Draw, Latents, Plan, density_draw
from isd.tl._sample import make_sampler, sample_diffusion
from isd.tl._stream import Stream, clear_left_over, part_rows, read_backed

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def generate(
    model: LatentDiffusion,
    n_obs: int | None = None,
    labels: Labels = "match",
    *,
    batch: Any = None,
    covariates: Mapping[str, Any] | None = None,
    guidance_scale: float | Mapping[Any, float] | ArrayLike = 1.0,
    classifier: Classifier | tuple[Classifier, Any] | Sequence[Classifier | tuple[Classifier, Any]] | None = None,
    classifier_scale: float | Sequence[float] | None = None,
    start_guide_step: int | Sequence[int] | None = None,
    sampler: str | None = None,
    n_steps: int | None = None,
    latents: Latents = "diffusion",
    library_size: float | ArrayLike | None = None,
    accept: Literal["classified"] | None = None,
    max_tries: int = 20,
    part: tuple[int, int] | None = None,
    backed: str | Path | None = None,
    overwrite: bool = False,
    as_mudata: bool = False,
    seed: int | None = None,
    batch_size: int = 256,
    accelerator: str | None = None,
    progress: bool | None = None,
) -> AnnData:
    """Generate cells or samples: exactly as many as asked for, as a new AnnData of counts.

    Parameters
    ----------
    model
        A trained :class:`isd.model.LatentDiffusion`.
    n_obs
        Number of cells. ``None``: what ``labels`` adds up to, else the number of training cells.
    labels
        ``"match"`` (default) keeps the proportions of the training cells; one label; ``{label: n}``; an array with one
        label a cell; or ``None``, which generates without a label.
    batch
        Batch to generate for; ``None`` follows the training cells of the label.
    covariates
        Category of categorical covariates, such as ``{"donor": "d1"}``; those not named follow the training cells.
    guidance_scale
        Classifier-free guidance: 1 is plain conditional sampling, above 1 sharper; each cell then costs two network
        calls a step. One number, ``{label: number}`` (1 for labels not named), or one number a cell.
    classifier
        A :class:`isd.model.Classifier` of this model, whose gradient guides towards the label. A pair
        ``(classifier, label)`` guides all cells towards that label, of another column of ``obs`` too. A sequence of
        both: their gradients are added.
    classifier_scale
        Weight of that gradient, one number or one a classifier; ``None`` is the preset's (published: 2), or 1 with a
        classifier under the default. 0: it does not guide.
    start_guide_step
        The classifier guides below this step of the schedule's 1000, one number or one a classifier (published: 500;
        default: everywhere that it was trained).
    sampler
        ``"heun"`` (default), ``"euler"``, ``"dpm++"``, ``"ddim"`` or ``"ddpm"`` (published).
    n_steps
        Number of steps; 12 of Heun by default (23 network calls), 25 for others, 1000 for DDPM.
    latents
        Where latents come from: ``"diffusion"``; ``"gaussian"``, a Gaussian per label of the training cells' latents and
        depth; ``"mixture"``, a mixture of up to 5 of them per label, fitted at first use to the attached training
        cells; ``"prior"``, the VAE's standard normal, which knows no labels. Only the diffusion can be guided.
    library_size
        Total counts of each cell, one number or one a cell; ``None`` generates them with the latent (models that do
        not generate depth draw it from the training cells of the label).
    accept
        ``"classified"`` encodes the generated counts again and keeps a cell only if ``classifier`` (at time zero, each of
        them if there are several) finds the label there; others are drawn anew until all are found. ``None`` keeps all.
    max_tries
        Most draws of a cell with ``accept``.
    part
        ``(k, n)`` generates the ``k``-th of ``n`` parts (counted from 1) of these cells, for one process of several: the parts
        one below the other are the whole, cell by cell. Parts are whole tiles of 256.
    backed
        Name of a file in ``.h5ad`` or ``.zarr`` to write the cells to as they are made: memory does not grow with their
        number. What is done so far lies in a folder beside it (``.partial``), and the same call goes on after an
        interruption; the file is there when it is whole.
    overwrite
        Whether ``backed`` may replace a file, and the beginning of other cells.
    as_mudata
        Return a :class:`mudata.MuData` of isoforms and genes, as :func:`isd.pp.to_mudata` makes it. Needs a gene map
        (``gene_key``, or ``var["gene_id"]``). Not with ``backed``.
    seed
        Seed; ``None`` takes ``isd.settings.seed``. The same seed gives the same cells on the same machine.
    batch_size
        Cells whose latents are computed at once on an accelerator, in tiles of 256. On a CPU it is one tile, and results
        do not depend on it.
    accelerator
        Where to compute: ``None`` leaves the model where it is.
    progress
        Progress bars.

    Returns
    -------
    AnnData of shape ``(n_obs, n_vars)``: csr counts in the layer that the model reads (``X`` then holds log1p of
    1e4-normalised counts) or in ``X``; ``obs`` with label (categories and colours of the training data), batch and
    covariates; ``obsm["X_isd_vae"]``; provenance in ``uns["isd"]``. Cells of an array of labels keep its order.
    Where they apply: ``obs["isd_guidance_scale"]`` (scales that differ), ``obs["isd_extrapolated"]`` (no training cell
    has this label, batch and covariates together), and with ``accept`` ``obs["isd_tries"]``,
    ``uns["isd"]["acceptance_rate"]`` and ``uns["isd"]["acceptance"]`` (per label). With ``backed`` the same, opened with ``X``
    left on disk (of zarr files, layers too).

    Raises
    ------
    ValueError
        If the model is not trained, a label, batch or covariate is unknown, numbers do not add up, the classifier
        belongs to another model, guidance is asked for where ``latents`` are not the diffusion's, or the file that
        ``backed`` names was begun by another call.
    KeyError
        If a MuData is asked for and there is no gene map.
    FileExistsError
        If that file is there, without ``overwrite``.
    RuntimeError
        If cells are not accepted after ``max_tries`` draws.

    Warns
    -----
    UserWarning
        If no training cell has the label, batch and covariates of a cell together.

    Examples
    --------
    >>> import isd
    >>> adata = isd.datasets.simulated(n_obs=80, n_vars=60, n_labels=2)
    >>> isd.model.LatentDiffusion.setup_anndata(adata)
    >>> model = isd.model.LatentDiffusion(adata)
    >>> model.train(max_steps=5, vae_kwargs={"max_steps": 5}, progress=False)
    >>> fake = isd.tl.generate(model, labels={"0": 3, "1": 2}, seed=0)
    >>> fake.obs["leiden"].tolist()
    ['0', '0', '0', '1', '1']

    Straight to disk, cell by cell the same:

    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "fake.h5ad"
    >>> on_disk = isd.tl.generate(model, labels={"0": 3, "1": 2}, seed=0, backed=path)
    >>> on_disk.isbacked, bool((on_disk.to_memory().X != fake.X).nnz == 0)
    (True, True)
    """
    check_model(model)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    if latents not in LATENTS:
        raise ValueError(f"latents {latents!r} is unknown; choose one of {LATENTS}.")
    _check_accept(accept, max_tries, classifier)
    if as_mudata:
        if backed is not None:
            raise ValueError("as_mudata makes a MuData in memory, and does not go with backed; leave one of them out.")
        model.vae.gene_map()
    if backed is not None:
        clear_left_over(backed)
        checked_target(backed, overwrite=overwrite)
    seed = settings.seed if seed is None else int(seed)
    codes = label_codes(model, n_obs, labels)
    null = len(model.labels)
    if latents == "diffusion":
        solver, n_steps = make_sampler(model, sampler, n_steps)
    else:
        unused = {
            "guidance_scale": guidance_scale,
            "classifier": None if accept else classifier,
            "classifier_scale": classifier_scale,
            "start_guide_step": start_guide_step,
            "sampler": sampler,
            "n_steps": n_steps,
        }
        codes = _check_density(latents, codes, labels, null, unused)
        classifier_scale = 0.0
    scales = resolve_scales(model, codes, guidance_scale)
    guides = resolve_guides(model, codes, classifier, classifier_scale, start_guide_step)
    if accept and (codes == null).any():
        raise ValueError('accept="classified" looks for the label that was asked for; give labels.')
    if latents == "diffusion":
        guided = accept is not None or any(guide.scale for guide in guides)
        codes = check_conditions(model, codes, labels, sharpened=bool(np.any(np.not_equal(scales, 1.0))), guided=guided)
    asked = asked_codes(model, batch, covariates)
    log_library = None
    if library_size is not None:
        log_library = np.log(broadcast_library(np.asarray(library_size), len(codes))).astype(np.float32)
    if accelerator is not None:
        to_device(accelerator, model, [guide.classifier for guide in guides])

    draw: Draw
    inner = False if accept else progress  # there, one bar counts tiles
    if latents == "diffusion":

        def draw(
            rows: np.ndarray, codes: np.ndarray, templates: np.ndarray, key: Sequence[int], first_tile: int
        ) -> tuple[np.ndarray, np.ndarray | None]:
            x = sample_diffusion(
                model,
                heard_codes(model, codes),
                guidance_scale=scales[rows] if isinstance(scales, np.ndarray) else scales,
                guides=[GuideSpec(g.classifier, g.codes[rows], g.scale, g.start_step) for g in guides],
                solver=solver,
                key=key,
                first_tile=first_tile,
                batch_size=batch_size,
                progress=inner,
            )
            return x[:, : model.vae.module.n_latent], x[:, -1] if model.module.model_library else None

    else:
        draw = density_draw(model, latents, progress=inner)
    plan = Plan(model, codes, asked, log_library, seed, draw)
    within = part_rows(part, len(codes))
    counts = accepted = stream = saved = None
    if backed is not None:
        call = {
            "version": isd_version(),
            "model": model.fingerprint,
            "device": model.module.device.type,
            "seed": seed,
            "n_obs": len(codes),
            "part": None if part is None else tuple(map(int, part)),
            "labels": fingerprint(codes),
            "batch and covariates": sorted(asked.items()),
            "library_size": None if log_library is None else fingerprint(log_library),
            "latents": latents,
            "guidance_scale": fingerprint(scales) if isinstance(scales, np.ndarray) else scales,
            "classifier": [(g.classifier.fingerprint, g.scale, g.start_step, fingerprint(g.codes)) for g in guides],
        }
        if latents == "diffusion":
            call |= {"sampler": solver.name, "n_steps": n_steps}
        if accept:
            # not max_tries: where it was too low, the same call with more of them goes on
            call |= {"accept": accept}
        stream = Stream.open(backed, call, overwrite=overwrite, by_tile=accept is not None)
        saved = stream.read_cells()
    if accept:
        accepted = accepted_cells(
            plan,
            guides,
            within=within,
            max_tries=max_tries,
            network_calls=lambda: solver.n_network_calls if latents == "diffusion" else 0,
            stream=stream,
            progress=progress,
        )
        cells, all_codes, counts = accepted.cells, accepted.codes, accepted.counts
        n_network_calls = accepted.n_network_calls
    elif saved is not None:
        n_network_calls, all_codes = int(saved.pop("n_network_calls")), saved.pop("all_codes")
        cells = Cells(**saved)
    else:
        cells, all_codes = plan.cells(within)
        n_network_calls = solver.n_network_calls if latents == "diffusion" else 0
        if stream is not None:
            stream.write_cells(all_codes=all_codes, n_network_calls=n_network_calls, **vars(cells))
    unseen = extrapolated(model, all_codes)
    provenance: dict[str, Any] = {"seed": seed, "latents": latents}
    if part is not None:
        provenance |= {"part": list(map(int, part)), "n_obs": len(codes)}
    if latents == "diffusion":
        provenance |= {
            "sampler": solver.name,
            "n_steps": n_steps,
            "guidance_scale": scales if isinstance(scales, float) else "per cell",
            "classifier_scale": _one_or_each([guide.scale for guide in guides], 0.0),
            "start_guide_step": _one_or_each([guide.start_step for guide in guides], start_guide_step),
            "n_network_calls": n_network_calls,
        }
    if accepted is not None:
        acceptance = accepted.rates(model.labels)
        provenance |= {
            "acceptance_rate": float(acceptance["accepted"].sum() / acceptance["drawn"].sum()),
            "acceptance": acceptance,
        }
    parts = generated_parts(
        model, model.vae, cells, label_codes=codes[within], provenance=provenance, first=within.start
    )
    if isinstance(scales, np.ndarray):
        parts["obs"]["isd_guidance_scale"] = scales[within]
    if accepted is not None:
        parts["obs"]["isd_tries"] = accepted.tries
    if unseen.any():
        parts["obs"]["isd_extrapolated"] = unseen
    key = (seed, COUNTS_STREAM)
    if stream is not None:
        if accepted is None:
            stream.write_counts(model.vae.module, cells, key=key, first=within.start, progress=progress)
        stream.finish(parts, model.layer, progress=progress)
        return read_backed(stream.path)
    if counts is None:
        counts = decode_counts(model.vae.module, cells, key=key, first_tile=within.start // TILE, progress=progress)
    fake = with_counts(parts, counts, model.layer)
    return to_mudata(fake, model.vae.gene_column, layer=model.layer or "X") if as_mudata else fake


def check_model(model: Any) -> None:
    """Raise for anything but a trained diffusion model whose VAE is the one that it was trained with."""
    if not isinstance(model, LatentDiffusion):
        raise TypeError(f"model must be an isd.model.LatentDiffusion, got {type(model).__name__}.")
    if not model.is_trained:
        raise ValueError("the model is not trained yet; call model.train() first.")
    model._check_consistent()


def to_device(accelerator: str, model: LatentDiffusion, classifiers: Sequence[Classifier]) -> None:
    """Put a model and what belongs to it where an accelerator is."""
    _, _, device = parse_device_args(accelerator, "auto", return_device="torch", validate_single_device=True)
    for part in (model, model.vae, *classifiers):
        part.to_device(device)


def _check_accept(accept: Any, max_tries: int, classifier: Any) -> None:
    if accept is None:
        return
    if accept != "classified":
        raise ValueError(f"accept {accept!r} is unknown; give 'classified', or None to keep all cells.")
    if max_tries < 1:
        raise ValueError(f"max_tries must be at least 1, got {max_tries}.")
    if not as_pairs(classifier):
        raise ValueError(
            'accept="classified" needs a classifier: train an isd.model.Classifier of this model and give it '
            "(classifier_scale=0 keeps it from guiding as well)."
        )


def _check_density(latents: str, codes: np.ndarray, labels: Labels, null: int, unused: Mapping[str, Any]) -> np.ndarray:
    """Refuse what only the diffusion model can do; labels that nobody asked for are left out for the prior."""
    given = [
        name
        for name, value in unused.items()
        if not (isinstance(value, (int, float)) and value == 1 if name == "guidance_scale" else not np.any(value))
    ]
    if given:
        raise ValueError(
            f"{', '.join(given)} need{'s' if len(given) == 1 else ''} the diffusion model, and latents={latents!r} does "
            'without it; leave them out, or take latents="diffusion".'
        )
    if latents == "prior" and null > 1 and (codes < null).any():
        if not (isinstance(labels, str) and labels == "match"):
            raise ValueError('latents="prior" knows no labels; give labels=None, or take latents="gaussian".')
        return np.full_like(codes, null)
    return codes


def _one_or_each(values: Sequence[Any], otherwise: Any) -> Any:
    """For ``uns``: one number where there is one, else all of them."""
    return otherwise if not values else values[0] if len(values) == 1 else list(values)
