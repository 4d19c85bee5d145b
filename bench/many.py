"""What the tools take where there are many experiments and runs: show, sync, compare and ui.

    python -m bench.many --experiments 200 --runs 2000

makes the experiments of digits by a sweep in a fresh clone, one epoch each, and times the tools; then copies runs in
its store until there are as many as --runs, and times them again.
"""

import os
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import mlflow
from mlflow.entities import Metric, Param
from tqdm import tqdm

from bench.clones import finish, fresh, start, statuses
from stages.base import cli
from stages.base.instructions import cpu_model
from stages.tracking.result import WEIGHTS_TAG

PORT = 5317
NAME = "many"  # of the sweep


def main() -> None:
    parser = cli.parser("bench.many", __doc__)
    parser.add_argument("--experiments", type=int, default=200)
    parser.add_argument("--runs", type=int, default=2000)
    arguments = parser.parse_args()
    print(f"{cpu_model()}, {len(os.sched_getaffinity(0))} cores\n")
    with fresh() as clone:
        finish(start(clone, "dvc", "repro"))
        values = ["train.epochs=1", f"train.seed=range({arguments.experiments})"]
        options = [word for value in values for word in ("-S", value)]
        finish(start(clone, "python", "-m", "tools.sweep", "--jobs", "2", "--name", NAME, *options))
        found = statuses(clone)
        assert len(found) == arguments.experiments + 1, len(found)
        few = times(clone)
        copy_runs(clone, arguments.runs)
        many = times(clone)
    print(f"| | {arguments.experiments} experiments, s | with {arguments.runs:,} runs in the store, s |\n|---|---|---|")
    for name, took in few.items():
        print(f"| {name} | {took:.1f} | {many[name]:.1f} |")


def times(clone: Path) -> dict[str, float]:
    """Return the seconds that each tool takes, `ui` until its page is there."""
    commands = {
        "tools.show, which reads each commit once": ["tools.show"],
        "tools.show": ["tools.show"],
        "tools.sync, which reads each commit once": ["tools.sync"],
        "tools.sync": ["tools.sync"],
        "tools.compare best X": ["tools.compare", "best", f"{NAME}-s0"],
    }
    took = {}
    for name, command in commands.items():
        started = time.perf_counter()
        finish(start(clone, "python", "-m", *command))
        took[name] = time.perf_counter() - started
    started = time.perf_counter()
    process = start(clone, "python", "-m", "tools.ui", "--port", str(PORT))
    try:
        while not _answers():
            assert process.poll() is None, finish(process)
            time.sleep(0.05)
        took["tools.ui"] = time.perf_counter() - started
    finally:
        process.terminate()
        process.communicate()
    return took


def _answers() -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{PORT}/", timeout=10) as page:
            return bool(page.status == 200)
    except (URLError, OSError):
        return False


def copy_runs(clone: Path, n_runs: int) -> None:
    """Copy runs of the clone's store, each as one of other weights that are worse, until there are so many.

    Copies have no model: `best`, whose weights are read, should be none of them.
    """
    client = mlflow.MlflowClient(f"sqlite:///{clone}/mlflow.db")
    experiment = client.get_experiment_by_name("repronet")
    assert experiment is not None
    runs = list(client.search_runs([experiment.experiment_id], max_results=n_runs))
    with tqdm(total=n_runs - len(runs), unit=" runs") as progress:
        for number in range(n_runs - len(runs)):
            run = runs[number % len(runs)]
            tags = run.data.tags | {WEIGHTS_TAG: f"{number:064x}", "mlflow.runName": f"copy-{number}"}
            copy = client.create_run(experiment.experiment_id, run.info.start_time, tags)
            values = run.data.metrics | {"best/valid_accuracy": 0.9 * run.data.metrics["best/valid_accuracy"]}
            metrics = [Metric(name, value, run.info.end_time, 0) for name, value in values.items()]
            params = [Param(name, value) for name, value in run.data.params.items()]
            client.log_batch(copy.info.run_id, metrics, params)
            assert run.inputs is not None
            client.log_inputs(copy.info.run_id, run.inputs.dataset_inputs)
            client.set_terminated(copy.info.run_id, end_time=run.info.end_time)
            progress.update()


if __name__ == "__main__":
    cli.run(main)
