"""The card that a shared model travels with: what it is, how it was trained, how well it does, and how it is used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from isd._constants import UNS_KEY

_PACKAGES = ("isodiff", "scvi-tools", "torch", "anndata")
_TAGS = ("isodiff", "rna-seq", "single-cell", "isoforms", "generative-model", "anndata")
_COLUMNS = ("metric", "space", "value", "lower", "upper", "floor", "verdict")
#: Labels that are listed one by one.
MOST_LABELS = 60


def model_card(
    model: Any,
    *,
    metrics: pd.DataFrame | AnnData | None = None,
    repo_id: str | None = None,
    title: str | None = None,
    description: str | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
) -> str:
    """Describe a trained model for those who will use it, in Markdown with a YAML head as the Hugging Face Hub reads it.

    Everything but ``title``, ``description`` and ``license`` comes from the model and the table of metrics. Names of cells do
    not enter it.

    Parameters
    ----------
    model
        A trained :class:`VAE`, :class:`LatentDiffusion` or :class:`Classifier`.
    metrics
        What :func:`isd.metrics.evaluate` returned, or the generated cells that it wrote its table to
        (``uns["isd"]["metrics"]``). Rows over all cells are shown.
    repo_id
        Repository that the card is for, for the lines that load the model.
    title
        Heading; by default the class of the model and its number of transcripts.
    description
        What cells it was trained on and where they come from: nothing in the model says so.
    license
        Identifier of a licence, such as ``"cc-by-4.0"``.
    tags
        Further tags.

    Returns
    -------
    Text of a ``README.md``.

    Raises
    ------
    ValueError
        If the model is not trained.
    TypeError
        If ``metrics`` is no table of metrics and no AnnData with one.

    Examples
    --------
    >>> import isd
    >>> adata = isd.datasets.simulated(n_obs=60, n_vars=50, n_labels=2)
    >>> isd.model.VAE.setup_anndata(adata)
    >>> vae = isd.model.VAE(adata, n_latent=4, n_hidden=16)
    >>> vae.train(max_steps=2, progress=False)
    >>> card = isd.model.model_card(vae, title="Two simulated clusters", license="cc0-1.0")
    >>> print(card.split("## ")[0])
    ---
    library_name: isodiff
    license: "cc0-1.0"
    tags: ["isodiff", "rna-seq", "single-cell", "isoforms", "generative-model", "anndata"]
    ---
    <BLANKLINE>
    # Two simulated clusters
    <BLANKLINE>
    A VAE of isodiff over 50 transcripts, for counts per transcript.
    <BLANKLINE>
    """
    if not model.is_trained:
        raise ValueError(f"the {type(model).__name__} is not trained yet; call its train() first.")
    table = _as_table(metrics)
    name = type(model).__name__
    title = title or f"{name} of {len(model.feature_names):,} transcripts"
    parts = [_head(title, table, license, [*_TAGS, *tags]), f"# {_line(title)}\n"]
    parts.append(f"A {name} of isodiff over {len(model.feature_names):,} transcripts, for counts per transcript.\n")
    parts.append(
        f"## Data\n\n{_line(description) if description else 'The author has not said where the cells are from.'}\n"
    )
    parts.append(_listing(_data(model)))
    parts.append("## Use\n\n```python\n" + _use(name, repo_id) + "\n```\n")
    parts.append("## Training\n")
    parts.append(_listing(_training(model)))
    parts.append("## Quality\n\n" + _quality(table))
    parts.append(
        "## Limits\n\nGenerated cells are for method development, planning and augmentation. They are drawn from what the model has "
        "learnt of its training cells: they are no new observations, know no cell type and no condition that was not there, and "
        "are not for clinical decisions. The files hold names of transcripts and labels, library sizes and conditions of the "
        "training cells, and hashes of the cells' names; no counts of single cells unless `adata.h5ad` is among them.\n"
    )
    return "\n".join(parts)


def _as_table(metrics: Any) -> pd.DataFrame | None:
    if isinstance(metrics, AnnData):
        metrics = metrics.uns.get(UNS_KEY, {}).get("metrics", "no table in uns")
    if metrics is None:
        return None
    if not isinstance(metrics, pd.DataFrame) or not {"metric", "space", "group", "value"} <= set(metrics.columns):
        raise TypeError(
            "metrics must be what isd.metrics.evaluate(real, generated) returns, or the generated cells after that call; "
            f"got {type(metrics).__name__ if not isinstance(metrics, str) else 'AnnData with ' + metrics}."
        )
    return metrics[metrics["group"] == "all"]


def _head(title: str, table: pd.DataFrame | None, license: str | None, tags: list[str]) -> str:
    """YAML; every string is written as JSON, which YAML reads alike whatever is in it."""
    lines = ["library_name: isodiff"]
    if license is not None:
        lines.append(f"license: {json.dumps(license)}")
    lines.append(f"tags: {json.dumps(tags)}")
    if table is not None:
        found = [
            {"type": str(r["metric"]), "name": f"{r['metric']} ({r['space']})", "value": round(float(r["value"]), 6)}
            for r in table.to_dict("records")
            if np.isfinite(r["value"])
        ]
        result = {
            "task": {"type": "other", "name": "generation of transcript counts"},
            "dataset": {"type": "other", "name": "held-out cells"},
            "metrics": found,
        }
        lines.append("model-index: " + json.dumps([{"name": title, "results": [result]}]))
    return "---\n" + "\n".join(lines) + "\n---\n"


def _data(model: Any) -> dict[str, str]:
    train, validation, test = (model.train_indices_, model.validation_indices_, model.test_indices_)
    out = {}
    if train is not None:
        out["cells"] = f"{len(train):,} for training, {len(validation):,} for validation, {len(test):,} held out"
    labels = [str(v) for v in model.labels]
    if model.labels_key is not None:
        codes = getattr(model, "template_codes_", None)
        if codes is not None and codes.shape[1]:
            counts = np.bincount(codes[:, 0].astype(int), minlength=len(labels))
            labels = [f"{label} ({n:,})" for label, n in zip(labels, counts, strict=False)]
        shown = ", ".join(labels[:MOST_LABELS]) + (
            f" and {len(labels) - MOST_LABELS} more" if len(labels) > MOST_LABELS else ""
        )
        out[f"labels (`{model.labels_key}`, training cells)"] = shown
    if len(model.batches) > 1:
        out["batches"] = f"{len(model.batches)} (`{model.setup_args['batch_key']}`)"
    if model.gene_names is not None:
        out["genes"] = f"{len(model.gene_names):,} (`{model.gene_key}`)"
    features = [str(f) for f in model.feature_names[:3]]
    out["transcripts"] = f"{len(model.feature_names):,}: {', '.join(features)}, ..."
    return out


def _training(model: Any) -> dict[str, str]:
    options = _options(model)
    weights = sum(p.numel() for p in model.module.parameters())
    out = {"weights": f"{weights:,}", "settings": ", ".join(f"{k}={v}" for k, v in options.items())}
    steps = (model.history_ or {}).get("train_loss_step")
    if steps is not None and len(steps):
        out["steps"] = f"about {int(steps.index.max()):,}" + (
            "" if model.training_finished else ", stopped before its end"
        )
    out["fingerprint"] = str(model.fingerprint)
    vae = getattr(model, "_vae", None)
    if vae is not None:
        out["VAE"] = ", ".join(f"{k}={v}" for k, v in _options(vae).items())
    out["written by"] = ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    return out


def _options(model: Any) -> dict[str, Any]:
    """Settings of a module that are set, of lists their length."""
    found = {k: v for k, v in model.module_params.items() if v is not None}
    return {k: f"{len(v):,} names" if isinstance(v, list) and len(v) > 8 else v for k, v in found.items()}


def _use(name: str, repo_id: str | None) -> str:
    where = f"from_hub({repo_id!r})" if repo_id else 'load("folder")'
    if name == "LatentDiffusion":
        return f'import isd\n\nmodel = isd.model.LatentDiffusion.{where}\ncells = isd.tl.generate(model, n_obs=1000, labels="match", seed=0)'
    if name == "Classifier":
        inner = where[:-1] + ", diffusion=diffusion)"
        return f"import isd\n\nclassifier = isd.model.Classifier.{inner}  # of the diffusion model that it guides"
    return f"import isd\n\nvae = isd.model.VAE.{where}\nlatents = vae.get_latent_representation(adata)"


def _quality(table: pd.DataFrame | None) -> str:
    if table is None or not len(table):
        return "Not measured: no table of `isd.metrics.evaluate` was given.\n"
    columns = [c for c in _COLUMNS if c in table]
    rows = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for record in table.to_dict("records"):
        rows.append("| " + " | ".join(_cell(record[c]) for c in columns) + " |")
    return (
        "Generated against held-out cells (`isd.metrics.evaluate`); `lower` and `upper` are a 95% interval, and the floor is the "
        "same metric between real cells and real cells.\n\n" + "\n".join(rows) + "\n"
    )


def _listing(items: Mapping[str, str]) -> str:
    return "".join(f"- **{name}**: {_line(value)}\n" for name, value in items.items())


def _cell(value: Any) -> str:
    if isinstance(value, (float, np.floating)):
        return "" if not np.isfinite(value) else f"{value:.4g}"
    return _line(value).replace("|", "\\|")


def _line(value: Any) -> str:
    """Text on one line, which cannot end what it stands in."""
    return " ".join(str(value).split()).replace("```", "'''").replace("<", "&lt;")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
