"""Latents from the diffusion model, tile by tile, with random streams that do not depend on how cells are batched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from isd._progress import track
from isd.diffusion import ClassifierFree, Denoiser, DenoiserFn, Guide, Sampler, get_sampler
from isd.model._generated import LATENT_STREAM, TILE
from isd.model._latent_diffusion import LatentDiffusion
from isd.tl._guides import GuideSpec


def make_sampler(model: LatentDiffusion, sampler: str | None, n_steps: int | None) -> tuple[Sampler, int]:
    """Sampler by name, with the model's defaults, and its number of steps from pure noise."""
    defaults = model.generate_defaults
    name = sampler or str(defaults["sampler"])
    if n_steps is None:
        n_steps = defaults["n_steps"] if name == defaults["sampler"] else {"ddpm": None, "heun": 12}.get(name, 25)
    solver = get_sampler(name, n_steps)
    return solver, int(n_steps) if n_steps is not None else len(solver.times(model.module.schedule)) - 1


def sample_tiles(
    model: LatentDiffusion,
    n: int,
    *,
    solver: Sampler,
    network: Callable[[slice, torch.device], DenoiserFn],
    guides: Callable[[slice, torch.device], Sequence[Guide]],
    key: Sequence[int],
    first_tile: int = 0,
    batch_size: int = TILE,
    start: float = 1.0,
    first: np.ndarray | None = None,
    description: str = "Sampling latents",
    progress: bool | None = None,
) -> np.ndarray:
    """Latents (and log library size) on the VAE's scale, shape ``(n, n_input)``.

    Parameters
    ----------
    model
        The model.
    n
        Number of cells.
    solver
        Sampler.
    network
        Makes the callable denoiser of some rows.
    guides
        Makes the guides of some rows.
    key
        Key of the random streams: one for each tile of 256 cells, so that which cells are computed together does not
        change their noise.
    first_tile
        Number of the first tile, where the cells are part of more.
    batch_size
        Cells computed at once on an accelerator.
    start, first
        Time at which sampling starts, and what is noised to that time (standardised, shape ``(n, n_input)``).
    description
        Of the progress bar.
    progress
        Progress bar.
    """
    module = model.module
    device = module.device
    out = np.empty((n, module.n_input), dtype=np.float32)
    # products of other shapes differ in their last bits: on a CPU, every tile is computed alone, whatever batch_size is
    tiles_at_once = 1 if device.type == "cpu" else max(1, -(-batch_size // TILE))
    calls = 0
    for begin in track(range(0, n, TILE * tiles_at_once), description, progress=progress):
        rows = slice(begin, min(begin + TILE * tiles_at_once, n))
        size = rows.stop - rows.start
        tiles = range(first_tile + begin // TILE, first_tile + -(-rows.stop // TILE))
        streams = [np.random.default_rng([*key, LATENT_STREAM, tile]) for tile in tiles]

        def noise(
            step: int, shape: torch.Size, streams: list[np.random.Generator] = streams, size: int = size
        ) -> torch.Tensor:
            parts = [
                rng.standard_normal((min(TILE, size - k * TILE), module.n_input), dtype=np.float32)
                for k, rng in enumerate(streams)
            ]
            return torch.from_numpy(np.concatenate(parts)).to(device)

        denoiser = Denoiser(network(rows, device), module.schedule, module.parametrization)
        x = noise(-1, torch.Size())
        if first is not None:
            with torch.no_grad():
                data = torch.as_tensor(first[rows], device=device)
                x = module.schedule.add_noise(data, x, torch.tensor(start, device=device))
        x = solver.sample(denoiser, x, start=start, guide=list(guides(rows, device)) or None, noise_fn=noise)
        calls = max(calls, solver.n_network_calls)
        with torch.no_grad():
            out[rows] = module.scaler.inverse(x).cpu().numpy()
    solver.n_network_calls = calls
    return out


def sample_diffusion(
    model: LatentDiffusion,
    codes: np.ndarray,
    *,
    guidance_scale: float | np.ndarray,
    guides: Sequence[GuideSpec],
    **options: Any,
) -> np.ndarray:
    """Latents of cells with these codes of label, batch and covariates, by :func:`sample_tiles`."""
    module, null = model.module, len(model.labels)

    def network(rows: slice, device: torch.device) -> DenoiserFn:
        given = torch.as_tensor(codes[rows], device=device)
        nothing = given.clone()
        nothing[:, 0] = null
        scale = (
            guidance_scale
            if isinstance(guidance_scale, float)
            else torch.as_tensor(guidance_scale[rows], dtype=torch.float32, device=device)
        )
        return ClassifierFree.batched(lambda x, t, condition: module.network(x, t, condition), given, nothing, scale)

    def active(rows: slice, device: torch.device) -> list[Guide]:
        return [spec.guide(rows, device, module.schedule.n_timesteps) for spec in guides if spec.scale]

    return sample_tiles(model, len(codes), network=network, guides=active, **options)
