"""What is lost when runs are killed at random moments? Nothing should be.

Runs of training (VAE, then diffusion model, with checkpoints), saving (over an older model), generating (to a file) and experiments (two seeds, unguided
and guided) are stopped at random moments by SIGKILL, SIGTERM, SIGINT or a full disk (files may not grow beyond a random size), checked, and started again with
``resume=True``, until one comes to its end. A loss is a folder or file that is neither the older nor the newer one, a checkpoint that
went back, an unfinished file left behind at the end, or an end result that differs in a bit from that of a run which nobody
stopped.

    python benchmarks/crash.py --kills 100 --seed 0 [--actions train save generate experiment]

Needs Linux or macOS (fork), no data, one core; about 5 seconds a kill. Writes benchmarks/out/crash.json.

A further action is a class with ``work``, ``check`` and ``result`` in ``ACTIONS``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch

import isd
from isd.model._state import TRAINING_FILE, read_notes

HOW = ("SIGKILL", "SIGTERM", "SIGINT", "full disk")
OUT = Path(__file__).parent / "out" / "crash.json"


def cells():
    return isd.datasets.simulated(n_obs=200, n_vars=150, n_labels=2, seed=0)


def diffusion(seed=0):
    adata = cells()
    isd.model.LatentDiffusion.setup_anndata(adata)
    return isd.model.LatentDiffusion(adata, n_hidden=16, n_blocks=1, seed=seed)


class Train:
    """A diffusion model with its VAE: some twenty checkpoints of each."""

    largest = 300_000

    @staticmethod
    def work(folder, ready):
        model = diffusion()
        ready()
        model.train(
            max_steps=120,
            batch_size=32,
            vae_kwargs={"max_steps": 120, "batch_size": 32, "gene_encoder": False},
            checkpoint_every=6,
            checkpoint_dir=folder / "model",
            resume=True,
        )

    @staticmethod
    def check(folder):
        """How far it is; every checkpoint is a model that can be loaded and says how far it is."""
        path = folder / "model"
        if not path.exists():
            return 0.0
        model = isd.model.LatentDiffusion.load(path)
        for stage, file in ((1000, path / TRAINING_FILE), (0, path / "vae" / TRAINING_FILE)):
            if file.exists():
                if stage:
                    isd.tl.generate(model, n_obs=2)
                notes = read_notes(file)
                return stage + notes["step"] + 0.5 * notes["finished"]
        raise AssertionError("a checkpoint without the state of a training")

    @staticmethod
    def result(folder):
        model = isd.model.LatentDiffusion.load(folder / "model")
        return [model.fingerprint, model.vae.fingerprint, str(model.history["train_loss"].to_numpy().tolist())]


class Save:
    """One of two models after the other, in the same folder."""

    largest = 60_000

    @staticmethod
    def models():
        out = []
        for seed in (0, 1):
            model = diffusion(seed)
            model.train(max_steps=2, seed=seed, vae_kwargs={"max_steps": 2, "gene_encoder": False})
            out.append(model)
        return out

    @classmethod
    def work(cls, folder, ready):
        a, b = cls.models()
        if not (folder / "model").exists():
            a.save(folder / "model", save_anndata=True)
        ready()
        for _ in range(15):
            b.save(folder / "model", overwrite=True)
            a.save(folder / "model", overwrite=True, save_anndata=True)

    @classmethod
    def check(cls, folder):
        if (folder / "model").exists():
            model = isd.model.LatentDiffusion.load(folder / "model")
            known = [m.fingerprint for m in cls.models()]
            assert model.fingerprint in known, "neither the older nor the newer model"
            assert (model.adata is not None) == (model.fingerprint == known[0]), "the data of another model"
        return 0.0

    @staticmethod
    def result(folder):
        return [isd.model.LatentDiffusion.load(folder / "model").fingerprint]


class Generate:
    """Cells straight to a file, of a model that is there."""

    largest = 2_000_000

    @staticmethod
    def work(folder, ready):
        if not (folder / "model").exists():
            model = diffusion()
            model.train(max_steps=2, vae_kwargs={"max_steps": 2, "gene_encoder": False})
            model.save(folder / "model")
        model = isd.model.LatentDiffusion.load(folder / "model")
        isd.tl._stream.CHUNK_VALUES = 256 * 150 * 2  # chunks of two tiles: many files
        ready()
        try:
            isd.tl.generate(model, n_obs=8000, n_steps=4, backed=folder / "fake.h5ad", seed=3, labels="match")
        except FileExistsError:
            pass  # it was done when it was killed, and says so

    @staticmethod
    def check(folder):
        import anndata

        file = folder / "fake.h5ad"
        if not file.exists():
            return 0.0
        assert anndata.read_h5ad(file).n_obs == 8000
        return 1.0

    @staticmethod
    def result(folder):
        import anndata

        fake = anndata.read_h5ad(folder / "fake.h5ad")
        h = hashlib.blake2b()
        for part in (fake.X.data, fake.X.indices, fake.X.indptr, fake.obsm["X_isd_vae"]):
            h.update(np.ascontiguousarray(part).tobytes())
        return [h.hexdigest()]


GRID = {
    "seeds": [0, 1],
    "data": {"simulated": {"n_obs": 120, "n_vars": 60, "n_labels": 2, "n_bulk": 20}},
    "rows": ["single_cell"],
    "one_class": None,
    "arms": {
        "default": {
            "vae": {"n_hidden": 16},
            "vae_train": {"max_steps": 10, "batch_size": 32},
            "diffusion": {"n_hidden": 16, "n_blocks": 1},
            "diffusion_train": {"max_steps": 10, "batch_size": 32},
            "unguided": {"n_steps": 4},
            "guided": {"n_steps": 4, "guidance_scale": 1.5},
        }
    },
    "evaluation": {
        "metrics": ["coverage"],
        "seed_metrics": False,
        "per_label": False,
        "pictures": False,
        "n_boot": 20,
    },
}


class Experiment:
    """A small grid of trainings: two seeds, unguided and guided."""

    largest = 150_000

    @staticmethod
    def work(folder, ready):
        ready()
        isd.experiment.run(GRID, out=folder / "grid")

    @staticmethod
    def check(folder):
        """Cells of the grid that are done, and models that are there: each is whole."""
        import anndata

        grid, n = folder / "grid", 0
        for path in grid.glob("seed-*/default/*"):
            if path.name.startswith(".") or path.name == "models":
                continue
            assert len(pd.read_csv(path / "metrics.csv")), "a cell of the grid without numbers"
            assert anndata.read_h5ad(path / "generated.h5ad").n_obs == 36
            n += 1
        for path in grid.glob("seed-*/default/models/*"):
            if path.is_dir() and not path.name.startswith("."):
                isd.model.LatentDiffusion.load(path, False)
                json.loads(path.with_suffix(".json").read_text())
                n += 1
        for path in grid.glob("*.json"):
            json.loads(path.read_text())
        if (grid / "results.csv").exists():
            # every row whole: no cell of the table is cut
            assert not pd.read_csv(grid / "results.csv")[["seed", "arm", "cell", "metric"]].isna().any().any()
        return float(n)

    @staticmethod
    def result(folder):
        import anndata

        grid = folder / "grid"
        table = pd.read_csv(grid / "results.csv").drop(columns="training_seconds")
        out = [table.to_csv(index=False)]
        for path in sorted(grid.glob("seed-*/default/*/generated.h5ad")):
            fake = anndata.read_h5ad(path)
            out.append(hashlib.blake2b(fake.X.data.tobytes() + fake.X.indices.tobytes()).hexdigest())
        return out


ACTIONS = {"train": Train, "save": Save, "generate": Generate, "experiment": Experiment}


def child(function, *, limit=None):
    """Run a function in a process of its own; its number, and the end of a pipe that gets what it says."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, os.fdopen(read, "rb")
    code = 1
    try:
        os.close(read)
        torch.set_num_threads(1)
        isd.settings.progress = False
        warnings.simplefilter("ignore")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # scvi prints
        os.dup2(1, 2)  # HDF5 tells at length of a full disk
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        os.write(write, json.dumps(function(lambda: os.write(write, b"ready\n"))).encode() + b"\n")
        code = 0
    except BaseException as e:  # noqa: BLE001  whatever ends the run is told
        text = "".join(traceback.format_exception(e))[-1500:]
        os.write(write, json.dumps({"error": type(e).__name__, "text": text}).encode() + b"\n")
    finally:
        os._exit(code)


