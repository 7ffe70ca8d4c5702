"""Odd and malformed inputs: each is refused with a message that helps, or gives the right result.

``docs/guide/bad_input.md`` lists the same cases in the same words; a test compares the two.
"""

from __future__ import annotations

import gzip
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import isd
from isd.model import VAE, LatentDiffusion

DOCS = Path(__file__).parents[1] / "docs" / "guide" / "bad_input.md"
SMALL: dict[str, Any] = {"n_hidden": 8, "n_latent": 2}


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """80 simulated cells x 40 transcripts, split, with three labels."""
    adata = isd.datasets.simulated(80, 40, n_labels=3, seed=2)
    isd.pp.split(adata, seed=0)
    return adata


@pytest.fixture(scope="module")
def model(cells: ad.AnnData) -> LatentDiffusion:
    isd.settings.progress = False
    data = cells.copy()
    LatentDiffusion.setup_anndata(data)
    model = LatentDiffusion(data, n_hidden=8)
    model.train(max_steps=2, vae_kwargs={"max_steps": 2})
    model.vae.fit_gene_encoder(max_steps=2)
    return model


@pytest.fixture(scope="module")
def loss(cells: ad.AnnData) -> np.ndarray:
    isd.settings.progress = False
    return loss_of(cells.copy())


@pytest.fixture(scope="module")
def judged(cells: ad.AnnData) -> np.ndarray:
    return values(cells.copy(), cells[cells.obs["isd_split"] == "train"][:40].copy())


@dataclass
class Given:
    """What a case may use: fresh cells, a trained model, a folder."""

    cells: ad.AnnData
    tmp: Path
    request: pytest.FixtureRequest

    @property
    def adata(self) -> ad.AnnData:
        return self.cells.copy()

    @property
    def model(self) -> LatentDiffusion:
        return self.request.getfixturevalue("model")

    @property
    def genes(self) -> ad.AnnData:
        return isd.pp.to_mudata(self.cells[:12].copy())["gene"].copy()

    def like(self, change: Callable[[Any], Any]) -> ad.AnnData:
        """Cells whose matrix was changed."""
        adata = self.adata
        adata.X = change(adata.X)
        return adata

    def put(self, name: str, content: str | bytes) -> Path:
        path = self.tmp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def saved(self) -> Path:
        path = self.tmp / "model"
        self.model.save(path)
        return path


@dataclass
class Case:
    """One input: what it is, what it is given to, what is said about it, and how that is checked."""

    name: str
    to: str
    note: str
    call: Callable[[Given], Any]
    error: type[Exception] | None = None
    says: str = ""
    #: what the call must return: a value, or a function of the fixtures
    gives: Any = None
    warns: str = field(default="", kw_only=True)


# what cases do -----------------------------------------------------------------------------------------------------


def loss_of(adata: ad.AnnData, **kwargs: Any) -> np.ndarray:
    VAE.setup_anndata(adata, **kwargs)
    vae = VAE(adata, **SMALL)
    vae.train(max_steps=2)
    return vae.history["train_loss"].to_numpy().ravel()


def edited(matrix: Any, position: int = 0, value: float = 1) -> Any:
    matrix = matrix.astype(np.float32)
    matrix.data[position] = value
    return matrix


def without_counts(matrix: Any, row: int = 3) -> Any:
    matrix = matrix.tolil()
    matrix[row] = 0
    return matrix.tocsr()


def log_normalised(matrix: Any) -> Any:
    totals = np.asarray(matrix.sum(1)).ravel()
    return sparse.csr_matrix(sparse.diags(1e4 / totals) @ matrix).log1p().astype(np.float32)


def per_million(matrix: Any) -> Any:
    totals = np.asarray(matrix.sum(1)).ravel()
    return sparse.csr_matrix(sparse.diags(1e6 / totals) @ matrix).astype(np.float32)


def shuffled(matrix: Any) -> Any:
    """The same matrix, each row's entries stored backwards."""
    out = matrix.copy()
    for a, b in zip(out.indptr[:-1], out.indptr[1:], strict=True):
        out.indices[a:b], out.data[a:b] = out.indices[a:b][::-1].copy(), out.data[a:b][::-1].copy()
    out.has_sorted_indices = False
    return out


