"""Which cells a model is trained on, and which it is judged by."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from isd._constants import SPLIT_KEY, SPLIT_TEST, SPLIT_TRAIN, SPLIT_VALIDATION
from isd.pp._anndata import to_write_on
from isd.settings import settings

_CATEGORIES = [SPLIT_TRAIN, SPLIT_VALIDATION, SPLIT_TEST]
_TRAIN, _VALIDATION, _TEST = range(3)
#: Random orders of the groups that are tried; the best balanced one is taken.
_TRIALS = 200


def split(
    adata: AnnData,
    *,
    test_size: float = 0.3,
    validation_size: float = 0.1,
    labels_key: str | None = None,
    batch_key: str | None = None,
    seed: int | None = 0,
    key_added: str = SPLIT_KEY,
    copy: bool = False,
) -> AnnData | None:
    """Divide cells into train, validation and test: stratified by label, or by whole groups.

    Without ``batch_key``, exactly ``round(test_size * n_obs)`` cells become test and ``round(validation_size * n_obs)``
    validation (halves up; at least one each from 3 cells on, where the size is not 0), and each label is divided in these
    proportions as closely as whole cells allow. Every label keeps a training cell; only where labels of one or two
    cells are so many that the sizes could not be kept do some of these have none.

    With ``batch_key``, whole groups (donors, studies) are assigned, so that no group is on two sides: the sizes are
    then as near as the best of 200 random orders of the groups comes, first with every label of at least 3 cells
    in the training cells if an order has that. Two groups give train and test only.

    Parameters
    ----------
    adata
        Annotated data; backed data will do.
    test_size, validation_size
        Shares of all cells, at least 0, together below 1.
    labels_key
        Column of ``obs`` to stratify by; ``None`` takes ``"leiden"`` if it is there. Cells without a label are a
        stratum of their own.
    batch_key
        Column of ``obs`` whose groups must not be divided.
    seed
        Seed; ``None`` takes :attr:`isd.settings.seed <isd.settings.Settings.seed>`.
    key_added
        Column of ``obs`` to write; an earlier split there is replaced.
    copy
        Whether to return a changed copy and leave ``adata`` as it is.

    Returns
    -------
    ``None``, or the copy. Written: ``obs[key_added]``, categorical with ``"train"``, ``"validation"``, ``"test"``.

    Raises
    ------
    KeyError
        If ``labels_key`` or ``batch_key`` is not in ``obs``.
    ValueError
        If sizes are out of range, there are fewer than 2 cells or 2 groups, or a cell has no group.

    Examples
    --------
    >>> import isd
    >>> adata = isd.datasets.simulated(200, 100, n_labels=3)
    >>> isd.pp.split(adata)
    >>> adata.obs["isd_split"].value_counts(sort=False).to_dict()
    {'train': 120, 'validation': 20, 'test': 60}
    """
    for name, value in (("test_size", test_size), ("validation_size", validation_size)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} is {value}; expected a share of the cells, at least 0 and below 1.")
    if test_size + validation_size >= 1:
        raise ValueError(
            f"test_size {test_size} and validation_size {validation_size} leave nothing to train on; "
            "together they must be below 1."
        )
    n_obs = adata.n_obs
    if n_obs < 2:
        raise ValueError(f"adata has {n_obs} cells; at least 2 are needed for a split.")
    for name, key in (("labels_key", labels_key), ("batch_key", batch_key)):
        if key is not None and key not in adata.obs:
            raise KeyError(f"{name} {key!r} is not in adata.obs, which has {sorted(map(str, adata.obs.columns))}.")
    if labels_key is None and "leiden" in adata.obs:
        labels_key = "leiden"
    strata = np.zeros(n_obs, dtype=int) if labels_key is None else _codes(adata.obs[labels_key])

    rng = np.random.default_rng(settings.seed if seed is None else seed)
    if batch_key is None:
        side = _by_cell(strata, *_sizes(n_obs, test_size, validation_size), rng)
    else:
        groups = pd.factorize(adata.obs[batch_key])[0]
        if (groups < 0).any():
            raise ValueError(
                f"{int((groups < 0).sum())} cells have no value in adata.obs[{batch_key!r}]; fill it in, "
                "or drop these cells: a group must be known to stay on one side."
            )
        if groups.max() == 0:
            raise ValueError(
                f"adata.obs[{batch_key!r}] has one group only, which cannot be divided; "
                "leave batch_key out to split by cell."
            )
        side = _by_group(strata, groups, test_size, validation_size, rng)

    adata = to_write_on(adata, copy=copy)
    adata.obs[key_added] = pd.Categorical.from_codes(side, categories=_CATEGORIES)
    return adata if copy else None


def _codes(column: pd.Series) -> np.ndarray:
    codes = pd.factorize(column)[0]
    codes[codes < 0] = codes.max() + 1
    return codes


def _sizes(n: int, test_size: float, validation_size: float) -> tuple[int, int]:
    """Numbers of test and validation cells; one cell at least is left to train on."""
    n_test, n_validation = (
        max(int(np.floor(share * n + 0.5)), 1 if share > 0 else 0) for share in (test_size, validation_size)
    )
    n_test = min(n_test, n - 1)
    return n_test, min(n_validation, n - 1 - n_test)


def _by_cell(strata: np.ndarray, n_test: int, n_validation: int, rng: np.random.Generator) -> np.ndarray:
    sizes = np.bincount(strata)
    kept = np.minimum(sizes, 1)  # a training cell for every label
    if (sizes - kept).sum() < n_test + n_validation:
        kept = np.where(sizes >= 3, 1, 0)
    if (sizes - kept).sum() < n_test + n_validation:
        kept = np.zeros_like(sizes)
    test = _apportion(sizes, n_test, sizes - kept, rng)
    validation = _apportion(sizes, n_validation, sizes - kept - test, rng)
    side = np.full(strata.size, _TRAIN)
    for label, (a, b) in enumerate(zip(test, validation, strict=True)):
        rows = rng.permutation(np.flatnonzero(strata == label))
        side[rows[:a]] = _TEST
        side[rows[a : a + b]] = _VALIDATION
    return side


def _apportion(sizes: np.ndarray, total: int, most: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whole shares of ``total`` in proportion to ``sizes``, none above ``most`` (largest remainder, ties at random)."""
    exact = sizes * (total / sizes.sum())
    share = np.minimum(np.floor(exact).astype(int), most)
    while share.sum() < total:
        wish = np.where(share < most, exact - share, -np.inf)
        order = np.lexsort((rng.random(sizes.size), -wish))
        open_ = order[: min(total - int(share.sum()), int((share < most).sum()))]
        share[open_] += 1
    return share


