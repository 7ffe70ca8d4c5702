"""The command line, run as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from typer.testing import CliRunner

import isd
from isd.cli import _last_line, app

OUTPUTS = ("model", "generated.h5ad", "metrics.csv", "umap.png", "roc.png")
QUICK = ["--max-steps", "30", "--n-jobs", "1", "--no-progress"]


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.setenv("COLUMNS", "200")
    # the command sets the seed for its process; a test's process lives on
    monkeypatch.setattr(isd.settings, "seed", isd.settings.seed)
    return CliRunner()


@pytest.fixture
def counts_file(tmp_path: Path) -> Path:
    """60 cells x 40 transcripts in X, labels in obs["kind"], nothing else."""
    rng = np.random.default_rng(0)
    kind = np.repeat(["b", "a", "c"], 20)
    mean = rng.gamma(1.0, 3.0, size=(3, 40))[np.repeat([0, 1, 2], 20)]
    x = sparse.csr_matrix(rng.negative_binomial(2, 2 / (2 + mean)).astype(np.float32))
    obs = pd.DataFrame({"kind": pd.Categorical(kind)}, index=[f"cell{i}" for i in range(60)])
    var = pd.DataFrame({"gene_id": [f"g{i // 2}" for i in range(40)]}, index=[f"t{i}" for i in range(40)])
    path = tmp_path / "counts.h5ad"
    ad.AnnData(x, obs=obs, var=var).write_h5ad(path)
    return path


def edited(path: Path, change) -> Path:
    adata = ad.read_h5ad(path)
    change(adata)
    adata.write_h5ad(path)
    return path


def test_version_and_help(runner: CliRunner) -> None:
    assert runner.invoke(app, ["--version"]).stdout.strip() == f"isodiff {isd.__version__}"
    text = runner.invoke(app, ["demo", "--help"]).stdout
    for option in ("--data", "--labels-key", "--layer", "--out", "--max-minutes", "--seed"):
        assert option in text
    text = runner.invoke(app, ["evaluate", "--help"]).stdout
    for option in ("--labels-key", "--layer", "--report", "--out", "--reference", "--metric", "--baselines", "--seed"):
        assert option in text


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from isd.cli import _last_line, app; "
        "assert CliRunner().invoke(app, ['demo', '--help']).exit_code == 0; "
        "print([m for m in ('torch', 'scvi', 'scanpy', 'anndata', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [["--n-obs", "3"], ["--max-minutes", "0"], ["--data", "absent.h5ad"], ["--seed", "x"], ["--no-such-option"]],
)
def test_wrong_usage_exits_with_2(runner: CliRunner, tmp_path: Path, arguments: list[str]) -> None:
    result = runner.invoke(app, ["demo", "--out", str(tmp_path / "out"), *arguments])
    assert result.exit_code == 2
    assert not (tmp_path / "out").exists()


def assert_one_line_error(result, *parts: str) -> None:
    assert result.exit_code == 1, result.output
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "Traceback" not in result.output
    for part in parts:
        assert part in errors[0]


def test_not_an_h5ad_file(runner: CliRunner, tmp_path: Path) -> None:
    path = tmp_path / "table.h5ad"
    path.write_text("not HDF5")
    result = runner.invoke(app, ["demo", "--data", str(path), "--out", str(tmp_path / "out")])
    assert_one_line_error(result, "table.h5ad", "h5ad file")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [(["--labels-key", "nope"], ["nope", "kind"]), (["--layer", "raw"], ["raw", "none"])],
)
def test_names_that_are_not_there(runner: CliRunner, counts_file: Path, tmp_path: Path, arguments, parts) -> None:
    result = runner.invoke(app, ["demo", "--data", str(counts_file), "--out", str(tmp_path / "out"), *arguments])
    assert_one_line_error(result, *parts)
    assert not (tmp_path / "out").exists()


def test_debug_shows_the_traceback(runner: CliRunner, counts_file: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    result = runner.invoke(app, ["demo", "--data", str(counts_file), "--labels-key", "nope", "--out", out, "--debug"])
    assert isinstance(result.exception, KeyError)


def test_values_that_are_no_counts(runner: CliRunner, counts_file: Path, tmp_path: Path) -> None:
    def negative(adata: ad.AnnData) -> None:
        adata.X.data[0] = -1

    path = edited(counts_file, negative)
    result = runner.invoke(app, ["demo", "--data", str(path), "--labels-key", "kind", "--out", str(tmp_path / "out")])
    assert_one_line_error(result, "negative")


def table_of(features: float, pcs: float, note: str = "") -> pd.DataFrame:
    rows = [
        {
            "metric": "random_forest_auc",
            "space": "features",
            "group": "all",
            "value": features,
            "floor": 0.5,
            "note": note,
        },
        {"metric": "random_forest_auc", "space": "pcs", "group": "all", "value": pcs, "floor": 0.49, "note": note},
        {"metric": "random_forest_auc", "space": "pcs", "group": "0", "value": 0.9, "floor": 0.7, "note": ""},
        {"metric": "mmd", "space": "pcs", "group": "all", "value": 0.1, "floor": 0.2, "note": note},
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("table", "parts"),
    [
        (table_of(0.612, 0.55), ["0.61 on features (floor 0.50)", "0.55 on PCs (floor 0.49)"]),
        (table_of(np.nan, np.nan, "n too small"), ["on features: n too small", "on PCs: n too small"]),
        (table_of(0.6, 0.55).iloc[2:], ["on features: n too small", "on PCs: n too small"]),
    ],
)
def test_the_last_line_gives_the_auc_beside_its_floor(table: pd.DataFrame, parts: list[str]) -> None:
    line = _last_line(ad.AnnData(np.zeros((7, 3))), table, Path("out"), 90.0)
    assert "\n" not in line
    for part in [*parts, "7 cells x 3 transcripts", "1.5 min", "generated.h5ad"]:
        assert part in line


def check_outputs(result, out: Path) -> tuple[ad.AnnData, pd.DataFrame]:
    assert result.exit_code == 0, (result.output, result.exception)
    assert all((out / name).exists() for name in OUTPUTS)
    assert all((out / name).read_bytes()[:4] == b"\x89PNG" for name in ("umap.png", "roc.png"))
    last = result.stdout.rstrip("\n").splitlines()[-1]
    fake = ad.read_h5ad(out / "generated.h5ad")
    assert f"Made {fake.n_obs:,} cells x {fake.n_vars:,} transcripts" in last
    assert "AUC" in last
    return fake, pd.read_csv(out / "metrics.csv")


def test_demo_on_simulated_cells(runner: CliRunner, tmp_path: Path) -> None:
    out = tmp_path / "out"
    size = ["--n-obs", "150", "--n-vars", "80", "--n-labels", "2"]
    result = runner.invoke(app, ["demo", "--out", str(out), *size, *QUICK])
    fake, table = check_outputs(result, out)
    real = isd.model.LatentDiffusion.load(out / "model")
    assert fake.n_vars == 80
    assert isd.tl.generate(real, n_obs=7, seed=1).shape == (7, 80)
    forest = table[(table["metric"] == "random_forest_auc") & (table["group"] == "all")]
    row = forest[forest["space"] == "pcs"].iloc[0]
    assert f"{row['value']:.2f} on PCs (floor {row['floor']:.2f})" in result.stdout


def test_demo_on_a_file(runner: CliRunner, counts_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    # what an earlier run left is replaced
    (out / "model").mkdir(parents=True)
    (out / "metrics.csv").write_text("old")
    arguments = ["--data", str(counts_file), "--labels-key", "kind", "--out", str(out), *QUICK]
    result = runner.invoke(app, ["demo", *arguments])
    fake, table = check_outputs(result, out)
    assert list(fake.obs["kind"].cat.categories) == ["a", "b", "c"]
    # 20 cells a label: none of them can be judged by itself, and the table says so
    labels = table[table["group"] != "all"]
    assert set(labels["note"].str.contains("n too small")) == {True}


def test_demo_on_estimated_counts_of_few_samples_without_labels(
    runner: CliRunner, counts_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bulk.h5ad"
    bulk = ad.read_h5ad(counts_file)[:24].copy()
    bulk.X = bulk.X * 100.25
    del bulk.obs["kind"]
    bulk.write_h5ad(path)
    out = tmp_path / "out"
    result = runner.invoke(app, ["demo", "--data", str(path), "--out", str(out), *QUICK])
    fake, _ = check_outputs(result, out)
    assert "leiden" in fake.obs
    assert "n too small" in result.stdout
    assert result.stderr.count("warning:") == 2, result.stderr
    assert "rounded" in result.stderr and "few for a diffusion model" in result.stderr


@pytest.fixture
def real_and_fake(counts_file: Path, tmp_path: Path) -> tuple[str, str]:
    """Cells with a split and generated ones of the same distribution, on disk."""
    first = ad.read_h5ad(counts_file)
    mean = first.to_df().groupby(first.obs["kind"].to_numpy()).mean().loc[first.obs["kind"]].to_numpy()
    samples = []
    for seed in range(3):
        samples.append(first.copy())
        samples[-1].X = sparse.csr_matrix(np.random.default_rng(seed).poisson(mean).astype(np.float32))
    real, fake = ad.concat(samples[:2], index_unique="-", merge="same"), samples[2]
    fake.obs_names = [f"generated_{i}" for i in range(60)]
    real.obs["kind"] = pd.Categorical(real.obs["kind"])
    real.obs["isd_split"] = ["train"] * 60 + ["test"] * 60
    paths = tmp_path / "real.h5ad", tmp_path / "fake.h5ad"
    real.write_h5ad(paths[0])
    fake.write_h5ad(paths[1])
    return str(paths[0]), str(paths[1])


QUICK_METRICS = ["--metric", "random_forest_auc", "--metric", "coverage", "--n-boot", "20", "--n-jobs", "1"]


def test_evaluate_leaves_a_table_and_a_report(runner: CliRunner, real_and_fake, tmp_path: Path, monkeypatch) -> None:
    import isd.tl._embed as embedding

    monkeypatch.setattr(embedding, "_umap", lambda real, fake, **_: [real[:, :2], fake[:, :2]])
    out, page = tmp_path / "new" / "metrics.csv", tmp_path / "new" / "report.html"
    files = ["--labels-key", "kind", "--out", str(out), "--report", str(page)]
    result = runner.invoke(app, ["evaluate", *real_and_fake, *files, *QUICK_METRICS, "--no-progress"])
    assert result.exit_code == 0, (result.output, result.exception)
    table = pd.read_csv(out)
    assert set(table["metric"]) == {"random_forest_auc", "coverage"}
    assert set(table["group"]) == {"all", "a", "b", "c"}
    text = page.read_text()
    row = table.query("metric == 'random_forest_auc' and space == 'pcs' and group == 'all'").iloc[0]
    assert f"random forest AUC, PCs: {row['value']:.3g}" in text
    last = result.stdout.rstrip("\n").splitlines()[-1]
    assert f"{row['value']:.2f} on PCs (floor {row['floor']:.2f})" in last
    assert str(page) in last and str(out) in last


def test_evaluate_without_files_prints_the_table(runner: CliRunner, real_and_fake) -> None:
    result = runner.invoke(app, ["evaluate", *real_and_fake, "--no-labels", *QUICK_METRICS])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "random_forest_auc" in result.stderr and "Judged 60 generated cells" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--labels-key", "nope"], ["nope", "kind", "real.h5ad"]),
        (["--layer", "raw"], ["raw", "none"]),
        (["--metric", "nope"], ["nope", "random_forest_auc"]),
        (["--reference", "validation"], ["validation", "isd.pp.split"]),
    ],
)
def test_evaluate_says_what_is_wrong_in_one_line(
    runner: CliRunner, real_and_fake, tmp_path: Path, arguments, parts
) -> None:
    page = tmp_path / "report.html"
    result = runner.invoke(app, ["evaluate", *real_and_fake, "--report", str(page), *arguments])
    assert_one_line_error(result, *parts)
    assert not page.exists()


@pytest.mark.parametrize(
    ("arguments", "metrics"),
    [
        ([], None),
        (["--metric", "seed"], "seed"),
        (["--metric", "all"], "all"),
        (["--metric", "mmd", "--metric", "lisi"], ["mmd", "lisi"]),
    ],
)
def test_evaluate_passes_metrics_on(runner: CliRunner, real_and_fake, monkeypatch, arguments, metrics) -> None:
    def told(*_, **options):
        raise ValueError(f"metrics: {options['metrics']!r}")

    monkeypatch.setattr(isd.metrics, "evaluate", told)
    result = runner.invoke(app, ["evaluate", *real_and_fake, *arguments])
    assert_one_line_error(result, f"metrics: {metrics!r}")


def test_evaluate_wrong_usage(runner: CliRunner, real_and_fake, tmp_path: Path) -> None:
    for arguments in (
        [real_and_fake[0]],
        [*real_and_fake, "--reference", "train"],
        [*real_and_fake, "--out", str(tmp_path)],
    ):
        assert runner.invoke(app, ["evaluate", *arguments]).exit_code == 2


def test_summary_is_whole_within_80_columns(monkeypatch, capsys):
    from rich.console import Console

    from isd.cli import _app as cli

    monkeypatch.setattr(cli, "_messages", Console(width=80, soft_wrap=True, highlight=False))
    names = ["random_forest_auc", "within_gene_correlation", "kl_gaussian_diagonal", "coverage"]
    spaces, verdicts = ["features", "usage", "pcs", "pcs"], ["indistinguishable", "close", "far", "close"]
    table = pd.DataFrame({"metric": names, "space": spaces, "verdict": verdicts, "group": "all", "note": ""})
    table["value"], table["floor"] = -0.00123456, -1.23456e-05
    table.loc[0, "note"] = "a long note"
    cli._summary(table, everything=False)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for word in (
        "random_forest_auc",
        "within_gene_correlation",
        "kl_gaussian_diagonal",
        "indistinguishable",
        "a long note",
    ):
        assert word in text
    assert "coverage" not in text  # neither a headline nor far
    assert "1 indistinguishable, 2 close, 1 far" in text
    cli._summary(table, everything=True)
    assert "coverage" in capsys.readouterr().out
