"""Show DVC's experiments in a table, the best by validation first: what differs between them, and what came of it.

    python -m tools.show

What waits, runs or has failed comes last, without figures: `dvc exp show` shows, and ranks, some of them with those of
the commit that they started from.
"""

import io
import subprocess
import sys
from threading import Timer

import pandas as pd

from stages.base import cli
from stages.base.errors import InputError
from stages.base.text import say, warn

FILES = "(data|metrics|models|stages)/"  # columns that hold digests
OWN = ["Experiment", "rev", "typ", "Created", "parent", "State", "Executor"]  # columns besides params and metrics
FIGURES = ["valid_accuracy", "accuracy", "loss"]  # metrics that are shown first, and always
# Those that say nearly what another says; metrics/evaluate.json and MLflow have them.
LEFT_OUT = ["accuracy_untrained", "auroc", "average_precision", "balanced_accuracy", "brier", "ece_at_temperature"]
LEFT_OUT += ["kappa", "temperature", "top5"]

PATIENCE = 3.0  # seconds, after which it says what takes so long


def main() -> None:
    cli.parser("tools.show", __doc__).parse_args()
    command = [sys.executable, "-m", "dvc", "exp", "show", "--csv", "--drop", FILES]
    word = Timer(PATIENCE, warn, ["DVC reads the experiments that are new to it, 0.1 s each, and remembers them"])
    word.start()
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        word.cancel()
    if done.returncode:
        raise InputError(f"dvc exp show failed: {done.stderr.strip()}")
    shown = table(done.stdout)
    say(shown.to_string(index=False))
    for name in shown["experiment"][shown["state"] == "Failed"]:
        say(f"why {name} failed: dvc queue logs {name}")


def table(csv: str) -> pd.DataFrame:
    """Return the table that is shown of what `dvc exp show --csv` prints, with - for what is not there."""
    rows = pd.read_csv(io.StringIO(csv), dtype=str, keep_default_na=False)
    rows = rows.assign(**{name: "" for name in ["State", *FIGURES] if name not in rows}).replace("Success", "")
    has_result = rows["State"] == ""
    params = [name for name in map(str, rows) if "." in name]
    metrics = [name for name in map(str, rows) if name not in [*OWN, *params]]
    rows.loc[~has_result, metrics] = ""
    shown = [name for name in params if rows[name].nunique() > 1]
    shown += [name for name in metrics if name not in [*FIGURES, *LEFT_OUT] and rows[has_result][name].nunique() > 1]
    rows = rows.assign(
        experiment=rows["Experiment"].where(rows["Experiment"] != "", rows["rev"]),
        created=rows["Created"].str[5:16].str.replace("T", " "),
        state=rows["State"],
        group=1 * (rows["typ"] != "baseline") + ~has_result,  # the workspace and the commit, results, the rest
        rank=pd.to_numeric(rows["valid_accuracy"]),
    ).sort_values(["group", "rank"], ascending=[True, False], kind="stable")
    return rows[["experiment", "created", "state", *FIGURES, *shown]].replace("", "-")


if __name__ == "__main__":
    cli.run(main)
