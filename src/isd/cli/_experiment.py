"""The command that runs the starting project's grid of trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

import isd
from isd.cli._app import app
from isd.cli._shared import Debug, Progress, _messages, _one_line


@app.command()
def experiment(
    config: Annotated[str, typer.Argument(help="A YAML file, or one that comes with isodiff: smoke, hour, original.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for what is made; by default the config's.", file_okay=False)
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="A seed (repeat for several); by default the config's.")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the settings and stop.")] = False,
    progress: Progress = None,
    debug: Debug = False,
) -> None:
    """Train and judge the starting project's grid: bulk, single cell, transfer, unguided and guided, and one class alone.

    Run again after an interruption, it goes on where it stopped.
    """
    import matplotlib

    matplotlib.use("Agg")
    with _one_line(debug, progress):
        settings = isd.experiment.read_config(config)
        if show:
            import yaml

            typer.echo(yaml.safe_dump(settings.to_dict(), sort_keys=False).rstrip())
            return
        folder = Path(settings.out if out is None else out)
        results = isd.experiment.run(settings, out=folder, seeds=seed, progress=progress)
        shown = isd.experiment.summarize(results, ["random_forest_auc", "seed_rf_auc"])
        _messages.print(escape(shown.round(3).to_string(na_rep="")))
        n_cells = results.groupby(["seed", "arm", "cell"]).ngroups
        typer.echo(
            f"{n_cells} cells of the grid: {folder / 'results.csv'}, table.md beside it, pictures in the folders of the cells."
        )
