"""Damaged files: do readers and model loading say so, or do they crash, hang, allocate without bound, or run code?

    python benchmarks/fuzz.py --minutes 30

Small sound files of every kind are damaged at random (bytes flipped, cut, repeated, moved; numbers and words of texts replaced; HDF5 datasets dropped, renamed,
resized; entries of JSON changed, with digests that fit again) and read. A case is *read* (an AnnData, a model or a description came back), *refused* (an error
raised by code of isd), or a finding: an error raised by a library, more memory than allowed, a case of more than 60 seconds, a process that died, or code that was run
(audit events of pickle, processes and sockets). Workers are processes of their own; what caused a finding is kept in benchmarks/out/fuzz/. Same seed, same cases.
Needs the extra ``io``; takes as long as it is told to.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

OUT = Path(__file__).parent / "out" / "fuzz"
#: Address space that a worker may add to what it has once everything is imported.
MORE_MEMORY = 2 * 2**30
SECONDS = 60
#: Audit events that no reader has a reason for.
FORBIDDEN = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")
FINDINGS = ("foreign", "memory", "hung", "died", "ran code")


# sound files ------------------------------------------------------------------------------------------------------


def make_files(root: Path) -> None:
    """A small sound file of every kind, in a folder of its own."""
    import isd

    rng = np.random.default_rng(0)
    adata = isd.datasets.simulated(40, 30, n_labels=2, seed=0)
    counts = adata.X.toarray().astype(int)

    def put(kind: str, name: str, data: str | bytes) -> None:
        path = root / kind / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    (root / "h5ad").mkdir(parents=True)
    adata.write_h5ad(root / "h5ad" / "cells.h5ad")
    for kind, options in (("archs4", {}), ("archs4 chunked", {"chunks": (8, 5), "compression": "gzip"})):
        (root / kind).mkdir()
        with h5py.File(root / kind / "human_transcript_v2.5.h5", "w") as file:
            file.create_dataset("data/expression", data=counts.T.astype("uint32"), **options)
            file["meta/transcripts/ensembl_id"] = [n.encode() for n in adata.var_names]
            file["meta/transcripts/symbol"] = [n.encode() for n in adata.var["gene_name"]]
            file["meta/samples/geo_accession"] = [f"GSM{i}".encode() for i in range(40)]
            for field in ("series_id", "source_name_ch1", "title"):
                file[f"meta/samples/{field}"] = [str(v).encode() for v in adata.obs[field]]
            file["meta/samples/singlecellprobability"] = rng.random(40)
    rows = [",".join([t, g, *map(str, counts[:, j])]) for j, (t, g) in enumerate(adata.var["gene_id"].items())]
    text = "\n".join(["transcript_id,gene_id," + ",".join(adata.obs_names), *rows]) + "\n"
    put("table", "transcript_count.csv", text)
    put("table gz", "transcript_count.csv.gz", gzip.compress(text.encode()))
    i, j = np.nonzero(counts)
    lines = [f"{adata.var_names[b]}\t{adata.obs_names[a]}\t{counts[a, b]}" for a, b in zip(i, j, strict=True)]
    put("linear", "run.transcript_grouped_counts.linear.tsv", "\n".join(["feature_id\tgroup_id\tcount", *lines]) + "\n")
    entries = [f"{b + 1} {a + 1} {counts[a, b]}" for a, b in zip(i, j, strict=True)]
    head = f"%%MatrixMarket matrix coordinate integer general\n30 40 {len(entries)}\n"
    for kind, pack in (("mtx", str.encode), ("mtx gz", lambda s: gzip.compress(s.encode()))):
        put(kind, "matrix.mtx" + (".gz" if "gz" in kind else ""), pack(head + "\n".join(entries) + "\n"))
        put(kind, "features.tsv", "\n".join(adata.var_names) + "\n")
        put(kind, "barcodes.tsv", "\n".join(adata.obs_names) + "\n")
    quant = [f"{t}\t900\t700.5\t1.5\t{c}" for t, c in zip(adata.var_names, counts[0], strict=True)]
    put("salmon", "quant.sf", "\n".join(["Name\tLength\tEffectiveLength\tTPM\tNumReads", *quant]) + "\n")
    (root / "kallisto").mkdir()
    with h5py.File(root / "kallisto" / "abundance.h5", "w") as file:
        file["est_counts"], file["aux/eff_lengths"] = counts[0].astype(float), np.full(30, 700.0)
        file["aux/ids"] = [n.encode() for n in adata.var_names]
    gtf = [
        f'chr1\tx\ttranscript\t1\t9\t.\t+\t.\tgene_id "{g}"; transcript_id "{t}"; gene_name "{n}";'
        for t, g, n in zip(adata.var_names, adata.var["gene_id"], adata.var["gene_name"], strict=True)
    ]
    put("gtf", "a.gtf", "\n".join(gtf) + "\n")
    put("gtf gz", "a.gtf.gz", gzip.compress(("\n".join(gtf) + "\n").encode()))
    pairs = [f"{t}\t{g}" for t, g in adata.var["gene_id"].items()]
    put("t2g", "t2g.tsv", "\n".join(["transcript_id\tgene_id", *pairs]) + "\n")
    isd.pp.split(adata, seed=0)
    isd.model.LatentDiffusion.setup_anndata(adata)
    model = isd.model.LatentDiffusion(adata, n_hidden=8)
    model.train(max_steps=2, vae_kwargs={"max_steps": 2})
    model.save(root / "model")


def readers() -> dict[str, Callable[[Path], Any]]:
    """What reads each kind; the folder of its files is given."""
    import isd

    one = lambda folder: next(p for p in sorted(folder.iterdir()))
    return {
        "h5ad": lambda f: str(isd.io.info(one(f))),
        "archs4": lambda f: (str(isd.io.info(one(f))), isd.io.read_archs4(one(f), search="cell|sim")),
        "archs4 chunked": lambda f: isd.io.read_archs4(one(f), chunk_mb=0.001),
        "table": lambda f: isd.io.read_long_reads(f),
        "table gz": lambda f: isd.io.read_long_reads(f),
        "linear": lambda f: isd.io.read_long_reads(f),
        "mtx": lambda f: isd.io.read_long_reads(f),
        "mtx gz": lambda f: isd.io.read_long_reads(f),
        "salmon": lambda f: isd.io.read_quant(one(f), "salmon"),
        "kallisto": lambda f: isd.io.read_quant(one(f), "kallisto"),
        "gtf": lambda f: isd.io.read_gene_map(one(f)),
        "gtf gz": lambda f: isd.io.read_gene_map(one(f)),
        "t2g": lambda f: isd.io.read_gene_map(one(f)),
        "model": lambda f: isd.model.LatentDiffusion.load(f),
    }


# damage -----------------------------------------------------------------------------------------------------------


WORDS = (b"-1", b"0", b"99999999999999999999", b"1e308", b"NaN", b"inf", b"", b"\x00", b"\xff\xfe", b"%s%n", b"null", b"[]", b"{}", b'"', b"\t\t", b"\n\n")  # fmt: skip


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Damage that any storage or transfer may do, and what a hand may do to a text."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not out:
            break
        a = rng.randrange(len(out))
        b = min(len(out), a + rng.choice((1, 2, 8, 64, 1024)))
        kind = rng.randrange(7)
        if kind == 0:
            for k in range(a, b):
                out[k] = rng.randrange(256)
        elif kind == 1:
            out[a] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del out[a:]
        elif kind == 3:
            del out[a:b]
        elif kind == 4:
            out[a:a] = out[a:b] * rng.choice((1, 3, 50))
        elif kind == 5:
            out[a:b] = rng.choice(WORDS)
        else:
            c = rng.randrange(len(out))
            out[a:b], out[c : c + b - a] = out[c : c + b - a], out[a:b]
    return bytes(out)


def damage_hdf5(path: Path, rng: random.Random) -> None:
    """Sound HDF5 of another content: datasets dropped, moved, of another shape or type."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name, other = rng.choice(names), rng.choice(names)
        kind = rng.randrange(5)
        if kind == 0:
            del file[name]
        elif kind == 1 and name not in other and other not in name:
            del file[other]
            file.move(name, other)
        elif isinstance(file[name], h5py.Dataset) and file[name].shape:
            shape = list(file[name].shape)
            shape[rng.randrange(len(shape))] = rng.choice((0, 1, 7, 10**9, 10**12))
            dtype = rng.choice((file[name].dtype, "f4", "i8", "S3", h5py.string_dtype(), "u1"))
            del file[name]
            file.create_dataset(name, shape=tuple(shape), dtype=dtype, chunks=tuple(min(max(s, 1), 16) for s in shape))
        else:
            key = rng.choice((*file[name].attrs, "shape", "encoding-type", "_index", "column-order"))
            file[name].attrs[key] = rng.choice(("csr_matrix", "dataframe", -1, [10**12, 10**12], "x", [], 0.5))


