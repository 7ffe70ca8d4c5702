"""The command ``isodiff``: the public calls of :mod:`isd`, for a shell and for batch jobs."""

# every command's file is imported, so that it is registered
from isd.cli._app import _last_line, app, demo, evaluate, main
from isd.cli._experiment import experiment
from isd.cli._files import info, prepare
from isd.cli._generate import generate
from isd.cli._infer import infer
from isd.cli._train import train

__all__ = ["app", "demo", "evaluate", "experiment", "generate", "infer", "info", "main", "prepare", "train"]
