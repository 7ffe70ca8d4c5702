"""Small cells with known counts, and whether a figure's text can be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse


def make(n_obs: int, seed: int, *, n_noise: int = 60) -> AnnData:
    """Two genes of two isoforms, one of one; label "b" uses the other isoform of gene g1."""
    rng = np.random.default_rng(seed)
    label = np.array(["b", "a"])[np.arange(n_obs) % 2]
    first = np.where(label == "a", 36.0, 4.0)
    rates = np.column_stack([first, 40 - first, np.full(n_obs, 4.0), np.full(n_obs, 4.0), np.full(n_obs, 0.5)])
    noise = np.tile(np.geomspace(0.05, 20, n_noise), (n_obs, 1))
    counts = sparse.csr_matrix(rng.poisson(np.hstack([rates, noise])).astype(np.float32))
    genes = ["g1.3", "g1.3", "g2.1", "g2.1", "g3.1"] + [f"h{i}.1" for i in range(n_noise)]
    names = ["ONE", "ONE", "TWO", "TWO", "TWO"] + [f"H{i}" for i in range(n_noise)]
    var = pd.DataFrame({"gene_id": genes, "gene_name": names}, index=[f"t{i}" for i in range(5 + n_noise)])
    obs = pd.DataFrame({"leiden": pd.Categorical(label, categories=["b", "a"])}, index=[f"c{i}" for i in range(n_obs)])
    return AnnData(counts, obs=obs, var=var)


@pytest.fixture
def pair() -> tuple[AnnData, AnnData]:
    """300 real cells, 100 of them held out, and 80 generated ones of the same distribution, columns reversed."""
    real, generated = make(300, 0), make(80, 1)[:, ::-1].copy()
    real.obs["isd_split"] = ["train"] * 200 + ["test"] * 100
    return real, generated


@pytest.fixture
def many_features() -> tuple[AnnData, AnnData]:
    """Held-out and generated cells of the same distribution with 605 features."""
    return make(160, 2, n_noise=600), make(80, 3, n_noise=600)


@pytest.fixture
def assert_readable() -> Callable[[Any], None]:
    """Check that all text lies within the figure and no two texts lie on each other."""

    def check(figure: Any) -> None:
        figure.canvas.draw()
        from matplotlib.text import Text

        texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
        # tick labels outside of the view exist but are not drawn
        boxes = [(t.get_text(), t.get_window_extent()) for t in texts if _is_drawn(t, figure)]
        assert boxes
        for i, (text, box) in enumerate(boxes):
            inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= figure.bbox.x1 + 1 and box.y1 <= figure.bbox.y1 + 1
            assert inside, f"{text!r} leaves the figure"
            for other, place in boxes[i + 1 :]:
                assert not box.padded(-1).overlaps(place.padded(-1)), f"{text!r} lies on {other!r}"

    return check


def _is_drawn(text: Any, figure: Any) -> bool:
    for ax in figure.axes:
        for axis, interval in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if text in (tick.label1, tick.label2):
                    low, high = sorted(interval)
                    return low <= tick.get_loc() <= high
    return True
