"""The pictures of the report, each with what it shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from isd._constants import GENE_ID, GENE_NAME, UNS_KEY
from isd.report import _html as html

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_MAX_LABEL_PANELS = 60


def pictures(
    real: AnnData, generated: AnnData, table: pd.DataFrame, key: str | None, options: dict[str, Any], n_jobs: int
) -> Iterator[str]:
    """All cells: metrics, ROC curves, map, depth and moments, labels."""
    import isd.pl as pl
    from isd.pl._cells import reference_rows

    quiet: dict[str, Any] = {"show": False, "return_fig": True}
    yield html.picture(
        pl.metrics(table, **quiet),
        alt="Each metric's distance from its floor",
        caption="Distance of each metric from its floor, in units of the floor's interval. Within the shaded band, generated "
        "cells do as well as real cells do against each other.",
    )
    if _has_roc(generated):
        yield "<h2>Can a classifier tell them apart?</h2>"
        yield html.picture(
            pl.roc(generated, **quiet),
            alt="ROC curves of the random forest",
            caption="A cross-validated random forest looks for generated cells among held-out real ones. Dashed: the same "
            "between real cells.",
        )
    yield "<h2>On one map</h2>"
    drawn = {name: options[name] for name in ("layer", "max_cells", "seed")}
    yield html.picture(
        pl.umap_compare(real, generated, color=key, **drawn, **quiet),
        alt="UMAP of real and generated cells",
        caption="Fitted on real cells, generated ones placed into it; equal numbers are drawn. A map shows gross failures only: "
        "what looks mixed may still be told apart.",
    )
    yield "<h2>Depth, means, variances and zeros</h2>"
    yield html.picture(
        pl.library_size(real, generated, labels_key=key, **options, **quiet),
        alt="Total counts and detected features",
        caption="Total counts and detected features of cells. Rows: median, middle half and middle 95% of each label.",
    )
    enough = min(reference_rows(real, generated, options["reference"]).size, generated.n_obs) >= 4
    for make, what in ((pl.mean_variance, "means and variances"), (pl.zero_fraction, "zero fractions")):
        if enough:
            yield html.picture(
                make(real, generated, **options, **quiet),
                alt=f"{what} of features",
                caption=f"{what.capitalize()} of features. The band holds 95% of the features when one half of the real cells "
                "is compared with the other.",
            )
    if key is not None and real.obs[key].nunique() > 1:
        yield "<h2>Are labels what they were asked to be?</h2>"
        yield html.picture(
            pl.label_confusion(real, generated, labels_key=key, n_jobs=n_jobs, **options, **quiet),
            alt="Labels asked for against labels found",
            caption="A classifier trained on real training cells reads the labels. Left: held-out real cells, the best that can be "
            "expected. Percent of each row.",
        )


def _has_roc(generated: AnnData) -> bool:
    slot = generated.uns.get(UNS_KEY, {})
    if "roc" not in slot or "metrics" not in slot:
        return False
    evaluated = slot["metrics"]
    return bool(((evaluated["metric"] == "random_forest_auc") & (evaluated["group"] == "all")).any())


def label_pictures(table: pd.DataFrame, generated: AnnData) -> Iterator[str]:
    """Labels that have ROC curves, one panel each."""
    import isd.pl as pl

    labels = list(dict.fromkeys(table.loc[table["group"] != "all", "group"]))
    if _has_roc(generated) and len(labels) <= _MAX_LABEL_PANELS:
        known = set(generated.uns[UNS_KEY]["metrics"].query("metric == 'random_forest_auc'")["group"])
        shown = [label for label in labels if label in known]
        if shown:
            yield html.picture(
                pl.roc(generated, groups=shown, mode="per_label", show=False, return_fig=True),
                alt="ROC curves of each label",
                caption="The random forest within each label, beside the floor, with 95% intervals.",
            )


def isoforms(
    real: AnnData, generated: AnnData, genes: Sequence[str] | None, key: str | None, options: dict[str, Any]
) -> Iterator[str]:
    """Usage of the isoforms of genes asked for, else of genes chosen by rule."""
    import isd.pl as pl
    from isd.pl._choose_genes import choose_genes

    if genes is None:
        if GENE_ID not in real.var and GENE_NAME not in real.var:
            return
        chosen = choose_genes(real, generated, labels_key=key, **options)
    else:
        chosen = [(gene, "asked for") for gene in genes]
    if not chosen:
        return
    yield "<h2>Isoforms</h2>"
    yield '<div class="row">'
    for gene, reason in chosen:
        yield html.picture(
            pl.isoform_usage(real, generated, gene, labels_key=key, show=False, return_fig=True, **options),
            alt=f"Isoform usage of {gene}",
            caption=f"{gene}: {reason}. Above, plain: real; below, hatched: generated. Right: the gene's counts.",
        )
    yield "</div>"
