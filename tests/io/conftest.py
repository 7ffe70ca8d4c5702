"""Small files as the tools write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest


@pytest.fixture
def write_archs4(tmp_path: Path) -> Callable[..., tuple[Path, np.ndarray]]:
    """A function that writes a small ARCHS4 transcript file and returns its path and counts (transcripts x samples)."""

    def write(
        n_transcripts: int = 37,
        n_samples: int = 23,
        *,
        chunks: tuple[int, int] | bool | None = (10, 4),
        id_field: str = "ensembl_id",
        seed: int = 0,
        name: str = "human_transcript_v2.5.h5",
    ) -> tuple[Path, np.ndarray]:
        rng = np.random.default_rng(seed)
        counts = rng.poisson(2.0, size=(n_transcripts, n_samples)).astype(np.uint32)
        counts[rng.random(counts.shape) < 0.6] = 0
        path = tmp_path / name
        tissue = np.array(["Liver", "brain cortex", "liver (tumor)", "heart"])[np.arange(n_samples) % 4]
        with h5py.File(path, "w") as file:
            options = {} if chunks is None else {"chunks": chunks, "compression": "gzip"}
            file.create_dataset("data/expression", data=counts, **options)
            samples = file.create_group("meta/samples")
            fields = {
                "geo_accession": [f"GSM{1000 + i}" for i in range(n_samples)],
                "series_id": [f"GSE{i // 6}" for i in range(n_samples)],
                "source_name_ch1": list(tissue),
                "title": [f"sample {i}" for i in range(n_samples)],
                "characteristics_ch1": [f"tissue: {t}, Größe: {i}" for i, t in enumerate(tissue)],
            }
            for key, values in fields.items():
                samples.create_dataset(key, data=[v.encode() for v in values])
            samples["singlecellprobability"] = (np.arange(n_samples) % 3 == 0).astype(float) * 0.9
            transcripts = file.create_group("meta/transcripts")
            transcripts[id_field] = [f"ENST{i:011d}.{i % 9 + 1}".encode() for i in range(n_transcripts)]
            transcripts["symbol"] = [f"GENE{i // 2}".encode() for i in range(n_transcripts)]
        return path, counts

    return write


@pytest.fixture
def t2g(tmp_path: Path) -> Path:
    """A transcript-to-gene table that knows ENST1 to ENST4."""
    path = tmp_path / "t2g.tsv"
    lines = ["transcript_id\tgene_id\tgene_name"] + [
        f"ENST{i}\tENSG{(i + 1) // 2}\tG{(i + 1) // 2}" for i in range(1, 5)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path