def stored_twice(matrix: Any) -> Any:
    """The same matrix, every value stored as two parts."""
    coo = matrix.tocoo()
    row, column = np.tile(coo.row, 2), np.tile(coo.col, 2)
    order = np.argsort(row, kind="stable")
    data = np.concatenate([coo.data - 1, np.ones_like(coo.data)])[order]
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=matrix.shape[0]))])
    return sparse.csr_matrix((data, column[order], indptr), shape=matrix.shape)


def with_zeros(matrix: Any) -> Any:
    """The same matrix, some zeros stored."""
    dense = matrix.toarray()
    rows, columns = np.indices(dense.shape)
    keep = (dense > 0) | ((rows + columns) % 5 == 0)
    return sparse.csr_matrix((dense[keep], (rows[keep], columns[keep])), shape=dense.shape)


def long_indices(matrix: Any) -> Any:
    out = matrix.copy()
    out.indices, out.indptr = out.indices.astype(np.int64), out.indptr.astype(np.int64)
    return out


def with_obs(adata: ad.AnnData, **columns: Any) -> ad.AnnData:
    for name, values in columns.items():
        adata.obs[name] = values
    return adata


def renamed(adata: ad.AnnData, names: Any, axis: str = "var") -> ad.AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's own, about names that repeat
        setattr(adata, f"{axis}_names", names)
    return adata


def backed(given: Given) -> ad.AnnData:
    given.cells.write_h5ad(given.tmp / "cells.h5ad")
    return ad.read_h5ad(given.tmp / "cells.h5ad", backed="r+")


def clusters(adata: ad.AnnData, **kwargs: Any) -> list[str]:
    # the simulated cells have leiden already, which the recipe would keep
    isd.pp.recipe(adata, n_top_features=20, n_pcs=5, key_added="found", **kwargs)
    return adata.obs["found"].tolist()


def values(real: ad.AnnData, fake: ad.AnnData, **kwargs: Any) -> np.ndarray:
    options: dict[str, Any] = {"metrics": ["mmd"], "n_boot": 20, "groups": False} | kwargs
    return isd.metrics.evaluate(real, fake, **options)["value"].to_numpy()


def fake_of(given: Given) -> ad.AnnData:
    return given.cells[given.cells.obs["isd_split"] == "train"][:40].copy()


def sides(adata: ad.AnnData, **kwargs: Any) -> dict[str, int]:
    isd.pp.split(adata, **kwargs)
    return adata.obs["isd_split"].value_counts(sort=False).to_dict()


SIDES = {"train": 48, "validation": 8, "test": 24}
TABLE = "transcript_id,gene_id,A,B\nENST1,ENSG1,1,0\nENST2,ENSG1,0,3\n"
SALMON = "Name\tLength\tEffectiveLength\tTPM\tNumReads\nENST1\t900\t700\t1\t3\nENST2\t800\t600\t1\t2\n"
MTX = "%%MatrixMarket matrix coordinate integer general\n2 2 2\n1 1 1\n2 2 3\n"


def table(given: Given, content: str | bytes) -> list[list[float]]:
    return isd.io.read_long_reads(given.put("transcript_count.csv", content)).X.toarray().tolist()


def mtx(given: Given, content: str | bytes, transcripts: str = "T1\nT2\n") -> list[list[float]]:
    given.put("features.tsv", transcripts)
    given.put("barcodes.tsv", "A\nB\n")
    return isd.io.read_long_reads(given.put("matrix.mtx", content)).X.toarray().tolist()


def salmon(given: Given, *contents: str | bytes, **kwargs: Any) -> list[list[float]]:
    paths = [given.put(f"s{i}/quant.sf", content) for i, content in enumerate(contents)]
    return isd.io.read_quant(paths, **kwargs).X.toarray().tolist()


def archs4(given: Given, change: Callable[[h5py.File], None] = lambda file: None, **kwargs: Any) -> list[list[int]]:
    path = given.tmp / "human_transcript_v2.5.h5"
    with h5py.File(path, "w") as file:
        file["data/expression"] = np.array([[0, 3], [5, 0], [0, 7]], dtype="uint32")
        file["meta/transcripts/ensembl_id"] = ["ENST1", "ENST2", "ENST3"]
        file["meta/samples/geo_accession"] = ["GSM1", "GSM2"]
        file["meta/samples/title"] = ["liver", "brain"]
        change(file)
    return isd.io.read_archs4(path, **kwargs).X.toarray().tolist()