def damage_json(value: Any, rng: random.Random) -> Any:
    """The same document, one of its values or keys another."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if rng.random() < 0.05:
            return {(k + "_" if k == key else k): v for k, v in value.items()}
        return value | {key: damage_json(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        out = list(value)
        position = rng.randrange(len(out))
        out[position] = damage_json(out[position], rng)
        return out[: rng.randrange(len(out))] if rng.random() < 0.1 else out
    return rng.choice((None, -1, 0, 2**63, 10**13, 1e308, float("nan"), "", "x", "../../etc/passwd", [], {}, True, [value], {"__array__": [1], "dtype": "O"}, {"__array__": [1], "dtype": "f8,f8"}, {"a": value}))  # fmt: skip


def damage_model(folder: Path, rng: random.Random) -> None:
    """A file of a model, at any depth; often with digests that fit, as somebody who means harm would see to."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    path = rng.choice(files)
    kind = rng.randrange(4)
    if path.suffix == ".json" and kind:
        path.write_text(json.dumps(damage_json(json.loads(path.read_text()), rng)))
    elif path.suffix == ".safetensors" and kind:
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.dumps(damage_json(json.loads(data[8 : 8 + size]), rng)).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    elif kind == 1:
        path.unlink()
    else:
        path.write_bytes(damage_bytes(path.read_bytes(), rng))
    if rng.random() < 0.7:
        from isd.model._files import _digest

        description = path.parent / "model.json"
        try:
            document = json.loads(description.read_text())
            for name in document["digests"]:
                document["digests"][name] = _digest(path.parent / name)
            description.write_text(json.dumps(document))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # damaged beyond that


