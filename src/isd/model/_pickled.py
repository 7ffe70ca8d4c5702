"""Models as scvi-tools writes them: a pickle, read only where that is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

PICKLED_FILE = "model.pt"


def read_pickled(path: str | Path, class_name: str) -> tuple[dict[str, Any], dict[str, torch.Tensor], dict[str, Any]]:
    """Read a folder with scvi-tools' ``model.pt`` in the form in which :func:`isd.model._files.read_model` gives ours.

    Reading it can run any code that its author put there; a warning says so.

    Parameters
    ----------
    path
        The folder.
    class_name
        Class of the model, for messages.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds something else.
    """
    file = Path(path) / PICKLED_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} has no {PICKLED_FILE}; leave out allow_pickle to read a folder that isd wrote."
        )
    warnings.warn(
        f"{file} is a pickle: reading it runs whatever its author put there. Save the model again with save(), and pass that on.",
        UserWarning,
        stacklevel=5,
    )
    held = torch.load(file, map_location="cpu", weights_only=False)
    try:
        attributes = dict(held["attr_dict"])
        registry = attributes.pop("registry_")
        if registry["model_name"] != class_name:
            raise ValueError(f"{path} holds a {registry['model_name']}, not a {class_name}.")
        tensors = {
            f"module.{name}": value for name, value in held["model_state_dict"].items() if torch.is_tensor(value)
        }
        # those of an isd that knew no clumps of counts, or no normal scores of library sizes
        params = attributes["init_params_"]["non_kwargs"]
        if class_name == "VAE":
            params.setdefault("clumps", "module.log_clump" in tensors)
        elif class_name == "LatentDiffusion":
            params.setdefault("library_quantiles", len(tensors.get("module.scaler.quantiles", ())))
        var_names = [str(v) for v in np.asarray(held["var_names"])]
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{file} is not what scvi-tools saves of a model ({type(e).__name__}: {e}).") from e
    keep = {k: v for k, v in attributes.items() if k.endswith("_") and not k.startswith("_") and not _is_adata(v)}
    meta = {"class": class_name, "fingerprint": None, "colors": None, "attributes": keep, "registry": registry}
    return meta, tensors, {"var_names": var_names, "columns": {}}


def _is_adata(value: Any) -> bool:
    return hasattr(value, "obs_names") or (isinstance(value, Mapping) and "obs" in value)
