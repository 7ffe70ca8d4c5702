"""Does a reference help a small single-cell data set? Learning curves with and without one: an atlas, bulk, and either shuffled.

Simulated worlds: an atlas of single cells that lacks a third of the clusters, and bulk samples, are measured on one set of
transcripts; the target cells on another, of which the references know 80%, in another batch and at 70% of the depth. A target has
`n` cells, a fifth of them for validation, and 300 test cells that nothing but the last number reads. Every arm is trained with as
many settings, and the one that is best on the validation cells counts.

- default: a VAE as `train()` trains it, the one arm that is not tuned;
- scratch: a VAE of default settings, its training tuned;
- joint: with `--shared`, one VAE of bulk and cells together, told apart by batch, on the transcripts that both have;
- atlas, bulk: `VAE.from_pretrained` with that reference; "shuffled": the same with the reference's features in a random order;

`nll` is the importance-weighted negative log-likelihood of test cells, nats a cell; `auc_pcs` and `auc_features` say how well a random
forest tells cells drawn from a Gaussian per label from test cells (0.5: not at all).

    python benchmarks/transfer.py --sizes 100 300                 # about an hour on one idle core
    python benchmarks/transfer.py --sizes 100 300 1000 10000 --seeds 0 --out out/large.csv
    python benchmarks/transfer.py --real                          # macrophage bulk to five cell lines; needs ISD_DATA_DIR
    python benchmarks/transfer.py --table

Rows are appended to a CSV when an arm is done; an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse, stats

import isd
from isd.metrics import Yardstick, classifier_auc
from isd.model import VAE, LatentDiffusion
from isd.model._pretrained import shuffled_pretrained
from isd.model._training import seeded

OUT = Path(__file__).parent / "out"
KEYS = ["data", "seed", "n", "arm"]
#: What a user gets who tunes nothing: share of the default number of steps, and options of training.
DEFAULT = [(1.0, {})]
#: Settings of every other kind of arm, as many for each.
SCRATCH = [(share, {"dispersion_lr": 5e-2}) for share in (0.25, 0.5, 1.0)]
PRETRAINED = [(share, {"dispersion_lr": 5e-2, "lr": lr}) for share, lr in ((0.25, 3e-4), (1.0, 3e-4), (1.0, 1e-3))]
#: for weights that mean nothing: all the freedom that scratch has
SHUFFLED = [(share, {"dispersion_lr": 5e-2, "lr": 1e-3}) for share in (0.5, 1.0, 2.0)]
ARMS = ("default", "scratch", "atlas", "bulk", "atlas shuffled", "bulk shuffled", "joint")


def simulate(world: int, args: argparse.Namespace) -> dict[str, ad.AnnData]:
    """Atlas, bulk, the pool that targets are drawn from, and test cells."""
    cells, bulk = isd.datasets.simulated(
        # a target of more than 1,000 cells needs larger worlds, which are others than those of the same number without it
        n_obs=int(2.6 * max(args.n_atlas, max([1000, *args.sizes]) + args.n_test)),
        n_vars=args.n_vars,
        n_labels=12,
        kind="both",
        n_bulk=args.n_bulk,
        n_batches=2,
        seed=world,
        progress=False,
    )
    rng = np.random.default_rng(world)
    theirs = np.sort(rng.permutation(args.n_vars)[: int(0.8 * args.n_vars)])
    # of the target's transcripts, the references know 80%
    known, other = theirs, np.setdiff1d(np.arange(args.n_vars), theirs)
    n_shared = int(0.8 * 0.8 * args.n_vars)
    ours = np.sort(
        np.concatenate([rng.permutation(known)[:n_shared], rng.permutation(other)[: int(0.16 * args.n_vars)]])
    )
    missing = [str(k) for k in rng.permutation(12)[:4]]
    first = (cells.obs["batch"] == cells.obs["batch"].cat.categories[0]).to_numpy()
    atlas = cells[first & ~cells.obs["leiden"].isin(missing).to_numpy()][: args.n_atlas, theirs].copy()
    atlas.obs["leiden"] = atlas.obs["leiden"].cat.remove_unused_categories()
    pool = cells[~first, ours].copy()
    counts = sparse.csr_matrix(pool.X).copy()
    counts.data = np.random.default_rng(world).binomial(counts.data.astype(int), 0.7).astype(np.float32)
    counts.eliminate_zeros()
    pool.X = counts
    pool = pool[np.asarray(counts.sum(axis=1)).ravel() > 0].copy()
    return {
        "atlas": atlas,
        "bulk": bulk[:, theirs].copy(),
        "pool": pool[args.n_test :].copy(),
        "test": pool[: args.n_test].copy(),
    }


def real() -> dict[str, ad.AnnData]:
    """Macrophage bulk, and five cell lines: cells of every fifth row are for testing."""
    folder = Path(os.environ["ISD_DATA_DIR"])
    bulk = ad.read_h5ad(folder / "bulk_macrophage.h5ad")
    cells = ad.read_h5ad(folder / "sc_five_cell_lines_longread.h5ad")
    for adata, key in ((bulk, "condition_name"), (cells, "cell_line")):
        adata.X = sparse.csr_matrix(np.rint(sparse.csr_matrix(adata.X)), dtype=np.float32)
        adata.obs["leiden"] = adata.obs[key].astype(str).astype("category")
    # of the 76,158 transcripts of the bulk, those of genes that the cells have
    genes = {
        name: isd.pp.strip_version(adata.var["gene_id"].astype(str)) for name, adata in (("b", bulk), ("c", cells))
    }
    bulk = bulk[:, genes["b"].isin(genes["c"])].copy()
    cells = cells[np.asarray(cells.X.sum(axis=1)).ravel() > 0].copy()
    order = np.random.default_rng(0).permutation(cells.n_obs)
    n_test = cells.n_obs // 3
    return {"bulk": bulk, "pool": cells[np.sort(order[n_test:])].copy(), "test": cells[np.sort(order[:n_test])].copy()}


def reference(adata: ad.AnnData, folder: Path) -> VAE:
    """A VAE of default settings, trained once and kept."""
    if not folder.exists():
        VAE.setup_anndata(adata)
        model = VAE(adata, seed=0)
        model.train(gene_encoder=False, seed=0, progress=False)
        model.save(folder)
    return VAE.load(folder, False)


def target(parts: dict[str, ad.AnnData], n: int, seed: int, *, shared: bool) -> ad.AnnData:
    """`n` cells, a fifth of them for validation, and the test cells; only transcripts that bulk has where these are `shared`."""
    rng = np.random.default_rng([seed, n])
    chosen = parts["pool"][np.sort(rng.permutation(parts["pool"].n_obs)[:n])]
    cells = ad.concat([chosen, parts["test"]], merge="same")
    cells.obs["leiden"] = cells.obs["leiden"].astype("category")
    split = np.repeat(np.array(["train", "test"], dtype=object), [chosen.n_obs, parts["test"].n_obs])
    split[rng.permutation(chosen.n_obs)[: chosen.n_obs // 5]] = "validation"
    cells.obs["isd_split"] = split
    if shared:
        cells = cells[:, cells.var_names.isin(parts["bulk"].var_names)].copy()
        cells = cells[np.asarray(cells.X.sum(axis=1)).ravel() > 0].copy()
    VAE.setup_anndata(cells)
    return cells


def joint(cells: ad.AnnData, bulk: ad.AnnData, seed: int) -> VAE:
    """One VAE for both, whose batch is the domain; all bulk is for training."""
    samples = bulk[:, cells.var_names].copy()
    samples.obs["isd_split"] = "train"
    both = ad.concat([cells, samples], label="domain", keys=["cells", "bulk"], index_unique="-", merge="same")
    both.obs["leiden"] = both.obs["leiden"].astype("category")
    VAE.setup_anndata(both, batch_key="domain")
    return VAE(both, seed=seed)


def start(arm: str, references: dict[str, VAE], cells: ad.AnnData, bulk: ad.AnnData, seed: int) -> VAE:
    """The model of an arm before it is trained."""
    if arm == "joint":
        return joint(cells, bulk, seed)
    if arm in ("default", "scratch"):
        return VAE(cells, seed=seed)
    name, _, shuffled = arm.partition(" ")
    if shuffled:
        return shuffled_pretrained(VAE, references[name], cells, order_seed=seed, seed=seed)
    return VAE.from_pretrained(references[name], cells, seed=seed)


def log_likelihood(model: VAE, part: str, n_mc_samples: int) -> np.ndarray:
    """Of each cell of a part of the split."""
    cells = model.adata
    rows = np.flatnonzero(cells.obs["isd_split"] == part)
    with seeded(0):
        values = model.get_marginal_ll(cells, indices=rows, n_mc_samples=n_mc_samples, return_mean=False)
    return np.asarray(values, dtype=float).ravel()


def auc(model: VAE, cells: ad.AnnData, seed: int) -> dict[str, float]:
    """Cells drawn from a Gaussian per label in the latent against test cells of the labels that were trained on."""
    train, test = (cells[cells.obs["isd_split"] == part] for part in ("train", "test"))
    yardstick = Yardstick.fit(sparse.csr_matrix(train.X), cells.var_names, seed=0)
    LatentDiffusion.setup_anndata(cells)
    density = LatentDiffusion(cells, vae=model, seed=seed)
    density.train(max_steps=1, progress=False, seed=seed)
    known = set(train.obs["leiden"].astype(str))
    rows = np.flatnonzero([label in known for label in test.obs["leiden"].astype(str)])
    asked = test.obs["leiden"].astype(str).to_numpy()[rows].tolist()
    fake = isd.tl.generate(density, labels=asked, latents="gaussian", seed=seed, progress=False)
    real, made = (yardstick.features(sparse.csr_matrix(m)) for m in (test.X[rows], fake.X))
    options = {"n_boot": 0, "n_estimators": 100, "seed": seed}
    return {
        "auc_pcs": classifier_auc(yardstick.project(real), yardstick.project(made), **options).auc,
        "auc_features": classifier_auc(real.toarray(), made.toarray(), **options).auc,
    }


def run_arm(
    arm: str, references: dict[str, VAE], cells: ad.AnnData, bulk: ad.AnnData, seed: int, args: argparse.Namespace
) -> dict[str, Any]:
    """Numbers of the setting that is best on validation cells."""
    kinds = {"default": DEFAULT, "scratch": SCRATCH, "joint": SCRATCH}
    settings = kinds.get(arm, SHUFFLED if "shuffled" in arm else PRETRAINED)
    best: tuple[float, VAE, dict[str, Any]] | None = None
    begun = time.perf_counter()
    for share, options in settings:
        model = start(arm, references, cells, bulk, seed)
        steps = max(1, round(share * model._train_rule()["max_steps"]))
        model.train(max_steps=steps, early_stopping=False, gene_encoder=False, seed=seed, progress=False, **options)
        validation = -float(log_likelihood(model, "validation", args.n_mc).mean())
        if best is None or validation < best[0]:
            best = (validation, model, {"steps": steps, **options})
    assert best is not None
    likelihood = log_likelihood(best[1], "test", args.n_mc)
    pretrained = best[1].pretrained_ or {}
    return {
        "setting": str(best[2]),
        "validation_nll": best[0],
        "nll": -float(likelihood.mean()),
        "nll_se": float(likelihood.std(ddof=1)) / len(likelihood) ** 0.5,
        "precision": pretrained.get("precision"),
        "dispersion_shift": pretrained.get("dispersion_shift"),
        # a joint model's labels and depths are those of bulk as well
        **({} if arm == "joint" else auc(best[1], cells, seed)),
        "seconds": time.perf_counter() - begun,
    }


def run(args: argparse.Namespace) -> None:
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    done = set() if not out.exists() else set(map(tuple, pd.read_csv(out)[KEYS].astype(str).to_numpy()))
    for name in ["five lines"] if args.real else [f"world {w}" for w in args.worlds]:
        data = name + (", shared" if args.shared else "")
        parts = real() if args.real else simulate(int(name.split()[1]), args)
        arms = [
            arm
            for arm in args.arms
            if arm in ("default", "scratch") or arm.split()[0] in parts or (arm == "joint" and args.shared)
        ]
        references = {}
        for kind in ("atlas", "bulk"):
            if kind in parts and any(arm.startswith(kind) for arm in arms):
                references[kind] = reference(parts[kind], out.parent / "references" / f"{kind} {name}")
        for n in args.sizes:
            for seed in args.seeds:
                todo = [arm for arm in arms if (data, str(seed), str(n), arm) not in done]
                if not todo:
                    continue
                cells = target(parts, n, seed, shared=args.shared)
                for arm in todo:
                    row = run_arm(arm, references, cells, parts["bulk"], seed, args)
                    frame = pd.DataFrame([{"data": data, "seed": seed, "n": n, "arm": arm, **row}])
                    if out.exists():
                        # by way of text: columns that are empty so far have no type to agree on
                        frame = pd.concat([pd.read_csv(out, dtype=str), frame.astype(str).replace("None", "")])
                    frame.to_csv(out.with_suffix(".part"), index=False)
                    os.replace(out.with_suffix(".part"), out)
                    shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}
                    print(data, n, seed, arm, shown, flush=True)


def with_interval(values: pd.Series, digits: int) -> str:
    """Mean with half of its 95% interval, by Student's distribution; without one for a single run."""
    if len(values) < 2:
        return f"{values.mean():+.{digits}f}" if len(values) else ""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return f"{values.mean():+.{digits}f} ± {half:.{digits}f}"


