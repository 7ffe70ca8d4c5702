"""A rare cluster of 8, 12 and 20 cells: do generated cells help a classifier or a marker test, against what costs nothing?

Simulated cells; the code is that of `tutorials/rare_cluster.ipynb` (its cells that define functions), run on worlds that the
tutorial does not show. Differences are paired by world, with Student's 95% intervals. Also what the marker test calls between cells
of one cluster of which some got another name: nothing is there to be found.

    OMP_NUM_THREADS=1 python benchmarks/rare_cluster.py             # 6 worlds x 3 sizes; some 15 minutes on one core
    OMP_NUM_THREADS=1 python benchmarks/rare_cluster.py --worlds 1 --rare 12
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
from scipy.stats import t as student

OUT = Path(__file__).parent / "out"
TUTORIAL = Path(__file__).parents[1] / "tutorials" / "rare_cluster.ipynb"
FIRST_WORLD = 10  # the tutorial shows 0, 1 and 2


def tutorial_code() -> dict:
    """What the tutorial imports and defines."""
    names: dict = {}
    for cell in nbformat.read(TUTORIAL, as_version=4).cells:
        if cell.cell_type == "code" and ("import " in cell.source or "def " in cell.source):
            # only definitions: what a cell does with them is for the reader of the notebook
            kept = [block for block in cell.source.split("\n\n\n") if block.startswith(("import ", "def "))]
            exec("\n\n\n".join(kept), names)
    return names


def interval(values: pd.Series) -> str:
    half = student.ppf(0.975, len(values) - 1) * values.std() / len(values) ** 0.5
    return f"{values.mean():+.2f} ({values.mean() - half:+.2f} to {values.mean() + half:+.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=6)
    parser.add_argument("--rare", type=int, nargs="+", default=[8, 12, 20])
    args = parser.parse_args()
    use = tutorial_code()
    found, called, chance = [], [], []
    for n_rare in args.rare:
        for seed in range(FIRST_WORLD, FIRST_WORLD + args.worlds):
            adata = use["world"](seed, n_rare)
            fake = use["generated"](adata, seed)
            sets = use["ways"](adata, fake, "4", seed)
            found += [{"cells": n_rare, **row} for row in use["judge"](adata, sets, seed)]
            factor = use["truth"](adata)
            for way, cells in sets.items():
                if way != "class weights":
                    hits = factor[use["markers"](cells, "4")]
                    numbers = {"called": len(hits), "true": (hits > 1.5).sum(), "no change": (hits < 1.1).sum()}
                    called.append({"cells": n_rare, "seed": seed, "way": way, **numbers})
            train, own = adata[adata.obs["part"] == "train"], use["rows"](adata, "train", "chance")
            drawn = fake[fake.obs["cluster"] == "chance"]
            for n in (0, 10, 40, 160, 640):
                again = use["redrawn"](own, np.random.default_rng(seed).integers(own.n_obs, size=n))
                for way, cells in {"generated": drawn[:n], "repeated": again}.items():
                    wrong = len(use["markers"](use["more"](train, cells), "chance", "0"))
                    chance.append({"cells": n_rare, "seed": seed, "way": way, "added": n, "called": wrong})
            real = use["more"](train, use["rows"](adata, "spare", "chance"))
            wrong = len(use["markers"](real, "chance", "0"))
            chance.append({"cells": n_rare, "seed": seed, "way": "real", "added": 40, "called": wrong})
            print(n_rare, seed, flush=True)
    OUT.mkdir(exist_ok=True)
    frames = {"classifier": pd.DataFrame(found), "markers": pd.DataFrame(called), "chance": pd.DataFrame(chance)}
    for name, frame in frames.items():
        frame.to_csv(OUT / f"rare_cluster_{name}.csv", index=False)
    pd.set_option("display.width", 200)
    scores = ["recall", "precision", "F1", "average precision"]
    print(frames["classifier"].groupby(["classifier", "cells", "way"])[scores].mean().round(2).to_string())
    for score in scores[2:]:
        wide = frames["classifier"].pivot_table(index=["classifier", "cells", "seed"], columns="way", values=score)
        for other in ("nothing", "class weights", "more real cells"):
            difference = (wide["generated"] - wide[other]).groupby(["classifier", "cells"]).apply(interval)
            print(f"\n{score}: generated minus {other}\n{difference.to_string()}")
    print(frames["markers"].groupby(["cells", "way"])[["called", "true", "no change"]].mean().round(1).to_string())
    print(frames["chance"].pivot_table(index=["cells", "way"], columns="added", values="called").round(1).to_string())
    print(
        frames["chance"]
        .pivot_table(index=["cells", "way"], columns="added", values="called", aggfunc="max")
        .to_string()
    )


if __name__ == "__main__":
    main()
