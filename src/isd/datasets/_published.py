"""The table of results that the starting project published."""

from __future__ import annotations

import pandas as pd

_RUNS = {
    # name: (data, training, guided, cells that were compared)
    "bulk NG": ("bulk", "from scratch", False, "all"),
    "bulk G": ("bulk", "from scratch", True, "all"),
    "sc NG": ("single cell", "from scratch", False, "all"),
    "sc G": ("single cell", "from scratch", True, "all"),
    "transfer NG": ("single cell", "fine-tuned from bulk", False, "all"),
    "transfer G": ("single cell", "fine-tuned from bulk", True, "all"),
    "sc G cluster 0": ("single cell", "from scratch", True, "cluster 0"),
    "one class": ("single cell", "one class alone", False, "cluster 0"),
}
_VALUES = {
    "seed_mmd": (4.0e-4, 5.8e-4, 4.0e-4, 5.2e-4, 4.0e-4, 4.0e-4, 2.0e-3, 1.4e-3),
    "seed_wasserstein": (1.2, 1.1, 1.6, 2.6, 2.1, 2.0, 1.56, 1.7),
    "seed_kl": (1.7, 2.6, 3.3, 13.0, 8.2, 7.7, 11.0, 14.0),
    "seed_rf_auc": (0.94, 0.96, 0.98, 0.99, 1.0, 1.0, 1.0, 0.93),
}


def published_results() -> pd.DataFrame:
    """Return the results published with the project that isd starts from, lower is better.

    Returns
    -------
    One row per run, indexed by its name (NG: not guided, G: guided), with columns ``data``, ``training``, ``guided``,
    ``cells`` and the four metrics by the names that ``isd.metrics.evaluate(..., metrics="seed")`` gives them. The MMD
    is ``2 / n`` whatever is compared (see :func:`isd.metrics.seed_mmd`), the reference cells were training cells, and
    an AUC of 0.5 would mean indistinguishable.

    Examples
    --------
    >>> float(published_results().loc["sc NG", "seed_rf_auc"])
    0.98
    """
    table = pd.DataFrame.from_dict(_RUNS, orient="index", columns=["data", "training", "guided", "cells"])
    return table.assign(**{name: list(values) for name, values in _VALUES.items()}).rename_axis("run")
