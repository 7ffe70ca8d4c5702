"""Bulk samples and single cells of an experiment, split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData

from isd import datasets, pp
from isd._constants import SPLIT_KEY, SPLIT_VALIDATION
from isd.experiment._config import SIMULATED, Config
from isd.tl._tune import MIN_VALIDATION


def load_data(config: Config, seed: int) -> dict[str, AnnData]:
    """Data by row of the grid: ``"bulk"``, ``"single_cell"``, ``"transfer"`` (the single cells again) and ``"one_class"``.

    Parameters
    ----------
    config
        What to load. Only what its grid needs is.
    seed
        Seed of the split, and of the world where data are simulated.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    KeyError
        If labels or genes are not there.
    ValueError
        If ``one_class`` is no label, or too few of its cells are there.
    """
    data, found = config.data, {}
    wanted = {
        "bulk": bool({"bulk", "transfer"} & set(config.rows)),
        "single_cell": bool({"single_cell", "transfer"} & set(config.rows)) or config.one_class is not None,
    }
    if SIMULATED in (data.bulk, data.single_cell):
        found = dict(zip(("single_cell", "bulk"), _simulated(config, seed), strict=True))
    for name, source in (("bulk", data.bulk), ("single_cell", data.single_cell)):
        if source != SIMULATED and wanted[name]:
            found[name] = _read(Path(source), name, config)
    out = {name: found[name] for name in wanted if wanted[name]}
    for adata in out.values():
        if SPLIT_KEY not in adata.obs:
            pp.split(
                adata,
                test_size=data.test_size,
                validation_size=data.validation_size,
                labels_key=data.labels_key,
                seed=seed,
            )
    if config.one_class is not None:
        out["one_class"] = _one_class(out["single_cell"], config)
    if "transfer" in config.rows:
        out["transfer"] = out["single_cell"]
    return out


def check_guidance(config: Config, data: dict[str, AnnData]) -> None:
    """Guidance can be tuned where an arm asks for it: said before anything is trained."""
    arms = [name for name, arm in config.arms.items() if arm.tuned]
    if "guided" not in config.guidance or not arms:
        return
    for row in config.rows:
        obs = data[row].obs
        n_labels = obs[config.data.labels_key].nunique()
        n_validation = int((obs[SPLIT_KEY] == SPLIT_VALIDATION).sum())
        if n_labels < 2 or n_validation < MIN_VALIDATION:
            raise ValueError(
                f"arms.{arms[0]}.guided: guidance is tuned on validation cells, of which {row} has {n_validation}, of {n_labels} "
                f"labels; at least {MIN_VALIDATION} of two labels are needed. Give a guidance_scale (1 for none), raise "
                'data.validation_size, or leave "guided" out of guidance.'
            )


def _simulated(config: Config, seed: int) -> tuple[AnnData, AnnData]:
    size = config.data.simulated
    if not 0 < size.shared_vars <= 1:
        raise ValueError(f"data.simulated.shared_vars is {size.shared_vars}; expected a share above 0, at most 1.")
    cells, bulk = datasets.simulated(
        n_obs=size.n_obs, n_vars=size.n_vars, n_labels=size.n_labels, kind="both", n_bulk=size.n_bulk, seed=seed
    )
    rng = np.random.default_rng([seed, 7])
    n_vars = max(2, round(size.shared_vars * size.n_vars))
    parts = (np.sort(rng.choice(size.n_vars, n_vars, replace=False)) for _ in range(2))
    cells, bulk = (adata[:, columns].copy() for adata, columns in zip((cells, bulk), parts, strict=True))
    # a cell may have had its only counts in what was taken out
    return tuple(adata[np.asarray(adata.X.sum(1)).ravel() > 0].copy() for adata in (cells, bulk))  # type: ignore[return-value]


def _read(path: Path, name: str, config: Config) -> AnnData:
    import anndata

    if not path.is_file():
        raise FileNotFoundError(f"data.{name}: there is no file {path}.")
    adata = anndata.read_h5ad(path)
    for key, frame, where in ((config.data.labels_key, adata.obs, "obs"), (config.data.gene_key, adata.var, "var")):
        if key is not None and key not in frame:
            raise KeyError(
                f"data.{name}: {path.name} has no column {key!r} in {where}; it has {', '.join(map(str, frame))}."
            )
    return adata


def _one_class(adata: AnnData, config: Config) -> AnnData:
    labels = adata.obs[config.data.labels_key].astype(str)
    found = (labels == config.one_class).to_numpy()
    if found.sum() < 20:
        raise ValueError(
            f"one_class is {config.one_class!r}, which {int(found.sum())} single cells have in obs[{config.data.labels_key!r}] "
            f"(labels: {', '.join(labels.value_counts().index[:12])}); at least 20 are needed. Name another, or null for none."
        )
    return adata[found].copy()


def setup_arguments(config: Config, *, labels: bool = True) -> dict[str, Any]:
    """Arguments of ``setup_anndata``."""
    data = config.data
    return {"layer": data.layer, "labels_key": data.labels_key if labels else None, "gene_key": data.gene_key}
