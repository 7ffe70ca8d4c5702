"""The starting project's grid of trainings: bulk, single cell and transfer, unguided and guided, and one class alone."""

from isd.experiment._config import Arm, Config, Data, Evaluation, SimulatedData, read_config
from isd.experiment._run import run
from isd.experiment._table import summarize

__all__ = ["Arm", "Config", "Data", "Evaluation", "SimulatedData", "read_config", "run", "summarize"]
