"""How hard generated cells are to tell from held-out real ones: data sets x configurations x seeds, one table.

Each (data, configuration, seed) is one training; the rows that it gives (one per way of making cells, reference
and group) are appended to a CSV when it is done, so that an interrupted run goes on where it stopped. Cells are split
60% training, 20% validation, 20% test by default. Configurations are compared on validation cells (the default of
`--table`); test cells are for the table that is reported (`--table --reference test`).

    python benchmarks/realism.py --data sperm five_lines --configs default --seeds 0 1 2
    python benchmarks/realism.py --data small --configs default '{"vae_train": {"weight_decay": 0.3}}'
    python benchmarks/realism.py --table --reference test

Real data are read from the folder in ISD_DATA_DIR. `small` and `large` are simulated at 1,500 x 1,000 and at
10,000 x 5,000 (20 clusters of unequal size), `sparse` at 2,000 x 8,000 with 250 counts a cell; `*_shallow` are real cells
with 300 of their counts each; `bulk` is simulated bulk of 5,000 x 5,000, `bulk_small` of 1,000 x 1,000. `coarse` has 4,000 x
2,000 of 20 clusters, of which five labels take in four each, as of a clustering at low resolution; `overlap` 3,000 x 500 of
five labels that overlap.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.model_selection import StratifiedKFold

import isd
from isd.metrics import (
    Yardstick,
    classifier_auc,
    coverage,
    density,
    exact_copy_rate,
    label_agreement,
    nearest_distance_ratio,
    recall,
)

REAL = {
    "sperm": ("sc_mouse_sperm_polya_sites_dev", "celltype"),
    "worm": ("sc_worm_neuron_genes_dev", "cell_type_code"),
    "five_lines": ("sc_five_cell_lines_longread", "cell_line"),
    "colorectal": ("sc_colorectal_longread", "cell_type"),
    "macrophage": ("bulk_macrophage", "condition_name"),
    "lcl": ("bulk_lcl_chr19", None),
    # labels not told: how much a Gaussian for all cells misses
    "sperm_unlabelled": ("sc_mouse_sperm_polya_sites_dev", None),
    "worm_unlabelled": ("sc_worm_neuron_genes_dev", None),
    "sperm_shallow": ("sc_mouse_sperm_polya_sites_dev", "celltype"),
    "five_lines_shallow": ("sc_five_cell_lines_longread", "cell_line"),
}
#: Counts that a cell of `*_shallow` keeps of its own, in the mean: each with the same chance, as of shallower sequencing.
SHALLOW = 300.0
SIMULATED: dict[str, dict[str, Any]] = {
    "small": {"n_obs": 1500, "n_vars": 1000, "n_labels": 6},
    "large": {"n_obs": 10_000, "n_vars": 5000, "n_labels": 20},
    "coarse": {"n_obs": 4000, "n_vars": 2000, "n_labels": 20},
    "overlap": {"n_obs": 3000, "n_vars": 500, "n_labels": 5, "label_effect": 0.6},
    "sparse": {"n_obs": 2000, "n_vars": 8000, "n_labels": 10, "mean_depth": 250.0},
    "bulk_small": {"n_obs": 1000, "n_vars": 1000, "n_labels": 6, "kind": "bulk"},
    "bulk": {"n_obs": 5000, "n_vars": 5000, "n_labels": 20, "kind": "bulk"},
}
#: Named configurations: keyword arguments of the models and their training.
CONFIGS: dict[str, dict[str, Any]] = {
    "default": {},
    # as many minutes as the default takes on mouse sperm or five lines
    "published": {
        "preset": "published",
        "vae_train": {"max_minutes": 0.6},
        "diffusion_train": {"max_minutes": 0.6},
        "classifier_train": {"max_minutes": 0.2},
    },
}
ARMS = ("diffusion", "guided", "gaussian", "reconstruction")
KEYS = ["data", "config", "seed"]
GLOBAL = "all"


def load(name: str, seed: int, test_size: float, validation_size: float) -> tuple[ad.AnnData, str]:
    """Cells with labels and a split; the simulated world has the seed of the run."""
    if name in SIMULATED:
        adata, labels_key = isd.datasets.simulated(**SIMULATED[name], seed=seed, progress=False), "leiden"
        if name == "coarse":
            adata.obs["coarse"] = (adata.obs["leiden"].astype(int) % 5).astype(str).astype("category")
            labels_key = "coarse"
    else:
        file, key = REAL[name]
        adata = ad.read_h5ad(Path(os.environ["ISD_DATA_DIR"]) / f"{file}.h5ad")
        labels_key = key or "population"
        if key is None:
            adata.obs[labels_key] = "all"
    adata.layers["counts"] = sparse.csr_matrix(np.rint(sparse.csr_matrix(adata.X)), dtype=np.float32)
    if name.endswith("_shallow"):
        adata = thinned(adata, seed)
    isd.pp.split(adata, labels_key=labels_key, test_size=test_size, validation_size=validation_size, seed=seed)
    return adata, labels_key


def thinned(adata: ad.AnnData, seed: int) -> ad.AnnData:
    """Each count kept with the chance that leaves a cell `SHALLOW` of them in the mean; features without any are left out."""
    counts = adata.layers["counts"]
    kept = np.random.default_rng(seed).binomial(counts.data.astype(int), SHALLOW * adata.n_obs / counts.sum())
    counts.data = kept.astype(np.float32)
    counts.eliminate_zeros()
    adata = adata[counts.getnnz(axis=1) > 0, counts.getnnz(axis=0) > 0].copy()
    adata.X = adata.layers["counts"].copy()
    return adata


def train(adata: ad.AnnData, labels_key: str, config: dict[str, Any], seed: int) -> tuple[Any, float, float]:
    """The trained model, and the seconds that autoencoder and diffusion model took."""
    preset = config.get("preset", "default")
    start = time.perf_counter()
    genes = config.get("gene_key")
    isd.model.VAE.setup_anndata(adata, layer="counts", labels_key=labels_key, gene_key=genes)
    vae = isd.model.VAE(adata, preset=preset, seed=seed, **config.get("vae", {}))
    vae.train(seed=seed, **config.get("vae_train", {}))
    middle = time.perf_counter()
    isd.model.LatentDiffusion.setup_anndata(adata, layer="counts", labels_key=labels_key, gene_key=genes)
    model = isd.model.LatentDiffusion(adata, vae=vae, preset=preset, seed=seed, **config.get("diffusion", {}))
    model.train(seed=seed, **config.get("diffusion_train", {}))
    return model, middle - start, time.perf_counter() - middle


def make(
    model: Any, adata: ad.AnnData, reference: ad.AnnData, labels_key: str, arm: str, config: dict[str, Any], seed: int
) -> ad.AnnData:
    """As many cells as the reference has, label by label."""
    labels = reference.obs[labels_key].value_counts()
    if arm in ("diffusion", "guided") and not model.module.conditional:
        # the published denoiser sees no labels; a classifier leads it to them
        if arm == "diffusion":
            return isd.tl.generate(model, reference.n_obs, labels=None, seed=seed, progress=False)
        isd.model.Classifier.setup_anndata(adata, layer="counts", labels_key=labels_key)
        classifier = isd.model.Classifier(adata, model, preset=config["preset"], seed=seed)
        classifier.train(seed=seed, **config.get("classifier_train", {}))
        asked = {label: int(n) for label, n in labels.items() if n}
        return isd.tl.generate(model, labels=asked, classifier=classifier, seed=seed, progress=False)
    if arm == "diffusion":
        asked = {label: int(n) for label, n in labels.items() if n}
        return isd.tl.generate(model, labels=asked, seed=seed, progress=False, **config.get("generate", {}))
    if arm == "guided":
        # the scale that validation cells choose; it draws the same latents as the diffusion without guidance
        choice = isd.tl.tune_guidance(model, adata, seed=0, progress=False)
        asked = {label: int(n) for label, n in labels.items() if n}
        options = {"guidance_scale": choice.guidance_scale} | config.get("generate", {})
        return isd.tl.generate(model, labels=asked, seed=seed, progress=False, **options)
    if arm == "gaussian":
        which = isd.metrics.baselines(
            adata, model=model, labels_key=labels_key, n_obs=4 * reference.n_obs, which=["latent_gaussian"], seed=seed
        )["latent_gaussian"]
        found = which.obs[labels_key].to_numpy()
        rows = np.concatenate([np.flatnonzero(found == label)[:n] for label, n in labels.items()])
        return which[np.sort(rows)].copy()
    # the held-out cells themselves through the autoencoder: what it loses, latent model aside
    mean, std = model.vae.encode_distribution(reference)
    rng = np.random.default_rng(seed)
    library = np.asarray(reference.layers["counts"].sum(axis=1)).ravel()
    z = mean + std * rng.standard_normal(mean.shape)
    counts = model.vae.decode(z.astype(np.float32), library_size=np.maximum(library, 1), seed=seed)
    return ad.AnnData(obs=reference.obs[[labels_key]].copy(), var=adata.var.copy(), layers={"counts": counts})


def judge(
    adata: ad.AnnData,
    reference: ad.AnnData,
    fakes: list[ad.AnnData],
    labels_key: str,
    floors_of: dict[str, pd.DataFrame],
    args: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """Rows of numbers, over all cells and per label; means over the sets of generated cells."""
    training = adata[adata.obs["isd_split"] == "train"]
    counts = {"train": training.layers["counts"], "real": reference.layers["counts"]}
    yardstick = Yardstick.fit(counts["train"], adata.var_names, seed=0)
    features = {name: yardstick.features(matrix) for name, matrix in counts.items()}
    pcs = {name: yardstick.project(matrix) for name, matrix in features.items()}
    real_labels = reference.obs[labels_key].astype(str).to_numpy()
    train_labels = training.obs[labels_key].astype(str).to_numpy()
    groups = [GLOBAL]
    if len(set(train_labels)) > 1:
        groups += [label for label, n in pd.Series(real_labels).value_counts().items() if n >= args.min_label]
    options = {"n_estimators": args.trees, "n_boot": 0, "n_jobs": args.n_jobs}

    def auc(x: Any, y: Any, seed: int) -> float:
        n = min(x.shape[0], y.shape[0])
        x, y = (m[np.random.default_rng(seed).permutation(m.shape[0])[:n]] for m in (x, y))
        x, y = (m.toarray() if sparse.issparse(m) else m for m in (x, y))
        return classifier_auc(x, y, seed=seed, **options).auc if n >= 20 else np.nan

    def one(matrix: Any, labels: np.ndarray, group: str, seed: int, *, floor: bool = False) -> dict[str, float]:
        """Numbers of one set of cells; of the floor: one half of the reference against the other."""
        rows = np.arange(matrix.shape[0]) if group == GLOBAL else np.flatnonzero(labels == group)
        base = np.arange(real_labels.size) if group == GLOBAL else np.flatnonzero(real_labels == group)
        if floor:
            order = np.random.default_rng(seed).permutation(base)
            base, rows = order[: base.size // 2], order[base.size // 2 : 2 * (base.size // 2)]
        f = yardstick.features(matrix[rows])
        p = yardstick.project(f)
        row = {"features": auc(features["real"][base], f, seed), "pcs": auc(pcs["real"][base], p, seed)}
        if not floor:
            # as many cells as the floor has of either kind: a forest of fewer cells tells less
            halves = [np.random.default_rng(k).permutation(base)[: base.size // 2] for k in range(args.floors)]
            for name, real, fake in (("features", features["real"], f), ("pcs", pcs["real"], p)):
                row[f"{name}_half"] = float(np.mean([auc(real[half], fake, k) for k, half in enumerate(halves)]))
        n = min(len(rows), len(base))
        for name, metric in (("recall", recall), ("density", density), ("coverage", coverage)):
            # they look at 5 neighbours, which a handful of samples does not have
            row[name] = metric(pcs["real"][base][:n], p[:n]) if n >= 12 else np.nan
        same = slice(None) if group == GLOBAL else train_labels == group
        # against as many training cells, so that a label's rows are about that label
        if n >= 20:
            row["distance_ratio"] = nearest_distance_ratio(p[:n], pcs["real"][base][:n], pcs["train"][same])
        row["copies"] = exact_copy_rate(matrix[rows], counts["train"])
        row["real_copies"] = exact_copy_rate(counts["real"][base], counts["train"])
        if group == GLOBAL:
            total = [np.asarray(m.sum(axis=1)).ravel() for m in (counts["real"][base], matrix[rows])]
            detected = [np.diff(sparse.csr_matrix(m).indptr) for m in (counts["real"][base], matrix[rows])]
            row["totals"] = one_number(*total)
            row["detected"] = one_number(*detected)
            chosen = yardstick.align(adata.var_names)
            chosen = np.arange(matrix.shape[1]) if chosen is None else chosen
            row["raw"] = auc(counts["real"][base][:, chosen], matrix[rows][:, chosen], seed) if args.raw else np.nan
        return row

    def one_number(x: np.ndarray, y: np.ndarray) -> float:
        """AUC of one number, in the direction that an interval rule would find: by a small forest."""
        values = np.concatenate([x, y]).astype(float)[:, None]
        target = np.repeat([0, 1], [x.size, y.size])
        from sklearn.metrics import roc_auc_score
        from sklearn.neighbors import KNeighborsClassifier

        scores = np.empty(target.size)
        for fit, test in StratifiedKFold(5, shuffle=True, random_state=0).split(values, target):
            ranks = np.searchsorted(np.sort(values[fit, 0]), values[:, 0])[:, None]
            model = KNeighborsClassifier(max(5, int(fit.size**0.5))).fit(ranks[fit], target[fit])
            scores[test] = model.predict_proba(ranks[test])[:, 1]
        return float(roc_auc_score(target, scores))

    agreement = None
    if len(set(train_labels)) > 1:
        points = [yardstick.features(fake.layers["counts"]) for fake in fakes]
        asked = [fake.obs[labels_key].astype(str).to_numpy() for fake in fakes]
        stacked = sparse.vstack([features["real"], *points]).toarray()
        labels = np.concatenate([real_labels, *asked])
        found = label_agreement(features["train"].toarray(), train_labels, stacked, labels, seed=0).predicted == labels
        agreement = {"real": (found[: real_labels.size], real_labels)}
        agreement["fake"] = (found[real_labels.size :], labels[real_labels.size :])
    for group in groups:
        rows = [
            one(fake.layers["counts"], fake.obs[labels_key].astype(str).to_numpy(), group, k)
            for k, fake in enumerate(fakes)
        ]
        row = pd.DataFrame(rows).mean().to_dict()
        if group not in floors_of:  # the same for every arm
            halvings = [one(counts["real"], real_labels, group, k, floor=True) for k in range(args.floors)]
            floors_of[group] = pd.DataFrame(halvings, columns=list(row))
        floors = floors_of[group]
        row |= {
            f"{name}_floor": value for name, value in floors.mean().items() if name not in ("copies", "real_copies")
        }
        row |= {f"{name}_floor_sd": floors[name].std() for name in ("features", "pcs")}
        if agreement is not None:
            for name, key in (("agreement", "fake"), ("agreement_real", "real")):
                hit, label = agreement[key]
                mine = hit if group == GLOBAL else hit[label == group]
                row[name] = float(mine.mean()) if mine.size and (label != "nan").any() else np.nan
        n = real_labels.size if group == GLOBAL else int((real_labels == group).sum())
        yield {"group": group, "n": n, **row}


def held_out_nll(model: Any, adata: ad.AnnData, part: str) -> float:
    """Negative importance-weighted log-likelihood per cell."""
    if model.vae.module.likelihood == "normal":
        return np.nan
    rows = np.flatnonzero(adata.obs["isd_split"] == part)
    return -float(model.vae.get_marginal_ll(adata, indices=rows, n_mc_samples=50))


def run(args: argparse.Namespace) -> None:
    out = Path(args.out)
    done = set() if not out.exists() else set(map(tuple, pd.read_csv(out)[KEYS].astype(str).to_numpy()))
    for name in args.data:
        for seed in args.seeds:
            for text in args.configs:
                label, _, body = text.partition("=") if not text.startswith("{") else (text, "", text)
                config = CONFIGS[label] if not body else json.loads(body)
                if (name, label, str(seed)) in done:
                    continue
                adata, labels_key = load(name, seed, args.test_size, args.validation_size)
                model, vae_seconds, diffusion_seconds = train(adata, labels_key, config, seed)
                table = []
                for part in args.judge:
                    reference = adata[adata.obs["isd_split"] == part].copy()
                    nll = held_out_nll(model, adata, part)
                    floors: dict[str, pd.DataFrame] = {}
                    judged: dict[str, list[dict[str, Any]]] = {}
                    for arm in args.arms:
                        fakes = [
                            make(model, adata, reference, labels_key, arm, config, 1000 * k + seed)
                            for k in range(args.draws)
                        ]
                        scale = fakes[0].uns.get("isd", {}).get("guidance_scale", np.nan)
                        # cells guided with a scale of 1 are the diffusion's, unless a classifier guided them
                        same = arm == "guided" and scale == 1.0 and model.module.conditional
                        rows = judged.get("diffusion") if same else None
                        judged[arm] = rows or list(judge(adata, reference, fakes, labels_key, floors, args))
                        for row in judged[arm]:
                            table.append(
                                {
                                    "data": name, "config": label, "seed": seed, "reference": part, "arm": arm,
                                    "vae_seconds": round(vae_seconds, 1),
                                    "diffusion_seconds": round(diffusion_seconds, 1), "nll": nll,
                                    "guidance_scale": scale, **row,
                                }
                            )  # fmt: skip
                frame = pd.DataFrame(table)
                if out.exists():
                    frame = pd.concat([pd.read_csv(out), frame])
                part_file = out.with_suffix(".part")
                frame.to_csv(part_file, index=False)
                os.replace(part_file, out)
                shown = pd.DataFrame(table).query("group == 'all'")
                columns = [
                    "reference",
                    "arm",
                    "features",
                    "features_floor",
                    "pcs",
                    "pcs_floor",
                    "agreement",
                    "nll",
                    "guidance_scale",
                ]
                shown = shown[[c for c in columns if c in shown]]
                print(f"{name}, {label}, seed {seed}: {vae_seconds:.0f} + {diffusion_seconds:.0f} s", flush=True)
                print(shown.round(3).to_string(index=False), flush=True)


def print_table(args: argparse.Namespace) -> None:
    frame = pd.read_csv(args.out)
    frame = frame[(frame["reference"] == args.reference) & frame["data"].isin(args.data)]
    if args.labels:
        frame = frame[frame["group"] != GLOBAL]
        keys = ["data", "config", "arm", "group"]
    else:
        frame = frame[frame["group"] == GLOBAL]
        keys = ["data", "config", "arm"]
    numbers = [c for c in frame if c not in {*KEYS, "reference", "arm", "group"}]
    mean = frame.groupby(keys, sort=False)[numbers].mean()
    count = frame.groupby(keys, sort=False)["seed"].nunique()
    for space in ("features", "pcs"):
        mean[f"{space}_se"] = frame.groupby(keys, sort=False)[space].std() / np.sqrt(count)
    mean.insert(0, "seeds", count)
    first = ["seeds", "n", "features", "features_se", "features_floor", "pcs", "pcs_se", "pcs_floor"]
    rest = [c for c in mean if c not in first and not c.endswith("_sd")]
    with pd.option_context("display.width", 250, "display.max_columns", 50, "display.max_rows", 500):
        print(mean[first + rest].round(3).to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=[*REAL, *SIMULATED], choices=[*REAL, *SIMULATED])
    parser.add_argument("--configs", nargs="+", default=["default"], help="names, name={json}, or {json}")
    parser.add_argument("--arms", nargs="+", default=["diffusion", "gaussian", "reconstruction"], choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--judge", nargs="+", default=["validation", "test"], choices=["validation", "test"])
    parser.add_argument("--test-size", type=float, default=0.2)
    parser.add_argument("--validation-size", type=float, default=0.2)
    parser.add_argument("--draws", type=int, default=2, help="sets of generated cells to average over")
    parser.add_argument("--floors", type=int, default=3, help="halvings of the reference")
    parser.add_argument("--trees", type=int, default=300)
    parser.add_argument("--min-label", type=int, default=50, help="smallest label with rows of its own")
    parser.add_argument("--raw", action="store_true", help="also on raw counts")
    parser.add_argument("--n-jobs", type=int, default=1)
    parser.add_argument("--out", default=str(Path(__file__).parent / "out" / "realism.csv"))
    parser.add_argument("--table", action="store_true", help="print the table of what was run")
    parser.add_argument("--reference", default="validation", choices=["validation", "test"])
    parser.add_argument("--labels", action="store_true", help="rows of labels, not of all cells")
    args = parser.parse_args()
    isd.settings.progress = False
    if args.table:
        print_table(args)
        return
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    run(args)


if __name__ == "__main__":
    main()
