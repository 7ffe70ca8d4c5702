"""Cells that are judged, generated and inferred."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import isd
from isd.model import LatentDiffusion

from .conftest import (
    EVALUATE,
    GENERATE,
    INFER,
    VALUES,
    Case,
    Given,
    check,
    edited,
    log_normalised,
    renamed,
    values,
    with_obs,
)


def fake_of(given: Given) -> ad.AnnData:
    return given.cells[given.cells.obs["isd_split"] == "train"][:40].copy()


def _as(adata: ad.AnnData, change: Callable[[Any], Any]) -> ad.AnnData:
    adata.X = change(adata.X)
    return adata


def _untrained(given: Given) -> LatentDiffusion:
    adata = given.adata
    LatentDiffusion.setup_anndata(adata)
    return LatentDiffusion(adata, n_hidden=8)


def _bare(adata: ad.AnnData) -> ad.AnnData:
    return ad.AnnData(adata.X, obs=adata.obs, var=pd.DataFrame(index=adata.var_names))


def _inferred(given: Given, change: Callable[[Any], Any]) -> bool:
    found = [isd.tl.infer_isoforms(given.model, g, seed=0).X for g in (given.genes, _as(given.genes, change))]
    return (found[0] != found[1]).nnz == 0


CASES = [
    # judging
    Case("generated cells that lack features", EVALUATE, "refused: subset the real data first", lambda g: values(g.adata, fake_of(g)[:, 5:].copy()), ValueError, "5 of the 40 features.*missing in"),
    Case("no feature shared", EVALUATE, "refused, likewise", lambda g: values(g.adata, renamed(fake_of(g), [f"x{i}" for i in range(40)])), ValueError, "40 of the 40 features"),
    Case("features in another order", EVALUATE, "accepted: the same numbers", lambda g: values(g.adata, fake_of(g)[:, ::-1].copy()), gives=VALUES),
    Case("generated cells as float16, csc", EVALUATE, "accepted: the same numbers", lambda g: values(g.adata, _as(fake_of(g), lambda x: sparse.csc_matrix(x.toarray().astype(np.float16).astype(np.float32)))), gives=VALUES),
    Case("real cells as dense float16", EVALUATE, "accepted: the same numbers", lambda g: values(g.like(lambda x: x.toarray().astype(np.float16)), fake_of(g)), gives=VALUES),
    Case("no generated cells", EVALUATE, "refused: has no cells", lambda g: values(g.adata, fake_of(g)[:0].copy()), ValueError, "`generated` has no cells"),
    Case("log-normalised generated cells", EVALUATE, "refused: looks log-normalised", lambda g: values(g.adata, _as(fake_of(g), log_normalised)), ValueError, "generated: adata.X looks log"),
    Case("NaN in generated cells", EVALUATE, "refused: holds NaN", lambda g: values(g.adata, _as(fake_of(g), lambda x: edited(x, 0, np.nan))), ValueError, "generated: adata.X holds NaN"),
    Case("transcripts that share a name", EVALUATE, "refused, with their number", lambda g: values(g.adata, renamed(fake_of(g), ["same", "same", *g.cells.var_names[2:]])), ValueError, "1 var_names of `generated`"),
    Case("no test cells in the split", EVALUATE, "refused", lambda g: values(with_obs(g.adata, isd_split="train"), fake_of(g)), ValueError, "test"),
    Case("a metric that does not exist", EVALUATE, "refused, with those that do", lambda g: values(g.adata, fake_of(g), metrics=["fid"]), ValueError, "'fid'.*choose out of"),
    Case("labels_key that is not there", EVALUATE, "refused, with the columns that are", lambda g: values(g.adata, fake_of(g), labels_key="kind"), KeyError, "kind"),
    # generating
    Case("n_obs of 0", GENERATE, "refused: a whole number of at least 1", lambda g: isd.tl.generate(g.model, n_obs=0), ValueError, "n_obs must be a whole number"),
    Case("n_obs of 2.5", GENERATE, "refused, likewise", lambda g: isd.tl.generate(g.model, n_obs=2.5), ValueError, "n_obs must be a whole number"),
    Case("a label that the model has not seen", GENERATE, "refused, with those that it has", lambda g: isd.tl.generate(g.model, n_obs=3, labels="T cell"), ValueError, "'T cell' is not one of"),
    Case("labels of which some are missing", GENERATE, "refused", lambda g: isd.tl.generate(g.model, n_obs=2, labels=["0", None]), ValueError, "missing values"),
    Case("fewer labels than cells", GENERATE, "refused: one label a cell", lambda g: isd.tl.generate(g.model, n_obs=5, labels=["0", "1"]), ValueError, "2 entries, but n_obs is 5"),
    Case("batch_size of 0", GENERATE, "refused: at least 1", lambda g: isd.tl.generate(g.model, n_obs=2, batch_size=0), ValueError, "batch_size must be at least 1"),
    Case("a model that is not trained", GENERATE, "refused: call model.train() first", lambda g: isd.tl.generate(_untrained(g), n_obs=2), ValueError, r"model\.train\(\)"),
    Case("a path in place of the model", GENERATE, "refused: must be a LatentDiffusion", lambda g: isd.tl.generate("model/", n_obs=2), TypeError, "got str"),
    # isoforms from genes
    Case("no gene shared", INFER, "refused, with the names of both sides", lambda g: isd.tl.infer_isoforms(g.model, renamed(_bare(g.genes), [f"x{i}" for i in range(g.genes.n_vars)])), ValueError, "none of"),
    Case("transcripts in place of genes", INFER, "refused: isd.pp.to_mudata adds them up", lambda g: isd.tl.infer_isoforms(g.model, g.adata), ValueError, "."),
    Case("negative counts", INFER, "refused: raw counts were expected", lambda g: isd.tl.infer_isoforms(g.model, _as(g.genes, lambda x: edited(x, 0, -2))), ValueError, "negative values"),
    Case("log-normalised values given as counts", INFER, "refused: looks log-normalised", lambda g: isd.tl.infer_isoforms(g.model, _as(g.genes, log_normalised)), ValueError, "looks log"),
    Case("csc matrix of uint32", INFER, "accepted: the same isoforms", lambda g: _inferred(g, lambda x: sparse.csc_matrix(x.astype(np.uint32))), gives=True),
    Case("dense float16", INFER, "accepted: the same isoforms", lambda g: _inferred(g, lambda x: x.toarray().astype(np.float16)), gives=True),
    Case("a column of labels that is not there", INFER, "refused, with the columns that are", lambda g: isd.tl.infer_isoforms(g.model, g.genes, labels="kind"), KeyError, "kind"),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Variable names are not unique", "ignore:Observation names are not unique")
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.to}: {c.name}")
def test_case(case: Case, given: Given) -> None:
    check(case, given)
