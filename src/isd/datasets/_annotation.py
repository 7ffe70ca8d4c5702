"""Names and metadata columns of simulated data, like those of an ARCHS4 download."""

from __future__ import annotations

import numpy as np
import pandas as pd

from isd._constants import GENE_ID, GENE_NAME
from isd.datasets._world import World


def make_var(world: World, rng: np.random.Generator) -> pd.DataFrame:
    """Transcripts with Ensembl-like ids; some genes are named as mitochondrial, ribosomal and haemoglobin genes are."""
    n_genes = world.sizes.size
    names = np.array([f"GENE{i + 1}" for i in range(n_genes)], dtype=object)
    order = rng.permutation(n_genes)
    taken = 0
    for prefix, share, most in (("MT-SIM", 0.015, 13), ("RPL9", 0.02, 45), ("RPS9", 0.015, 35), ("HBA9", 0.004, 4)):
        for number in range(min(most, int(share * n_genes))):
            names[order[taken]] = f"{prefix}{number + 1:02d}"
            taken += 1
    gene_of = world.gene_of
    within = np.arange(gene_of.size) - world.starts[gene_of]
    return pd.DataFrame(
        {
            GENE_ID: [f"ENSG9{g + 1:010d}" for g in gene_of],
            GENE_NAME: names[gene_of],
            "transcript_name": [f"{names[g]}-{k + 201}" for g, k in zip(gene_of, within, strict=True)],
            "true_dispersion": world.dispersion[gene_of],
        },
        index=pd.Index([f"ENST9{t + 1:010d}.1" for t in range(gene_of.size)], name="transcript_id"),
    )


def make_obs(
    kind: str, labels: np.ndarray, n_labels: int, batches: np.ndarray, n_batches: int, rng: np.random.Generator
) -> pd.DataFrame:
    """Fill the metadata columns of an ARCHS4 file with made-up values, then ``batch`` and ``leiden``."""
    n_obs = labels.size
    single = kind == "single_cell"
    stem, first = ("cell", 1) if single else ("sample", 5_000_001)

    def constant(value: str) -> pd.Categorical:
        return pd.Categorical.from_codes(np.zeros(n_obs, dtype=np.int8), categories=[value])

    def by_batch(values: list[str]) -> pd.Categorical:
        codes = pd.factorize(np.array(values, dtype=object))[0] if values else np.array([], dtype=int)
        return pd.Categorical.from_codes(codes[batches], categories=list(dict.fromkeys(values)))

    cities = (("Lyngby", "Denmark", "Simulated University"), ("Boston", "USA", "Simulated Hospital"))
    place = [cities[b % 2] for b in range(n_batches)]
    probability = rng.beta(60, 2, n_obs) if single else rng.beta(2, 60, n_obs)
    label_names = [str(i) for i in range(n_labels)]
    return pd.DataFrame(
        {
            "geo_accession": [f"GSM9{i + first:07d}" for i in range(n_obs)],
            "series_id": by_batch([f"GSE9{b + 1 + (0 if single else 500):05d}" for b in range(n_batches)]),
            "characteristics_ch1": pd.Categorical.from_codes(
                labels, categories=[f"cell type: simulated {name}" for name in label_names]
            ),
            "extract_protocol_ch1": constant("simulated by isd.datasets.simulated"),
            "source_name_ch1": constant("simulated cells" if single else "simulated tissue"),
            "title": [f"simulated {stem} {i}" for i in range(n_obs)],
            "contact_city": by_batch([p[0] for p in place]),
            "contact_country": by_batch([p[1] for p in place]),
            "contact_institute": by_batch([p[2] for p in place]),
            "instrument_model": by_batch([f"Simulated Sequencer {b % 2 + 1}" for b in range(n_batches)]),
            "library_source": constant("transcriptomic single cell" if single else "transcriptomic"),
            "organism_ch1": constant("Homo sapiens"),
            "platform_id": by_batch([f"GPL9000{b % 2 + 1}" for b in range(n_batches)]),
            "singlecellprobability": probability.astype(np.float32),
            "submission_date": by_batch([f"Jan {b % 28 + 1:02d} 2025" for b in range(n_batches)]),
            "taxid_ch1": constant("9606"),
            "batch": pd.Categorical.from_codes(batches, categories=[f"batch_{b}" for b in range(n_batches)]),
            "leiden": pd.Categorical.from_codes(labels, categories=label_names),
        },
        index=pd.Index([f"{stem}_{i}" for i in range(n_obs)]),
    )


def make_switches(world: World, var: pd.DataFrame, usage: np.ndarray) -> pd.DataFrame:
    """Two rows a switch, one for the isoform that loses and one for the one that gains, with the change in usage."""
    rows = []
    for gene, loses, gains, label in world.switches:
        others = np.arange(usage.shape[1]) != label  # a gene switches in one label at most
        gene_id = var[GENE_ID].iat[int(world.starts[gene])]
        for transcript in (loses, gains):
            delta = float(usage[transcript, label] - usage[transcript, others].mean())
            rows.append((gene_id, var.index[transcript], str(label), delta))
    table = pd.DataFrame(rows, columns=[GENE_ID, "transcript", "label", "delta"])
    table.index = table.index.astype(str)  # h5ad keeps string indices only
    return table.astype({"delta": float})
