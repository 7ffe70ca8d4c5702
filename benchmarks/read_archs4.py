"""Seconds and memory of reading samples from an ARCHS4 transcript file of real width.

A file of random counts (179,610 transcripts, by default 1,000 samples, 5% of them not zero, compressed chunks) is written to a temporary folder; then a process of
its own reads some samples of it.

    python benchmarks/read_archs4.py                     # some minutes, most of them for writing
    python benchmarks/read_archs4.py --n-samples 300 --chunks 2000 1

Goal: memory beside the result stays below 0.5 GB, whatever the chunks.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np


def write(path: Path, n_transcripts: int, n_samples: int, chunks: tuple[int, int]) -> None:
    """Write random counts, a stretch of transcripts at a time."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "data/expression",
            (n_transcripts, n_samples),
            "uint32",
            chunks=chunks,
            compression="gzip",
            compression_opts=1,
        )
        step = max(chunks[0], 20_000_000 // n_samples // chunks[0] * chunks[0])
        for start in range(0, n_transcripts, step):
            size = (min(step, n_transcripts - start), n_samples)
            block = np.zeros(size, dtype=np.uint32)
            where = rng.integers(0, block.size, block.size // 20)
            block.ravel()[where] = rng.geometric(0.2, where.size)
            data[start : start + step] = block
        file["meta/transcripts/ensembl_id"] = np.array([f"ENST{i:011d}.1" for i in range(n_transcripts)], dtype="S")
        file["meta/samples/geo_accession"] = np.array([f"GSM{i}" for i in range(n_samples)], dtype="S")
        file["meta/samples/title"] = np.array([f"tissue {i % 10}" for i in range(n_samples)], dtype="S")


def read(path: str, search: str) -> None:
    """Read, and print what it took."""
    import isd

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, cpu = time.perf_counter(), time.process_time()
    adata = isd.io.read_archs4(path, search=search)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    more = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    size = adata.X.data.nbytes + adata.X.indices.nbytes + adata.X.indptr.nbytes
    print(json.dumps({"samples": adata.n_obs, "wall": seconds, "cpu": cpu, "result": size / 1e9, "peak": more / 1e9}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-transcripts", type=int, default=179_610)
    parser.add_argument("--n-samples", type=int, default=1000)
    parser.add_argument("--chunks", type=int, nargs=2, default=(2000, 100))
    parser.add_argument("--read", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        read(*arguments.read)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "human_transcript_v2.5.h5")
        write(path, arguments.n_transcripts, arguments.n_samples, tuple(arguments.chunks))
        print(
            f"file {path.stat().st_size / 1e9:.2f} GB, dense {4e-9 * arguments.n_transcripts * arguments.n_samples:.2f} GB"
        )
        for search in ("tissue", "tissue 3"):
            print(subprocess.run([sys.executable, __file__, "--read", str(path), search], capture_output=True, text=True, check=True).stdout.strip())  # fmt: skip


if __name__ == "__main__":
    main()