def damage(kind: str, folder: Path, rng: random.Random) -> None:
    """Damage the files of a kind."""
    if kind == "model":
        damage_model(folder, rng)
        return
    path = rng.choice(sorted(p for p in folder.iterdir() if p.is_file()))
    if h5py.is_hdf5(path) and rng.random() < 0.5:
        try:
            damage_hdf5(path, rng)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError):
            path.write_bytes(damage_bytes(path.read_bytes(), rng))  # no such dataset can be made
    elif path.suffix == ".gz" and rng.random() < 0.7:
        path.write_bytes(gzip.compress(damage_bytes(gzip.decompress(path.read_bytes()), rng)))
    else:
        path.write_bytes(damage_bytes(path.read_bytes(), rng))


# a worker ---------------------------------------------------------------------------------------------------------


def is_ours(error: BaseException) -> bool:
    """Whether the error was raised by a line of isd."""
    frames = traceback.extract_tb(error.__traceback__)
    return (
        bool(frames)
        and "/isd/" in frames[-1].filename.replace("\\", "/")
        and "site-packages" not in frames[-1].filename
    )


def work(root: Path, first: int, last: int, kinds: list[str]) -> None:
    """Run cases, a line before and a line after each."""
    import faulthandler

    import isd

    faulthandler.enable()
    isd.settings.progress = False
    events: list[str] = []
    by_kind = {kind: read for kind, read in readers().items() if kind in kinds}
    for kind, read in by_kind.items():  # everything is imported, and sound files are read
        read(root / kind)
    sys.addaudithook(lambda event, _: events.append(event) if event in FORBIDDEN else None)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_MEMORY,) * 2)
    names = list(by_kind)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in range(first, last):
        rng = random.Random(case)
        kind = names[case % len(names)]
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        try:
            target = folder / kind
            shutil.copytree(root / kind, target)
            print(json.dumps({"case": case, "kind": kind, "folder": str(target)}), flush=True)
            damage(kind, target, rng)
            events.clear()
            note = ""
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    by_kind[kind](target)
                outcome = "read"
            except MemoryError as error:
                outcome, note = ("refused" if is_ours(error) else "memory"), repr(error)
            except Exception as error:  # noqa: BLE001  # what may come is the question
                outcome = "refused" if is_ours(error) else "foreign"
                where = traceback.extract_tb(error.__traceback__)[-1]
                note = f"{type(error).__name__}: {str(error)[:160]} ({Path(where.filename).name}:{where.lineno})"
            if events:
                outcome, note = "ran code", ", ".join(sorted(set(events)))
            kept = ""
            if outcome in FINDINGS:
                kept = str(OUT / f"{outcome.replace(' ', '_')}_{kind.replace(' ', '_')}_{case}")
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(target, kept)
            now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            more, peak = 1024 * (now - peak), now  # what this case added to the highest so far
            print(
                json.dumps(
                    {
                        "case": case,
                        "kind": kind,
                        "outcome": outcome,
                        "note": note,
                        "kept": kept,
                        "peak": 1024 * now,
                        "more": more,
                    }
                ),
                flush=True,
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)