def print_table(args: argparse.Namespace) -> None:
    """Means over worlds and seeds; intervals are Student's over these runs."""
    frame = pd.read_csv(args.out)
    runs = ["data", "seed", "n"]
    frame["kind"] = frame["data"].str.replace(r" \d+", "s", regex=True)
    bases = {arm: frame[frame["arm"] == arm].set_index(runs) for arm in ("default", "scratch")}
    rows = []
    for (kind, n, arm), part in frame.groupby(["kind", "n", "arm"], sort=False):
        part = part.set_index(runs)
        row: dict[str, Any] = {"data": kind, "n": n, "arm": arm, "runs": len(part), "nll": round(part["nll"].mean(), 1)}
        for name, base in bases.items():
            both = part.index.intersection(base.index)
            percent = 100 * (part.loc[both, "nll"] / base.loc[both, "nll"] - 1)
            auc = part.loc[both, "auc_pcs"] - base.loc[both, "auc_pcs"]
            row[f"nll, % of {name}"] = "" if arm == name else with_interval(percent, 1)
            row[f"auc_pcs - {name}"] = "" if arm == name else with_interval(auc, 3)
        row |= {"auc_pcs": round(part["auc_pcs"].mean(), 3), "auc_features": round(part["auc_features"].mean(), 3)}
        row |= {"precision": round(part["precision"].mean(), 2), "shift": round(part["dispersion_shift"].mean(), 2)}
        rows.append(row)
    print(pd.DataFrame(rows).sort_values(["data", "n"], kind="stable").to_string(index=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--sizes", nargs="+", type=int, default=[100, 300, 1000])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument(
        "--n-vars", type=int, default=1000, help="transcripts of the world; a data set has 80%% of them"
    )
    parser.add_argument("--n-atlas", type=int, default=2000)
    parser.add_argument("--n-bulk", type=int, default=500)
    parser.add_argument("--n-test", type=int, default=300)
    parser.add_argument("--n-mc", type=int, default=10, help="samples of each cell's likelihood")
    parser.add_argument("--real", action="store_true", help="bulk of macrophages to five cell lines")
    parser.add_argument("--shared", action="store_true", help="only transcripts that bulk has; with the arm joint")
    parser.add_argument("--table", action="store_true", help="only print what is in the CSV")
    parser.add_argument("--out", default=str(OUT / "transfer.csv"))
    args = parser.parse_args()
    isd.settings.progress = False
    warnings.filterwarnings("ignore", category=UserWarning)
    if not args.table:
        run(args)
    print_table(args)


if __name__ == "__main__":
    main()
