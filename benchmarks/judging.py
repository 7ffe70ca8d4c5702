"""What `isd.metrics.evaluate` costs: seconds and memory, over all cells and with a row per label.

The baseline, measured in the same run, is the forest on principal components of the starting project's
evaluation (1,000 trees, five folds), which is one of the rows that `evaluate` gives.

    python benchmarks/judging.py                                    # 5,000 against 5,000 cells x 20,000 features
    python benchmarks/judging.py --n-obs 500 --n-vars 2000          # quick
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_predict

import isd


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-obs", type=int, default=5000, help="cells on each side (and as many to train on)")
    parser.add_argument("--n-vars", type=int, default=20_000)
    parser.add_argument("--n-labels", type=int, default=44)
    parser.add_argument("--n-jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    cells = isd.datasets.simulated(3 * args.n_obs, args.n_vars, n_labels=args.n_labels, seed=args.seed, progress=False)
    part = np.random.default_rng(args.seed).permutation(np.repeat(["train", "test", "fake"], args.n_obs))
    real, fake = cells[part != "fake"].copy(), cells[part == "fake"].copy()
    real.obs["isd_split"] = part[part != "fake"]
    del cells
    print(f"{args.n_obs:,} against {args.n_obs:,} cells x {args.n_vars:,}, {args.n_labels} labels, seed {args.seed}")
    print(f"data in memory: {peak_gb():.2f} GB at its peak", flush=True)

    seconds = {}
    for name, groups in (("all cells together", False), ("with a row per label", True)):
        start, cpu = time.perf_counter(), time.process_time()
        isd.metrics.evaluate(
            real, fake, labels_key="leiden", groups=groups, n_jobs=args.n_jobs, key_added=None, progress=False
        )
        seconds[name] = time.perf_counter() - start
        cpu = time.process_time() - cpu
        print(f"{name}: {seconds[name]:.0f} s wall, {cpu:.0f} s CPU, peak {peak_gb():.2f} GB", flush=True)

    start = time.perf_counter()
    X = np.random.default_rng(args.seed).normal(size=(2 * args.n_obs, 50))
    y = np.repeat([0, 1], args.n_obs)
    forest = RandomForestClassifier(1000, n_jobs=args.n_jobs, random_state=args.seed)
    cross_val_predict(forest, X, y, cv=5, method="predict_proba")
    baseline = time.perf_counter() - start
    print(f"baseline (1,000 trees, five folds, 50 components): {baseline:.0f} s")
    for name, taken in seconds.items():
        print(f"{name}: {taken / baseline:.2f} x the baseline")


if __name__ == "__main__":
    main()