# the whole --------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--batch", type=int, default=2000, help="cases of a worker")
    parser.add_argument("--kinds", nargs="+", default=list(readers()), choices=list(readers()), help="files to damage")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        root, first, last = arguments.worker
        work(Path(root), int(first), int(last), arguments.kinds)
        return
    OUT.mkdir(parents=True, exist_ok=True)
    counts: Counter[tuple[str, str]] = Counter()
    findings: list[dict[str, Any]] = []
    peak, end, case = 0, time.monotonic() + 60 * arguments.minutes, arguments.seed
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "sound"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make_files(root)
        while time.monotonic() < end:
            case, worst = run_worker(root, case, case + arguments.batch, arguments.kinds, end, counts, findings)
            peak = max(peak, worst)
    table(counts, findings, peak, arguments)


def run_worker(
    root: Path,
    first: int,
    last: int,
    kinds: list[str],
    end: float,
    counts: Counter[tuple[str, str]],
    findings: list[dict[str, Any]],
) -> tuple[int, int]:
    """Follow a worker; returns the next case and the largest memory seen."""
    import select

    command = [sys.executable, __file__, "--kinds", *kinds, "--worker", str(root), str(first), str(last)]
    log = OUT / "worker.log"
    peak, begun = 0, None
    with log.open("wb") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as process:
        assert process.stdout is not None
        buffer = b""
        while True:
            ready = select.select([process.stdout], [], [], SECONDS if begun else 300)[0]
            chunk = process.stdout.read1(1 << 16) if ready else b""
            if not chunk:
                process.kill()
                process.wait()
                if begun is None:
                    if process.returncode not in (0, -9):
                        raise SystemExit(f"the worker failed before a case: see {log}")
                    return last, peak
                outcome = "died" if ready else "hung"
                kept = OUT / f"{outcome}_{begun['kind'].replace(' ', '_')}_{begun['case']}"
                shutil.rmtree(kept, ignore_errors=True)
                if Path(begun["folder"]).exists():
                    shutil.copytree(begun["folder"], kept)
                    shutil.rmtree(Path(begun["folder"]).parent, ignore_errors=True)
                counts[begun["kind"], outcome] += 1
                findings.append(
                    begun | {"outcome": outcome, "note": f"return code {process.returncode}", "kept": str(kept)}
                )
                print(findings[-1], flush=True)
                return begun["case"] + 1, peak
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                record = json.loads(line)
                if "outcome" not in record:
                    begun = record
                    continue
                begun = None
                counts[record["kind"], record["outcome"]] += 1
                peak = max(peak, record["peak"])
                if record["more"] > 2**28:
                    print(
                        {
                            "case": record["case"],
                            "kind": record["kind"],
                            "added GB": record["more"] / 1e9,
                            "outcome": record["outcome"],
                            "note": record["note"],
                        },
                        flush=True,
                    )
                if record["outcome"] in FINDINGS:
                    findings.append(record)
                    print({k: record[k] for k in ("case", "kind", "outcome", "note")}, flush=True)
                if time.monotonic() > end:
                    process.kill()
                    process.wait()
                    return record["case"] + 1, peak


def table(
    counts: Counter[tuple[str, str]], findings: list[dict[str, Any]], peak: int, arguments: argparse.Namespace
) -> None:
    columns = ("read", "refused", *FINDINGS)
    kinds = sorted({kind for kind, _ in counts})
    lines = ["| files | cases | " + " | ".join(columns) + " |", "|" + "---|" * (len(columns) + 2)]
    for kind in [*kinds, "all"]:
        of = [sum(n for (k, o), n in counts.items() if o == c and kind in (k, "all")) for c in columns]
        lines.append(f"| {kind} | {sum(of):,} | " + " | ".join(f"{n:,}" for n in of) + " |")
    text = (
        "\n".join(lines)
        + f"\n\n{arguments.minutes:g} minutes from case {arguments.seed}; largest memory of a worker {peak / 1e9:.2f} GB\n"
    )
    (OUT / "table.md").write_text(text)
    (OUT / "findings.json").write_text(json.dumps(findings, indent=1))
    print(text)


if __name__ == "__main__":
    main()
