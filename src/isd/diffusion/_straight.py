"""The straight path from data to noise (flow matching, rectified flow)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isd.diffusion._schedule import Schedule


class StraightPath(Schedule):
    """Straight lines between data and noise: ``x_t = (1 - t) x0 + t eps``.

    Time runs as in the other schedules: 0 is data and 1 is noise (papers on flow matching often run it the other
    way). There are no discrete steps; where one counts in steps (``start_guide_step``), 1000 make up the path.

    References
    ----------
    Lipman et al. (2023), Flow matching for generative modeling; Liu, Gong, Liu (2023), Flow straight and fast.

    Examples
    --------
    >>> import torch
    >>> from isd.diffusion import StraightPath
    >>> path = StraightPath()
    >>> path.alpha(torch.tensor(0.25)), path.sigma(torch.tensor(0.25))
    (tensor(0.7500), tensor(0.2500))
    """

    name = "straight"
    n_timesteps = 1000

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def d_alpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def to_config(self) -> dict[str, Any]:
        return {"name": self.name}
