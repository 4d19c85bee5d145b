"""The table of DVC's experiments: what has no result has no figures, and no place in the ranking."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import Project
from tools.show import main, table

HEAD = "Experiment,rev,typ,Created,State,Executor,accuracy,loss,never_predicted,valid_accuracy,train.seed,train.lr\n"
CSV = f"""{HEAD},workspace,baseline,,,,0.98,0.07,0,0.97,0,
,master,baseline,2026-11-26T06:34:58,,,0.98,0.07,0,0.97,0,
goes-on,3b918fd,branch_commit,,Running,Tempdir,0.98,0.07,0,0.97,1,
worse,d9211d8,branch_commit,2026-11-26T06:42:45,Success,Dvc-task,0.99,0.28,0,0.89,0,0.1
better,b443843,branch_commit,2026-11-26T06:36:35,,,0.96,0.1,0,0.9,0,0.2
waits,d3b6470,branch_commit,2026-11-26T06:42:50,Queued,Dvc-task,,,,,0,0.3
broken,99bcb91,branch_base,2026-11-26T06:41:48,Failed,,0.98,0.07,0,0.97,0,1e+30
"""


def test_results_are_ranked_by_validation_and_the_rest_has_no_figures() -> None:
    shown = table(CSV)
    figures = ["valid_accuracy", "accuracy", "loss"]
    assert list(shown) == ["experiment", "created", "state", *figures, "train.seed", "train.lr"]
    assert shown["experiment"].tolist() == ["workspace", "master", "better", "worse", "goes-on", "waits", "broken"]
    assert shown["state"].tolist() == [*"----", "Running", "Queued", "Failed"]
    assert shown[figures].iloc[2].tolist() == ["0.9", "0.96", "0.1"]
    assert shown[figures].iloc[4:].to_numpy().tolist() == [["-"] * 3] * 3
    assert shown["train.lr"].tolist() == ["-", "-", "0.2", "0.1", "-", "0.3", "1e+30"]
    assert shown["created"].tolist()[:2] == ["-", "11-26 06:34"]


def test_metrics_that_say_what_others_say_are_left_out() -> None:
    with_more = "\n".join(
        f"{line},{more}" for line, more in zip(CSV.splitlines(), ["kappa,own", *("0.8,1", "0.7,2") * 4], strict=False)
    )
    assert list(table(with_more))[6:] == ["train.seed", "train.lr", "own"]


def test_without_a_queue_or_results() -> None:
    shown = table("Experiment,rev,typ,Created,train.seed\n,workspace,baseline,,0\none,abc,branch_base,,1\n")
    assert shown.to_numpy().tolist() == [["workspace", *"-----", "0"], ["one", *"-----", "1"]]


@pytest.mark.slow
def test_what_fails_in_the_queue_waits_in_it_or_runs(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show = ["make", "-o", ".venv/installed", f"BIN={Path(sys.executable).parent}", "show"]
    project("dvc", "exp", "run", "--queue", "--name", "broken", "-S", "train.optimizer.lr=1e30")
    project("dvc", "queue", "start")
    deadline = time.monotonic() + 200
    while "Failed" not in project("dvc", "queue", "status"):
        assert time.monotonic() < deadline, project("dvc", "queue", "status")
        time.sleep(1)
    project.end_workers()
    project("dvc", "exp", "run", "--queue", "--name", "waits", "-S", "train.seed=1")
    running = project.start("dvc", "exp", "run", "--temp", "--name", "goes-on", "-S", "train.epochs=100000")
    try:
        while "Running" not in (shown := project(*show)):
            assert time.monotonic() < deadline, shown
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        running.communicate(timeout=60)
    accuracy = str(json.loads((project.root / "metrics/evaluate.json").read_text())["accuracy"])
    rows = {line.split()[0]: line for line in shown.splitlines()}
    assert accuracy in rows["workspace"]
    for name, state in {"goes-on": "Running", "waits": "Queued", "broken": "Failed"}.items():
        assert state in rows[name]
        assert accuracy not in rows[name]
    assert "why broken failed: dvc queue logs broken" in shown

    monkeypatch.chdir(project.root)
    monkeypatch.setattr("sys.argv", ["tools.show"])
    monkeypatch.setattr("tools.show.PATIENCE", 0)
    main()
    output = capsys.readouterr()
    assert output.out.split()[:2] == ["experiment", "created"]
    assert output.err == "DVC reads the experiments that are new to it, 0.1 s each, and remembers them\n"