def moved(file: h5py.File, old: str, new: str) -> None:
    file.move(old, new)


def cut(path: Path, keep: float = 0.5) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def h5ad(given: Given) -> Path:
    given.cells.write_h5ad(given.tmp / "cells.h5ad")
    return given.tmp / "cells.h5ad"


def loaded(given: Given, change: Callable[[Path], Any], cls: Any = LatentDiffusion) -> Any:
    path = given.saved()
    change(path)
    return cls.load(path)


def rewritten(path: Path, **entries: Any) -> None:
    document = json.loads((path / "model.json").read_text())
    (path / "model.json").write_text(json.dumps(document | entries))


SETUP, RECIPE, SPLIT, EVALUATE, GENERATE = "setup_anndata", "pp.recipe", "pp.split", "metrics.evaluate", "tl.generate"
INFER, LONG, QUANT, ARCHS4, GENES, INFO, LOAD = (
    "tl.infer_isoforms", "io.read_long_reads", "io.read_quant", "io.read_archs4", "io.read_gene_map", "io.info", "model.load",
)  # fmt: skip
SAME_LOSS = "the same training as from csr float32"
LOSS = "loss"
VALUES = "judged"
GTF = 'chr1\tx\ttranscript\t1\t2\t.\t+\t.\tgene_id "g1"; transcript_id "t1";\n'