def _by_group(
    strata: np.ndarray, groups: np.ndarray, test_size: float, validation_size: float, rng: np.random.Generator
) -> np.ndarray:
    table = np.zeros((groups.max() + 1, strata.max() + 1), dtype=int)
    np.add.at(table, (groups, strata), 1)
    n_groups, n_obs = len(table), strata.size
    needed = table.sum(axis=0) >= 3
    wanted = {_TEST: test_size * n_obs, _VALIDATION: validation_size * n_obs}
    best: tuple[tuple[int, float], np.ndarray] | None = None
    for _ in range(_TRIALS):
        order = rng.permutation(n_groups)
        side = np.full(n_groups, _TRAIN)
        left = n_groups - 1  # one group at least stays in train
        at = 0
        for part in (_TEST, _VALIDATION):
            filled = 0.0
            while wanted[part] > 0 and left > 0:
                size = table[order[at]].sum()
                # the first group whatever its size; a later one only if it brings the total nearer
                if filled > 0 and abs(filled + size - wanted[part]) >= abs(filled - wanted[part]):
                    break
                side[order[at]] = part
                filled, at, left = filled + size, at + 1, left - 1
        lost = int((needed & (table[side == _TRAIN].sum(axis=0) == 0)).sum())
        off = sum(abs(table[side == part].sum() - wanted[part]) for part in wanted)
        if best is None or (lost, off) < best[0]:
            best = ((lost, float(off)), side)
    assert best is not None
    return best[1][groups]
