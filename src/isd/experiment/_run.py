"""The grid, cell by cell: what is done is not done again."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from anndata import AnnData

from isd import tl
from isd._progress import track
from isd.experiment._config import Arm, Config, read_config
from isd.experiment._data import check_guidance, load_data
from isd.experiment._files import write_folder, write_text
from isd.experiment._judge import draw, judge
from isd.experiment._table import markdown, summarize
from isd.experiment._train import Trainer

_LOG = logging.getLogger("isd")
#: Names of the cells of the grid, as the starting project's table has them.
_NAMES = {"bulk": "bulk", "single_cell": "sc", "transfer": "transfer"}
ONE_CLASS = "one class"
_KEYS = ("seed", "arm", "cell", "training_seconds")


@dataclass(frozen=True)
class GridCell:
    """A training and a way of generating from it."""

    seed: int
    arm: str
    row: str
    guided: bool

    @property
    def name(self) -> str:
        """As in :func:`isd.datasets.published_results`: ``"sc NG"``, ``"transfer G"``, ``"one class"``."""
        return ONE_CLASS if self.row == "one_class" else f"{_NAMES[self.row]} {'G' if self.guided else 'NG'}"

    def folder(self, out: Path) -> Path:
        """Where its results are."""
        return out / f"seed-{self.seed}" / self.arm / self.name.replace(" ", "_")


def run(
    config: str | Path | dict[str, Any] | Config,
    *,
    out: str | Path | None = None,
    seeds: list[int] | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Train and judge the starting project's grid: bulk, single cell, transfer, each unguided and guided, and one class alone.

    Every cell of the grid, once finished, stands in a folder of its own, and is not run again: an interrupted experiment goes on
    where it stopped, from the models that are trained. More seeds may be asked for later.

    Parameters
    ----------
    config
        YAML file, name of a shipped config (``"smoke"``, ``"hour"``, ``"original"``), dict or :class:`Config`.
    out
        Folder for everything that is made; ``None`` takes the config's.
    seeds
        In place of the config's.
    progress
        Progress bars; by default as ``isd.settings.progress`` says.

    Returns
    -------
    The rows of :func:`isd.metrics.evaluate` of all cells of the grid, with ``seed``, ``arm``, ``cell`` (named as in
    :func:`isd.datasets.published_results`) and ``training_seconds`` before them. :func:`summarize` makes it a table. Written to the
    folder: ``results.csv`` (the same), ``table.md``, ``config.json``, and by seed, arm and cell ``metrics.csv``, ``umap.png``,
    ``roc.png`` and ``generated.h5ad``; models, and what guidance was chosen by (``ROW_guidance.csv``), in ``seed-*/ARM/models``.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    KeyError
        If labels or genes are not in the data.
    ValueError
        If a key of the config is unknown or a value cannot be, or the folder holds another experiment.

    Notes
    -----
    *Unguided* cells of the default are drawn conditional on labels in the proportions of the training cells, *guided* ones with
    classifier-free guidance, as strong as :func:`isd.tl.tune_guidance` finds right on validation cells, which may be not at all. Unguided cells of the published preset have no labels, as they had none; its guided ones follow a
    classifier. *Transfer* of the default is :meth:`isd.model.VAE.from_pretrained` with bulk as the reference; that of the published
    preset moves the denoiser's weights between two autoencoders that were trained apart, as the starting project did.
    ``"sc G cluster 0"`` of the published table is the group of that name in ``"sc G"``. Cells are compared with held-out ones.

    Examples
    --------
    >>> import isd
    >>> table = isd.experiment.run("smoke")  # doctest: +SKIP
    >>> isd.experiment.summarize(table)  # doctest: +SKIP
    """
    config = read_config(config)
    folder = Path(config.out if out is None else out)
    seeds = list(config.seeds if seeds is None else seeds)
    grid = [cell for seed in seeds for cell in _grid(config, seed)]
    _check_folder(folder, config)
    missing = [cell for cell in grid if not cell.folder(folder).exists()]
    data: dict[int, dict[str, AnnData]] = {}
    for cell in track(missing, "Experiment", progress=progress):
        if cell.seed not in data:
            data = {cell.seed: load_data(config, cell.seed)}  # of one seed at a time
            check_guidance(config, data[cell.seed])
        _LOG.info("experiment: seed %d, %s, %s", cell.seed, cell.arm, cell.name)
        _run_cell(cell, config, data[cell.seed], folder)
        _write_results(folder, grid)
    return _write_results(folder, grid)