CASES = [
    # values
    Case("NaN in the counts", SETUP, "refused: holds NaN", lambda g: VAE.setup_anndata(g.like(lambda x: edited(x, 0, np.nan))), ValueError, "NaN or infinite"),
    Case("infinite counts", SETUP, "refused: holds infinite values", lambda g: VAE.setup_anndata(g.like(lambda x: edited(x, 3, np.inf))), ValueError, "NaN or infinite"),
    Case("negative counts", SETUP, "refused: raw counts were expected", lambda g: VAE.setup_anndata(g.like(lambda x: edited(x, 0, -2))), ValueError, "negative values.*give the layer"),
    Case("log-normalised values given as counts", SETUP, "refused: looks log-normalised", lambda g: VAE.setup_anndata(g.like(log_normalised)), ValueError, "looks log"),
    Case("counts per million", SETUP, "refused: every row adds up to 1e+06", lambda g: VAE.setup_anndata(g.like(per_million)), ValueError, "every row adds up to 1e.06"),
    Case("estimated counts with fractions", SETUP, "refused, with the function that rounds them", lambda g: VAE.setup_anndata(g.like(lambda x: x.astype(float) * 1.37)), ValueError, "isd.pp.round_counts"),
    Case("text in a dense matrix", SETUP, "refused: counts must be numbers", lambda g: VAE.setup_anndata(ad.AnnData(np.full((4, 3), "a", dtype=object)), labels_key=None), ValueError, "must be numbers"),
    Case("complex numbers", SETUP, "refused: counts must be numbers", lambda g: VAE.setup_anndata(g.like(lambda x: x.toarray().astype(complex))), ValueError, "must be numbers"),
    Case("a cell without counts", SETUP, "refused, with the names of such cells and the line that drops them", lambda g: VAE.setup_anndata(g.like(without_counts)), ValueError, r"1 cells have no counts.*cell_3.*Drop them"),
    Case("integers above 2^24", SETUP, "accepted", lambda g: np.isfinite(loss_of(g.like(lambda x: x.astype(np.int64) * 10_000_000))).all(), gives=True),
    Case("integers above 2^32", SETUP, "refused: larger than any count", lambda g: VAE.setup_anndata(g.like(lambda x: x.astype(np.int64) * 50_000_000)), ValueError, "larger than any count"),
    # matrices
    Case("csc matrix", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(sparse.csc_matrix)), gives=LOSS),
    Case("csr_array", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(sparse.csr_array)), gives=LOSS),
    Case("dense matrix", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(lambda x: x.toarray())), gives=LOSS),
    Case("dense matrix in Fortran order", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(lambda x: np.asfortranarray(x.toarray()))), gives=LOSS),
    Case("float16", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(lambda x: x.toarray().astype(np.float16))), gives=LOSS),
    Case("float64", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(lambda x: x.astype(np.float64))), gives=LOSS),
    Case("uint32", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(lambda x: x.astype(np.uint32))), gives=LOSS),
    Case("int64", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(lambda x: x.astype(np.int64))), gives=LOSS),
    Case("big-endian numbers", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(lambda x: x.toarray().astype(">f4"))), gives=LOSS),
    Case("boolean matrix", SETUP, "accepted", lambda g: np.isfinite(loss_of(g.like(lambda x: x.astype(bool)))).all(), gives=True),
    Case("indices that are not sorted", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(shuffled)), gives=LOSS),
    Case("values stored as two parts", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(stored_twice)), gives=LOSS),
    Case("zeros that are stored", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(with_zeros)), gives=LOSS),
    Case("int64 indices", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(g.like(long_indices)), gives=LOSS),
    Case("data backed by a file", SETUP, "accepted", lambda g: np.isfinite(loss_of(backed(g))).all(), gives=True),
    Case("a view of other data", SETUP, "refused: make a copy first", lambda g: VAE.setup_anndata(g.cells[:50]), ValueError, r"adata\.copy\(\)"),
    Case("counts in raw only, X log-normalised", SETUP, "refused: looks log-normalised", lambda g: VAE.setup_anndata(_raw_only(g)), ValueError, "looks log"),
    Case("neither X nor a counts layer", SETUP, "refused: X is empty", lambda g: VAE.setup_anndata(ad.AnnData(obs=g.cells.obs.copy(), var=g.cells.var.copy())), ValueError, r"adata\.X is empty"),
    Case("a layer that is not there", SETUP, "refused, with the layers that are", lambda g: VAE.setup_anndata(g.adata, layer="nope"), KeyError, "nope.*not in adata.layers"),
    Case("a matrix in place of AnnData", SETUP, "refused: must be an AnnData", lambda g: VAE.setup_anndata(g.cells.X), TypeError, "must be an AnnData"),
    # shapes and names
    Case("one cell", SETUP, "refused: at least 2 are needed", lambda g: VAE.setup_anndata(g.cells[:1].copy()), ValueError, "1 cells; at least 2"),
    Case("no cells", SETUP, "refused: at least 2 are needed", lambda g: VAE.setup_anndata(g.cells[:0].copy()), ValueError, "0 cells; at least 2"),
    Case("one feature", SETUP, "refused: at least 2 are needed", lambda g: VAE.setup_anndata(g.cells[:, :1].copy()), ValueError, "1 features; at least 2"),
    Case("transcripts that share a name", SETUP, "refused, with their names", lambda g: VAE.setup_anndata(renamed(g.adata, ["same", "same", *g.cells.var_names[2:]])), ValueError, "not unique.*same"),
    Case("cells that share a name", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(renamed(g.adata, ["same", "same", *g.cells.obs_names[2:]], "obs")), gives=LOSS),
    Case("unicode names", SETUP, f"accepted: {SAME_LOSS}", lambda g: loss_of(renamed(g.adata, [f"τρ-{i} 転写" for i in range(40)])), gives=LOSS),
    # labels and covariates
    Case("labels_key that is not there", SETUP, "refused, with the columns that are", lambda g: VAE.setup_anndata(g.adata, labels_key="kind"), KeyError, "kind.* is not in adata.obs"),
    Case("labels that are all missing", SETUP, "refused: no labelled cell", lambda g: VAE.setup_anndata(with_obs(g.adata, leiden=np.nan)), ValueError, "no labelled cell"),
    Case("labels of which some are missing", SETUP, "accepted: these cells are unlabelled", lambda g: _labels(with_obs(g.adata, leiden=pd.Categorical(["a"] * 40 + [None] * 20 + ["b"] * 20))), gives=["a", "b"]),
    Case("one label only", SETUP, "accepted", lambda g: _labels(with_obs(g.adata, leiden="only")), gives=["only"]),
    Case("integer labels", SETUP, "accepted, and stay integers", lambda g: _labels(with_obs(g.adata, leiden=np.arange(80) % 11)), gives=list(range(11))),
    Case("categories that no cell has", SETUP, "accepted, and left out", lambda g: _labels(with_obs(g.adata, leiden=pd.Categorical(["b", "a"] * 40, categories=["b", "never", "a"]))), gives=["b", "a"]),
    Case("labels that are intervals", SETUP, "refused: labels must be text or numbers", lambda g: VAE.setup_anndata(with_obs(g.adata, leiden=pd.cut(np.arange(80), 3))), ValueError, r"Interval.*astype\(str\)"),
    Case("a batch that is missing for some cells", SETUP, "refused, with their number", lambda g: VAE.setup_anndata(with_obs(g.adata, donor=["d"] * 79 + [None]), batch_key="donor"), ValueError, "1 missing values"),
    Case("a continuous covariate with NaN", SETUP, "refused: must be finite", lambda g: VAE.setup_anndata(with_obs(g.adata, age=[np.nan] + [1.0] * 79), continuous_covariate_keys=["age"]), ValueError, "finite numbers"),
    Case("size factors of 0", SETUP, "refused: must be positive", lambda g: VAE.setup_anndata(with_obs(g.adata, size=0.0), size_factor_key="size"), ValueError, "positive numbers"),
    Case("gene_key that is not there", SETUP, "refused, with isd.pp.annotate_genes", lambda g: VAE.setup_anndata(g.adata, gene_key="gene"), KeyError, "annotate_genes"),
    # preparation
    Case("data backed by a file", RECIPE, "refused: read it into memory", lambda g: clusters(backed(g)), ValueError, "to_memory"),
    Case("a cell without counts", RECIPE, "refused, with the line that drops it", lambda g: clusters(g.like(without_counts)), ValueError, "drop them first"),
    Case("a cell that rounding leaves without counts", RECIPE, "refused, likewise", lambda g: clusters(g.like(lambda x: _faint(x))), ValueError, "no counts in adata.X after rounding"),
    Case("estimated counts with fractions", RECIPE, "accepted with a warning: rounded, the estimates kept", lambda g: _estimated(g), gives=True, warns="were not whole and were rounded"),
    Case("NaN in the counts", RECIPE, "refused: holds NaN", lambda g: clusters(g.like(lambda x: edited(x, 0, np.nan))), ValueError, "NaN or infinite"),
    Case("csc matrix of uint32", RECIPE, "accepted: the same clusters as from csr", lambda g: clusters(g.like(lambda x: sparse.csc_matrix(x.astype(np.uint32)))) == clusters(g.adata), gives=True),
    Case("dense float16", RECIPE, "accepted: the same clusters as from csr", lambda g: clusters(g.like(lambda x: x.toarray().astype(np.float16))) == clusters(g.adata), gives=True),
    Case("a view of other data", RECIPE, "accepted: the view becomes data of its own", lambda g: _recipe_on_view(g), gives=True),
    Case("one cell", RECIPE, "refused: at least 2 are needed", lambda g: clusters(g.cells[:1].copy()), ValueError, "1 cells; at least 2"),
    Case("one feature with counts", RECIPE, "refused: at least 2 are needed", lambda g: clusters(g.cells[:, :1][g.cells.X[:, 0].toarray().ravel() > 0].copy()), ValueError, "1 of 1 features have counts"),
    Case("a counts layer that differs from the layer given", RECIPE, "refused: rename or drop one", lambda g: _two_layers(g), ValueError, "holds other values"),
    Case("n_pcs of 0", RECIPE, "refused: at least 1", lambda g: isd.pp.recipe(g.adata, n_pcs=0), ValueError, "n_pcs is 0"),
    Case("test_size of 1.2", SPLIT, "refused: a share of the cells", lambda g: sides(g.adata, test_size=1.2), ValueError, "test_size is 1.2"),
    Case("sizes that leave nothing to train on", SPLIT, "refused", lambda g: sides(g.adata, test_size=0.6, validation_size=0.4), ValueError, "leave nothing to train on"),
    Case("one cell", SPLIT, "refused: at least 2 are needed", lambda g: sides(g.cells[:1].copy()), ValueError, "1 cells; at least 2"),
    Case("labels of which some are missing", SPLIT, "accepted: a stratum of their own", lambda g: sides(with_obs(g.adata, leiden=["a"] * 40 + [None] * 40)), gives=SIDES),
    Case("one label only", SPLIT, "accepted", lambda g: sides(with_obs(g.adata, leiden="only")), gives=SIDES),
    Case("a batch that is missing for some cells", SPLIT, "refused, with their number", lambda g: sides(with_obs(g.adata, donor=["d", "e"] * 39 + ["d", None]), batch_key="donor"), ValueError, "1 cells have no value"),
    Case("a single batch", SPLIT, "refused: one group cannot be divided", lambda g: sides(with_obs(g.adata, donor="d"), batch_key="donor"), ValueError, "one group only"),
    Case("data backed by a file", SPLIT, "accepted", lambda g: sides(backed(g)), gives=SIDES),
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
    Case("n_samples of 0", INFER, "refused: at least 1", lambda g: isd.tl.infer_isoforms(g.model, g.genes, 0), ValueError, "n_samples must be at least 1"),
    # tables and matrices of long-read tools
    Case("an empty file", LONG, "refused, with its name", lambda g: table(g, ""), ValueError, r"transcript_count\.csv"),
    Case("a header and nothing else", LONG, "refused: no transcript", lambda g: table(g, TABLE.splitlines()[0] + "\n"), ValueError, "a header and no transcript"),
    Case("a gzipped file cut short", LONG, "refused: damaged or cut short", lambda g: table(g, gzip.compress(TABLE.encode())[:-12]), ValueError, "cut short"),
    Case("a gzipped file without .gz in its name", LONG, "accepted", lambda g: table(g, gzip.compress(TABLE.encode())), gives=[[1, 0], [0, 3]]),
    Case("Windows line ends and a byte-order mark", LONG, "accepted", lambda g: table(g, b"\xef\xbb\xbf" + TABLE.replace("\n", "\r\n").encode()), gives=[[1, 0], [0, 3]]),
    Case("quoted names", LONG, "accepted", lambda g: table(g, TABLE.replace("A,B", '"A","B"').replace("ENST1", '"ENST1"')), gives=[[1, 0], [0, 3]]),
    Case("a line with too few counts", LONG, "refused: holds NaN", lambda g: table(g, TABLE + "ENST3,ENSG2,1\n"), ValueError, "NaN or infinite"),
    Case("a line with too many counts", LONG, "refused: damaged", lambda g: table(g, TABLE + "ENST3,ENSG2,1,2,3\n"), ValueError, "cannot be read"),
    Case("a word in place of a count", LONG, "refused, with the word", lambda g: table(g, TABLE + "ENST3,ENSG2,1,many\n"), ValueError, "many"),
    Case("a negative count", LONG, "refused: raw counts were expected", lambda g: table(g, TABLE + "ENST3,ENSG2,1,-1\n"), ValueError, "negative values"),
    Case("a transcript without a name", LONG, "refused, with their number", lambda g: table(g, TABLE + ",ENSG2,1,1\n"), ValueError, "1 of 3 lines hold no name"),
    Case("a transcript that is listed twice", LONG, "accepted with a warning: added up", lambda g: table(g, TABLE + "ENST1,ENSG1,2,0\n"), gives=[[3, 0], [0, 3]], warns="added up"),
    Case("unicode names", LONG, "accepted", lambda g: table(g, TABLE.replace("ENST1", "τρ-転写").replace("A,B", "Größe,β")), gives=[[1, 0], [0, 3]]),
    Case("bytes that are no UTF-8", LONG, "refused: damaged", lambda g: table(g, TABLE.encode().replace(b"ENST1", b"\xff\xfe\xfa")), ValueError, "cannot be read"),
    Case("an image in place of a table", LONG, "refused: damaged or of another kind", lambda g: table(g, b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4), ValueError, r"transcript_count\.csv"),
    Case("names that do not fit the matrix", LONG, "refused: the files do not belong together", lambda g: mtx(g, MTX, "T1\nT2\nT3\n"), ValueError, "do not belong together"),
    Case("a matrix cut short", LONG, "refused: damaged or cut short", lambda g: mtx(g, MTX[:-6]), ValueError, "cut short"),
    Case("an index beyond the matrix", LONG, "refused, with the index", lambda g: mtx(g, MTX.replace("2 2 3\n", "7 2 3\n")), ValueError, "entry at row 7"),
    Case("a matrix that announces 10^12 entries", LONG, "refused, and never allocated", lambda g: mtx(g, MTX.replace("2 2 2\n", "2 2 1000000000000\n")), ValueError, "announces 1,000,000,000,000 entries and holds 2"),
    Case("a dense Matrix Market file", LONG, "refused: expected coordinate", lambda g: mtx(g, "%%MatrixMarket matrix array real general\n2 2\n1\n0\n0\n3\n"), ValueError, "expected coordinate"),
    Case("a gzipped matrix cut short", LONG, "refused: damaged or cut short", lambda g: mtx(g, gzip.compress(MTX.encode())[:-12]), ValueError, "cut short"),
    # estimates
    Case("a file of another tool", QUANT, "refused: cannot be read as a kallisto file", lambda g: salmon(g, SALMON, source="kallisto"), ValueError, "as a kallisto file"),
    Case("files of different annotations", QUANT, "refused, with how many transcripts differ", lambda g: salmon(g, SALMON, SALMON.replace("ENST2", "ENST9")), ValueError, "different annotations"),
    Case("a gzipped file without .gz in its name", QUANT, "refused: rename it", lambda g: salmon(g, gzip.compress(SALMON.encode())), ValueError, "rename it"),
    Case("NaN in the counts", QUANT, "refused: no numbers", lambda g: salmon(g, SALMON.replace("\t3\n", "\tNaN\n")), ValueError, "1 counts that are no numbers"),
    Case("a header and nothing else", QUANT, "refused: lists no transcripts", lambda g: salmon(g, SALMON.splitlines()[0] + "\n"), ValueError, "lists no transcripts"),
    # ARCHS4
    Case("a file cut short", ARCHS4, "refused: damaged or cut short", lambda g: isd.io.read_archs4(_cut_archs4(g)), ValueError, "cut short"),
    Case("a file of genes", ARCHS4, "refused: expected one of transcripts", lambda g: archs4(g, lambda f: moved(f, "meta/transcripts", "meta/genes")), ValueError, "file of genes"),
    Case("an h5ad file", ARCHS4, "refused, with what it lacks", lambda g: isd.io.read_archs4(h5ad(g)), ValueError, "has no data/expression"),
    Case("a matrix that does not fit its metadata", ARCHS4, "refused, with both shapes", lambda g: archs4(g, lambda f: (f.pop("meta/samples/geo_accession"), f.create_dataset("meta/samples/geo_accession", data=["GSM1"]))), ValueError, r"but meta/samples/geo_accession has shape \(1,\)"),
    Case("samples that are not in the file", ARCHS4, "refused, with their ids", lambda g: archs4(g, samples=["GSM2", "GSM404"]), KeyError, "1 of 2 samples.*GSM404"),
    Case("a term that is no regular expression", ARCHS4, "refused, with the way to write it", lambda g: archs4(g, search="liver (tumor"), ValueError, "no regular expression.*backslash"),
    Case("terms that no sample matches", ARCHS4, "refused: loosen them", lambda g: archs4(g, search="kidney"), ValueError, "no sample.*kidney"),
    # annotation
    Case("GFF3 in place of GTF", GENES, "refused, with the command that converts it", lambda g: isd.io.read_gene_map(g.put("a.gtf", "##gff-version 3\n")), ValueError, "gffread"),
    Case("a GTF line cut short", GENES, "refused: damaged or cut short", lambda g: isd.io.read_gene_map(g.put("a.gtf", GTF + GTF[:20] + "\n")), ValueError, "cut short"),
    Case("a table without a column of genes", GENES, "refused, with the columns that are", lambda g: isd.io.read_gene_map(g.put("t.tsv", "transcript_id\tlength\nENST1\t3\n")), ValueError, "no column 'gene_id'"),
    Case("an empty file", GENES, "refused: is empty", lambda g: isd.io.read_gene_map(g.put("t.tsv", "")), ValueError, "is empty"),
    # files of data and of models
    Case("an h5ad file cut short", INFO, "refused: damaged or cut short", lambda g: isd.io.info(cut(h5ad(g))), ValueError, "cut short"),
    Case("a text file named .h5ad", INFO, "refused: of another kind", lambda g: isd.io.info(g.put("a.h5ad", "cells")), ValueError, "of another kind"),
    Case("a folder without a model", LOAD, "refused: not a folder that save() wrote", lambda g: LatentDiffusion.load(g.tmp), FileNotFoundError, "model.json"),
    Case("weights cut short", LOAD, "refused: changed or cut short", lambda g: loaded(g, lambda p: cut(p / "weights.safetensors")), ValueError, "cut short"),
    Case("weights that are missing", LOAD, "refused: not saved whole", lambda g: loaded(g, lambda p: (p / "weights.safetensors").unlink()), FileNotFoundError, "weights.safetensors"),
    Case("a description that is no JSON", LOAD, "refused: damaged", lambda g: loaded(g, lambda p: cut(p / "model.json")), ValueError, "damaged|JSON"),
    Case("a model of another class", LOAD, "refused, with the class that reads it", lambda g: loaded(g, lambda p: None, isd.model.Classifier), ValueError, "LatentDiffusion"),
    Case("a model of a newer format", LOAD, "refused: update isodiff", lambda g: loaded(g, lambda p: rewritten(p, format_version=99)), ValueError, "[Uu]pdate isodiff"),
]  # fmt: skip


