"""The experiment of DVC that this process is part of, by what its environment says."""

from collections.abc import Mapping
from pathlib import Path

EXPERIMENT_NAME = "DVC_EXP_NAME"
SWEEP = "REPRONET_SWEEP"  # names the sweep of which it is part


def is_experiment(environment: Mapping[str, str]) -> bool:
    """Return whether there is one: `dvc repro`, and a stage by hand, are none."""
    return EXPERIMENT_NAME in environment


def main_repository(environment: Mapping[str, str]) -> Path:
    """Return the main repository: DVC runs `--temp` and its queue in other directories, and deletes those."""
    return Path(environment.get("DVC_ROOT", ".")).resolve()


def home(environment: Mapping[str, str]) -> Path:
    """Return the folder of what is no output but outlives a process, such as locks."""
    return main_repository(environment) / (environment.get("REPRONET_HOME") or ".repronet")