def answer(function, **options):
    """What a function in a process of its own returns."""
    pid, pipe = child(function, **options)
    lines = pipe.read().splitlines()
    os.waitpid(pid, 0)
    return json.loads(lines[-1]) if lines else {"error": "killed"}


def attempt(action, folder, how, seconds, rng):
    """Start a run and stop it; whether it came to its end, and how it ended."""
    limit = int(rng.uniform(0.01, 1.0) * action.largest) if how == "full disk" else None
    pid, pipe = child(lambda ready: action.work(folder, ready), limit=limit)
    first = pipe.readline()
    if first == b"ready\n":
        if how in ("SIGKILL", "SIGTERM", "SIGINT"):
            time.sleep(rng.uniform(0, seconds))
            try:
                os.kill(pid, getattr(signal, how))
            except ProcessLookupError:
                pass
        first = pipe.read()
    _, status = os.waitpid(pid, 0)
    pipe.close()
    lines = first.splitlines()
    return status == 0, (json.loads(lines[-1]) if lines and lines[-1].startswith(b"{") else None)


def litter(folder):
    """Unfinished files that are left."""
    return [
        str(p.relative_to(folder))
        for p in folder.rglob("*")
        if ".new-" in p.name or p.name.startswith(".") or p.name.endswith((".old", ".part", ".partial"))
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--actions", nargs="+", default=list(ACTIONS), choices=list(ACTIONS))
    parser.add_argument("--minutes", type=float, default=60)
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have it ignored in the background
    rng, end = np.random.default_rng(args.seed), time.monotonic() + 60 * args.minutes
    kills, losses, runs = Counter(), [], Counter()
    whole, seconds = {}, {}
    for name in args.actions:
        action, folder = ACTIONS[name], Path(tempfile.mkdtemp(prefix="crash-"))
        pid, pipe = child(lambda ready, action=action, folder=folder: action.work(folder, ready))
        assert pipe.readline() == b"ready\n"
        began = time.monotonic()
        said = pipe.read()
        os.waitpid(pid, 0)
        seconds[name] = time.monotonic() - began
        whole[name] = answer(lambda ready, action=action, folder=folder: action.result(folder))
        assert isinstance(whole[name], list), (said, whole[name])
        shutil.rmtree(folder)
        print(f"{name}: {seconds[name]:.1f} s without a stop", flush=True)

    def lose(name, how, what):
        losses.append({"action": name, "how": how, "what": what})
        print("LOSS", losses[-1], flush=True)

    while sum(kills.values()) < args.kills and time.monotonic() < end:
        # the action with the fewest kills so far, so that all get as many
        name = min(args.actions, key=lambda name: (sum(n for (a, _), n in kills.items() if a == name), runs[name]))
        action, folder = ACTIONS[name], Path(tempfile.mkdtemp(prefix="crash-"))
        far, history = 0.0, []
        for _ in range(12):
            how = str(rng.choice(HOW))
            done, said = attempt(action, folder, how, 0.4 * seconds[name], rng)
            if done:
                break
            history.append(how)
            kills[name, how] += 1
            if said is not None and said.get("error") not in (
                "KeyboardInterrupt",
                "SystemExit",
                "OSError",
                "BlockingIOError",
            ):
                lose(name, how, said)
            now = answer(lambda ready, action=action, folder=folder: action.check(folder))
            if not isinstance(now, float):
                lose(name, how, now)
            elif now < far:
                lose(name, how, f"went back from {far} to {now}")
            else:
                far = now
        else:
            done, said = attempt(action, folder, "none", 0, rng)
        if not done:
            lose(name, "end", said)
        found = answer(lambda ready, action=action, folder=folder: action.result(folder))
        if found != whole[name]:
            lose(name, "end", {"expected": whole[name], "found": found, "history": history})
        if left := litter(folder):
            lose(name, "end", {"left behind": left})
        runs[name] += 1
        print(
            f"{name}: {', '.join(history) or 'not stopped'}; {sum(kills.values())} kills, {len(losses)} losses",
            flush=True,
        )
        shutil.rmtree(folder)
        OUT.parent.mkdir(exist_ok=True)
        table = {f"{a}, {h}": kills[a, h] for a in args.actions for h in HOW}
        OUT.write_text(json.dumps({"seed": args.seed, "kills": table, "runs": runs, "losses": losses}, indent=1))
    print(json.dumps(table, indent=1), flush=True)
    print(f"{sum(kills.values())} kills in {sum(runs.values())} runs, {len(losses)} losses")


if __name__ == "__main__":
    main()