def _grid(config: Config, seed: int) -> Iterator[GridCell]:
    for arm in config.arms:
        for row in config.rows:
            for guided in ("unguided", "guided"):
                if guided in config.guidance:
                    yield GridCell(seed, arm, row, guided == "guided")
        if config.one_class is not None:
            yield GridCell(seed, arm, "one_class", False)


def _check_folder(folder: Path, config: Config) -> None:
    """The folder's experiment is this one, but for its place and its seeds."""
    mine = json.loads(json.dumps(config.to_dict()))
    for name in ("out", "seeds"):
        mine.pop(name)
    file = folder / "config.json"
    if not file.exists():
        write_text(file, json.dumps(mine, indent=1))
        return
    other = json.loads(file.read_text(encoding="utf-8"))
    different = [key for key in mine if other.get(key) != mine[key]]
    if different:
        raise ValueError(
            f"{folder} holds an experiment with other settings ({', '.join(different)}); choose another folder (out), or delete it."
        )


def _run_cell(cell: GridCell, config: Config, data: dict[str, AnnData], out: Path) -> None:
    arm: Arm = config.arms[cell.arm]
    models = out / f"seed-{cell.seed}" / cell.arm / "models"
    reference = None if arm.same_minutes_as is None else models.parents[1] / arm.same_minutes_as / "models"
    trainer = Trainer(config, arm, data, cell.seed, models, reference)
    real = data[cell.row]
    model = trainer.model(cell.row, progress=False)
    classifier = trainer.classifier(cell.row, model, progress=False) if cell.guided else None
    n_obs = config.n_obs or int((real.obs["isd_split"] == "test").sum())
    options = dict(arm.guided if cell.guided else arm.unguided)
    if cell.guided and arm.tuned:
        options["guidance_scale"] = trainer.guidance_scale(cell.row, model, progress=False)
    if classifier is not None:
        options["classifier"] = classifier
    if arm.preset == "published" and not cell.guided:
        options["labels"] = None
    fake = tl.generate(model, n_obs=n_obs, seed=cell.seed, progress=False, **options)
    labels_key = None if cell.row == "one_class" else config.data.labels_key
    with_class = config.one_class if cell.row == "single_cell" and cell.guided else None
    table = judge(real, fake, config, labels_key=labels_key, with_class=with_class, seed=cell.seed)
    seconds = json.loads((models / f"{cell.row}.json").read_text())["seconds"]
    for position, (key, value) in enumerate(
        zip(_KEYS, (cell.seed, cell.arm, cell.name, round(seconds, 1)), strict=True)
    ):
        table.insert(position, key, value)

    def fill(folder: Path) -> None:
        table.to_csv(folder / "metrics.csv", index=False)
        if config.evaluation.pictures:
            draw(real, fake, folder, labels_key=labels_key, seed=cell.seed)
        if config.keep_generated:
            fake.write_h5ad(folder / "generated.h5ad")

    write_folder(cell.folder(out), fill)


def _write_results(folder: Path, grid: list[GridCell]) -> pd.DataFrame:
    """All finished cells as one table."""
    # labels such as "0" are text
    types = {"group": str, "cell": str, "arm": str}
    parts = [
        pd.read_csv(file, dtype=types) for cell in grid if (file := cell.folder(folder) / "metrics.csv").exists()
    ]  # fmt: skip
    if not parts:
        return pd.DataFrame(columns=list(_KEYS))
    results = pd.concat(parts, ignore_index=True)
    write_text(folder / "results.csv", results.to_csv(index=False))
    write_text(folder / "table.md", markdown(summarize(results)))
    return results