def _labels(adata: ad.AnnData) -> list[Any]:
    VAE.setup_anndata(adata)
    return VAE(adata, **SMALL).labels.tolist()


def _raw_only(given: Given) -> ad.AnnData:
    adata = given.adata
    adata.raw = adata
    adata.X = log_normalised(adata.X)
    return adata


def _faint(matrix: Any) -> Any:
    matrix = matrix.tolil().astype(np.float32)
    matrix[3] = 0
    matrix[3, 0] = 0.3
    return matrix.tocsr()


def _estimated(given: Given) -> bool:
    adata = given.like(lambda x: edited(x, 0, 2.7))
    isd.pp.recipe(adata, n_top_features=20, n_pcs=5)
    return bool(adata.layers["counts"].data[0] == 3 and adata.layers["estimated_counts"].data[0] == np.float32(2.7))


def _recipe_on_view(given: Given) -> bool:
    whole = given.adata
    view = whole[:60]
    isd.pp.recipe(view, n_top_features=20, n_pcs=5, key_added="found")
    return not view.is_view and "found" in view.obs and "found" not in whole.obs


def _two_layers(given: Given) -> list[str]:
    adata = given.adata
    adata.layers["counts"], adata.layers["mine"] = adata.X, adata.X * 2
    return clusters(adata, layer="mine")


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


