"""One map for real and generated cells: fitted on the real ones, the generated ones placed into it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from isd._constants import OBSM_UMAP, SOURCE_GENERATED, SOURCE_KEY, SOURCE_REAL
from isd._counts import get_counts
from isd.metrics import Yardstick, log_normalize

#: Grey and vermilion (Okabe and Ito): told apart by everybody, and in print.
SOURCE_COLORS = ["#9a9a9a", "#d55e00"]

# At UMAP's own repulsion, transformed cells are pushed to the rims of clusters even if they are held-out real ones:
# their median distance to the nearest real cell was 1.7 to 2.3 times that among real cells, but 0.5 to 0.85 times it in
# principal components. At 0.3 it is 0.7 to 1.0 times it on the map (30 to 600 real cells of three data sets).
_PLACING_REPULSION = 0.3


def embed(
    adata: AnnData,
    generated: AnnData,
    *,
    layer: str | None = None,
    n_pcs: int = 30,
    n_neighbors: int = 15,
    min_dist: float = 0.3,
    max_cells: int | None = 20_000,
    seed: int = 0,
) -> AnnData:
    """Joint embedding of real and generated cells, as a new AnnData that scanpy can plot.

    Features, principal components and the UMAP are fitted on real cells only; generated cells are transformed into
    them, so that they cannot bend the map towards themselves. The map is a view for people: numbers are
    :func:`isd.metrics.evaluate`'s.

    Parameters
    ----------
    adata
        Real cells with counts.
    generated
        Generated cells, as ``isd.tl.generate`` makes them; the same features in any order.
    layer
        Layer of the counts in both; by default ``"counts"`` where there is one, else ``X``.
    n_pcs
        Number of principal components (fewer if there are fewer cells).
    n_neighbors
        Neighbours of the UMAP (fewer if there are fewer cells).
    min_dist
        Smallest distance of points in the UMAP.
    max_cells
        Largest number of cells from either side, drawn without replacement; ``None`` for all.
    seed
        Seed of the draw and of the UMAP.

    Returns
    -------
    AnnData of both, neither of which is changed: ``X`` log-normalised (csr), ``obs["isd_source"]`` (``"real"`` or
    ``"generated"``) and the columns of ``obs`` that both have (categories in the real data's order, colours in
    ``uns``), ``obsm["X_isd_pca"]``, ``obsm["X_isd_umap"]``, and the latter as ``obsm["X_umap"]``, where
    ``sc.pl.umap`` looks for it.

    Raises
    ------
    ValueError
        If features are missing, a number is not positive, or there are fewer than 4 real cells.

    Examples
    --------
    >>> import anndata as ad
    >>> rng = np.random.default_rng(0)
    >>> real = ad.AnnData(rng.poisson(2.0, size=(40, 20)).astype("float32"))
    >>> fake = ad.AnnData(rng.poisson(2.0, size=(10, 20)).astype("float32"))
    >>> joint = embed(real, fake, n_pcs=5)
    >>> joint.obsm["X_isd_umap"].shape
    (50, 2)
    """
    for name, value in (("n_pcs", n_pcs), ("n_neighbors", n_neighbors), ("max_cells", max_cells)):
        if value is not None and value < 2:
            raise ValueError(f"{name}={value} must be at least 2.")
    if generated.n_obs == 0:
        raise ValueError("`generated` has no cells.")
    rows = [_draw(data.n_obs, max_cells, seed) for data in (adata, generated)]
    real_counts = sparse.csr_matrix(get_counts(adata, layer)[rows[0]])
    fake_counts = sparse.csr_matrix(get_counts(generated, layer)[rows[1]])

    yardstick = Yardstick.fit(real_counts, adata.var_names, n_pcs=n_pcs, seed=seed)
    columns = yardstick.align(generated.var_names)
    if columns is not None:
        fake_counts = fake_counts[:, columns]
    pcs = [yardstick.pcs(counts) for counts in (real_counts, fake_counts)]
    umap = _umap(*pcs, n_neighbors=n_neighbors, min_dist=min_dist, seed=seed)

    obs = [data.obs.iloc[chosen] for data, chosen in zip((adata, generated), rows, strict=True)]
    joint = AnnData(
        X=sparse.vstack([log_normalize(real_counts), log_normalize(fake_counts)], format="csr"),
        obs=_joint_obs(*obs),
        var=adata.var.copy(),
    )
    joint.obsm["X_isd_pca"] = np.concatenate(pcs).astype(np.float32)
    joint.obsm[OBSM_UMAP] = np.concatenate(umap).astype(np.float32)
    joint.obsm["X_umap"] = joint.obsm[OBSM_UMAP].copy()
    joint.uns[f"{SOURCE_KEY}_colors"] = list(SOURCE_COLORS)
    for key in joint.obs:
        colors = adata.uns.get(f"{key}_colors")
        if isinstance(joint.obs[key].dtype, pd.CategoricalDtype) and colors is not None and key != SOURCE_KEY:
            if len(colors) >= len(joint.obs[key].cat.categories):
                joint.uns[f"{key}_colors"] = [str(c) for c in colors[: len(joint.obs[key].cat.categories)]]
    return joint


def _draw(n_obs: int, size: int | None, seed: int) -> np.ndarray:
    if size is None or n_obs <= size:
        return np.arange(n_obs)
    return np.sort(np.random.default_rng(seed).choice(n_obs, size=size, replace=False))


def _umap(real: np.ndarray, generated: np.ndarray, *, n_neighbors: int, min_dist: float, seed: int) -> list[np.ndarray]:
    """UMAP of the real points and the place of the generated ones in it."""
    if real.shape[0] < 8:  # too few for a neighbourhood graph: the first components are a map, too
        return [_two_columns(points) for points in (real, generated)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # umap's remarks on its own internals: nothing that a caller can act on
        import umap

        reducer = umap.UMAP(
            n_neighbors=min(n_neighbors, real.shape[0] - 1),
            min_dist=min_dist,
            init="spectral" if real.shape[0] > 50 else "random",
            random_state=seed,
            transform_seed=seed,
            n_jobs=1,
        )
        placed = reducer.fit_transform(real.astype(np.float32))
        reducer.repulsion_strength = _PLACING_REPULSION
        return [placed, reducer.transform(generated.astype(np.float32))]


def _two_columns(points: np.ndarray) -> np.ndarray:
    return np.pad(points, ((0, 0), (0, max(0, 2 - points.shape[1]))))[:, :2]


def _joint_obs(real: pd.DataFrame, generated: pd.DataFrame) -> pd.DataFrame:
    """Columns that both have, and where each row is from; names are made unique where both use the same."""
    names = real.index.astype(str).append(generated.index.astype(str))
    if not names.is_unique:
        names = pd.Index(
            [f"{SOURCE_REAL}_{name}" for name in real.index]
            + [f"{SOURCE_GENERATED}_{name}" for name in generated.index]
        )
    obs = pd.DataFrame(index=names)
    codes = np.repeat([0, 1], [real.shape[0], generated.shape[0]])
    obs[SOURCE_KEY] = pd.Categorical.from_codes(codes, [SOURCE_REAL, SOURCE_GENERATED])
    for key in real.columns:
        if key not in generated.columns or key == SOURCE_KEY:
            continue
        values: Any = _joined(real[key], generated[key])
        if values is not None:
            obs[key] = values
    return obs


def _joined(real: pd.Series, generated: pd.Series) -> Any:
    """One column out of two, or ``None`` where they hold different kinds of values."""
    categorical = [isinstance(column.dtype, pd.CategoricalDtype) for column in (real, generated)]
    values = [column.astype(object).to_numpy() for column in (real, generated)]
    if any(categorical):
        categories = list(real.cat.categories) if categorical[0] else list(pd.unique(real.dropna()))
        by_name = {str(category): category for category in categories}
        # "3" and 3 are the same label: files and models may hold either
        values[1] = np.array([by_name.get(str(v), v) if not pd.isna(v) else None for v in values[1]], dtype=object)
        new = [v for v in pd.unique(pd.Series(values[1], dtype=object).dropna()) if v not in set(categories)]
        return pd.Categorical(np.concatenate(values), categories=[*categories, *new])
    if all(pd.api.types.is_numeric_dtype(column.dtype) for column in (real, generated)):
        return np.concatenate([real.to_numpy(), generated.to_numpy()])
    if any(pd.api.types.is_numeric_dtype(column.dtype) for column in (real, generated)):
        return None
    return np.concatenate(values)
