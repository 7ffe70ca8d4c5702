"""What is to be generated, settled once, so that any of its cells can be drawn, and drawn again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from isd._progress import track
from isd.model._generated import LATENT_STREAM, RETRY_STREAM, TEMPLATE_STREAM, TILE, Cells
from isd.model._latent_diffusion import LatentDiffusion
from isd.tl._conditions import full_codes, template_rows

Latents = Literal["diffusion", "gaussian", "mixture", "prior"]
LATENTS: tuple[str, ...] = ("diffusion", "gaussian", "mixture", "prior")

Draw = Callable[[np.ndarray, np.ndarray, np.ndarray, Sequence[int], int], tuple[np.ndarray, np.ndarray | None]]
"""``draw(rows, codes, templates, key, first_tile)``: latents of some cells, and their log library size where it is drawn
as well."""


def stream_key(seed: int, attempt: int = 0, tile: int = 0) -> tuple[int, ...]:
    """Key of the random streams of a seed: attempt 0 is plain generation, later ones draw cells of a tile anew."""
    return (seed,) if attempt == 0 else (seed, RETRY_STREAM, attempt, tile)


@dataclass(frozen=True)
class Plan:
    """Cells that are asked for.

    Parameters
    ----------
    model
        The model.
    codes
        Label code of each cell.
    asked
        Codes of batch and covariates that are asked for, by column.
    log_library
        Log library size of each cell, or ``None`` where it is drawn.
    seed
        Seed.
    draw
        Draws latents.
    """

    model: LatentDiffusion
    codes: np.ndarray
    asked: Mapping[int, int]
    log_library: np.ndarray | None
    seed: int
    draw: Draw

    @cached_property
    def _templates(self) -> np.ndarray:
        """Training row that stands in for what is not asked for, of each cell of plain generation."""
        rng = np.random.default_rng([*stream_key(self.seed), TEMPLATE_STREAM])
        return template_rows(self.model, self.codes, self.asked, rng)

    def cells(self, part: slice) -> tuple[Cells, np.ndarray]:
        """Some of the cells, ready to be decoded, and their codes of label, batch and covariates.

        Parameters
        ----------
        part
            Which cells, from the first of a tile on: they are what they are among all.
        """
        rows = np.arange(part.start, part.stop)
        return self._drawn(rows, self._templates[rows], stream_key(self.seed), part.start // TILE)

    def tile(self, part: slice, missing: np.ndarray, attempt: int) -> tuple[Cells, np.ndarray]:
        """Some cells of a tile.

        Parameters
        ----------
        part
            Cells of the tile.
        missing
            Which of them; in attempt 0, all.
        attempt
            0 is plain generation; each other one draws other cells.
        """
        if attempt == 0:
            return self.cells(part)
        rows, key = part.start + missing, stream_key(self.seed, attempt, part.start // TILE)
        rng = np.random.default_rng([*key, TEMPLATE_STREAM])
        return self._drawn(rows, template_rows(self.model, self.codes[rows], self.asked, rng), key, 0)

    def _drawn(
        self, rows: np.ndarray, templates: np.ndarray, key: Sequence[int], first_tile: int
    ) -> tuple[Cells, np.ndarray]:
        model = self.model
        codes = full_codes(model, self.codes[rows], templates, self.asked)
        latents, log_library = self.draw(rows, codes, templates, key, first_tile)
        if self.log_library is not None:
            log_library = self.log_library[rows]
        elif log_library is None:
            log_library = model.template_log_library_[templates]
        continuous = getattr(model, "template_continuous_", None)
        cells = Cells(
            latents=np.ascontiguousarray(latents, dtype=np.float32),
            log_library=log_library,
            codes=codes[:, 1:],
            continuous=None if continuous is None else continuous[templates],
        )
        return cells, codes


def density_draw(model: LatentDiffusion, latents: Latents, *, progress: bool | None) -> Draw:
    """Draw latents from a Gaussian or a mixture per label, or from the VAE's prior, in tiles like the diffusion."""
    n_latent = model.vae.module.n_latent
    density = None if latents == "prior" else model.latent_density(latents)  # type: ignore[arg-type]
    low, high = model.template_log_library_.min(), model.template_log_library_.max()
    null = len(model.labels)

    def draw(
        rows: np.ndarray, codes: np.ndarray, templates: np.ndarray, key: Sequence[int], first_tile: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        # without a label, the training row that stands in for the rest says whose density it is
        components = np.where(codes[:, 0] == null, model.template_codes_[templates, 0], codes[:, 0])
        parts = []
        for start in track(range(0, len(codes), TILE), "Drawing latents", progress=progress):
            rng = np.random.default_rng([*key, LATENT_STREAM, first_tile + start // TILE])
            mine = components[start : start + TILE]
            if density is None:
                parts.append(rng.standard_normal((len(mine), n_latent)))
            else:
                parts.append(density.draw(mine, rng))
        drawn = np.concatenate(parts)
        z = drawn[:, :n_latent]
        if model.vae.module_params.get("l2_normalize"):
            z = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
        if density is None:
            return z, None
        module = model.module
        library = module.scaler.without_scores(torch.as_tensor(drawn, dtype=torch.float32, device=module.device))[:, -1]
        # a Gaussian has tails that training cells do not have: no depth beyond what was seen
        return z, np.clip(library.cpu().numpy(), low, high)

    return draw