def _cut_archs4(given: Given) -> Path:
    archs4(given)
    return cut(given.tmp / "human_transcript_v2.5.h5")


@pytest.fixture
def given(cells: ad.AnnData, tmp_path: Path, request: pytest.FixtureRequest) -> Given:
    return Given(cells, tmp_path, request)


@pytest.mark.filterwarnings("ignore:Variable names are not unique", "ignore:Observation names are not unique")
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.to}: {c.name}")
def test_case(case: Case, given: Given) -> None:
    if case.error is not None:
        with pytest.raises(case.error, match=case.says) as caught:
            case.call(given)
        # a subclass such as UnicodeDecodeError or JSONDecodeError would be an accident, not a message
        assert type(caught.value).__module__.split(".")[0] in ("builtins", "isd")
        assert len(str(caught.value)) > 20
        return
    expected = given.request.getfixturevalue(case.gives) if isinstance(case.gives, str) else case.gives
    if case.warns:
        with pytest.warns(UserWarning, match=case.warns):
            found = case.call(given)
    else:
        found = case.call(given)
    if isinstance(expected, np.ndarray):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    else:
        assert found == expected


def row(case: Case) -> str:
    return f"| {case.name} | `{case.to}` | {case.note} |"


def test_the_page_and_the_tests_list_the_same_cases() -> None:
    listed = [line for line in DOCS.read_text().splitlines() if re.match(r"\| .+ \| `.+` \|", line)]
    assert listed == [row(case) for case in CASES]
    assert len(CASES) >= 60
    assert len({(c.name, c.to) for c in CASES}) == len(CASES)


def test_the_page_says_what_the_tests_assert() -> None:
    for case in CASES:
        outcome = "refused" if case.error is not None else "accepted with a warning" if case.warns else "accepted"
        assert case.note.startswith(outcome), case.name
        assert case.error is None or case.says, case.name
