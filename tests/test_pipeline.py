"""The whole pipeline by DVC, in a copy of the project, with a real store: what runs when, and what it leaves."""

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from stages.nets.weights import load_weights
from tests.conftest import ROOT, YAML_READER, Project, write_image


def stages_run(output: str) -> list[str]:
    return [line.split("'")[1] for line in output.splitlines() if line.startswith("Running stage")]


@pytest.fixture(scope="module")
def reproduced(make_project: Callable[[], Project]) -> Project:
    """A copy in which the pipeline has run, and been committed."""
    project = make_project()
    (project.root / "dvc.lock").unlink()
    assert stages_run(project("dvc", "repro")) == ["prepare", "train", "evaluate"]
    project("git", "add", "-A")
    project("git", "commit", "--allow-empty", "-q", "-m", "results")
    return project


def test_one_run_and_a_clean_tree(reproduced: Project) -> None:
    assert reproduced("git", "status", "--porcelain") == ""
    values = json.loads((reproduced.root / "metrics/evaluate.json").read_text())
    assert values["accuracy"] >= 0.96
    run = reproduced.runs()[-1]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/accuracy"] == values["accuracy"]
    assert run.data.tags["git.dirty"] == "false"
    assert "dvc.exp_name" not in run.data.tags


def test_a_second_repro_runs_nothing(reproduced: Project) -> None:
    assert stages_run(reproduced("dvc", "repro")) == []


def test_two_copies_give_the_same_lock_and_metrics(reproduced: Project, make_project: Callable[[], Project]) -> None:
    other = make_project()
    (other.root / "dvc.lock").unlink()
    # The store of one copy works, that of the other does not.
    assert (
        other("dvc", "repro", MLFLOW_TRACKING_URI="nonsense://x").count("warning: MLflow at nonsense://x failed") == 2
    )
    for name in ("dvc.lock", "metrics/evaluate.json", "metrics/train.csv"):
        assert (other.root / name).read_bytes() == (reproduced.root / name).read_bytes()


@pytest.mark.parametrize("setting", ["core.autocrlf=true", "core.autocrlf=input", "core.eol=crlf"])
def test_a_clone_is_up_to_date_whatever_git_does_to_ends_of_lines(
    reproduced: Project, tmp_path: Path, setting: str
) -> None:
    reproduced("git", "clone", "-q", "-c", setting, ".", str(tmp_path / "clone"))
    clone = Project.at(tmp_path / "clone")
    for name in reproduced("git", "ls-files").split():
        assert (clone.root / name).read_bytes() == (reproduced.root / name).read_bytes(), name
    clone("dvc", "cache", "dir", "--local", str(reproduced.root / ".dvc/cache"))
    clone("dvc", "checkout", "-q")
    assert "up to date" in clone("dvc", "status")
    assert clone("git", "status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("params.yaml", "# Every parameter", "# Each parameter", set()),
        ("params.yaml", "valid_fraction: 0.1", "valid_fraction: 0.2", {"prepare", "evaluate"}),  # it reports them
        ("params.yaml", "train:\n  seed: 0 ", "train:\n  seed: 1 ", {"train", "evaluate"}),
        ("params.yaml", "calibration_bins: 15", "calibration_bins: 10", {"evaluate"}),
        ("stages/evaluate.py", '"""Evaluate:', '"""Evaluates:', {"evaluate"}),
        ("stages/report/pictures.py", '"""Pictures', '"""Drawings', {"evaluate"}),
        ("stages/nets/net.py", '"""The Net:', '"""A Net:', {"train", "evaluate"}),
        ("stages/sources/loading.py", '"""Where', '"""From where', {"prepare"}),
        ("stages/training/losses.py", '"""The losses', '"""Losses', {"train", "evaluate"}),
        ("stages/base/files.py", '"""How', '"""The way', {"prepare", "train", "evaluate"}),
        ("stages/start/server.py", '"""The server', '"""A server', set()),
        ("stages/tracking/store.py", '"""MLflow', '"""The MLflow', set()),
    ],
)
def test_a_change_reaches_the_stages_that_read_it(
    reproduced: Project, file: str, old: str, new: str, expected: set[str]
) -> None:
    reproduced.edit(file, old, new)
    try:
        # Before any stage has run: those after it follow when its outputs turn out to be others.
        assert json.loads(reproduced("dvc", "status", "--json")).keys() == expected
    finally:
        reproduced("git", "checkout", "-q", file)


def test_stages_that_are_no_forks_have_the_same_outputs(
    reproduced: Project, make_project: Callable[[], Project]
) -> None:
    project = make_project()
    (project.root / "dvc.lock").unlink()
    project("dvc", "repro", REPRONET_FORKSERVER="off")
    locks = [YAML_READER.load((each.root / "dvc.lock").read_text())["stages"] for each in (project, reproduced)]
    assert locks[0] == locks[1]


def test_files_that_no_param_names_change_nothing(reproduced: Project) -> None:
    for name in ("data/raw/own/a/1.png", "data/weights/start.pt", "data/note"):
        (reproduced.root / name).parent.mkdir(parents=True, exist_ok=True)
        (reproduced.root / name).write_bytes(b"new")
    assert json.loads(reproduced("dvc", "status", "--json")) == {}
    reproduced.edit("params.yaml", "init_from: none ", "init_from: start.pt ")
    assert "data/weights/start.pt" in str(json.loads(reproduced("dvc", "status", "--json"))["train"])
    reproduced("git", "checkout", "-q", "params.yaml")
    reproduced("git", "clean", "-qfd", "data")


# What a shell, DVC, git or argparse could take for something else.
ODD = [
    "-x",
    "$(touch ran)",
    "$5 bills",
    "`touch ran`",
    'it\'s "a" b',
    "; touch ran",
    "${prepare.seed}",
    "#é [x]*?",
    "a\\b",
]


def test_paths_of_any_name_are_read_as_they_are(project: Project) -> None:
    path = "/".join(["data/raw", *ODD])
    for seed in range(40):
        write_image(project.root / path / "ab"[seed % 2] / f"{seed}.png", seed)
    project.edit("params.yaml", "source: digits ", "source: folder ")
    project.edit("params.yaml", "path: data/none ", f"path: {json.dumps(path)} ")
    assert stages_run(project("dvc", "repro", "prepare")) == ["prepare"]
    assert json.loads((project.root / "data/prepared/dataset.json").read_text())["classes"] == ["a", "b"]
    assert stages_run(project("dvc", "repro", "prepare")) == []
    assert not list(project.root.rglob("ran"))


def test_changed_seed_reruns_train_and_evaluate(reproduced: Project) -> None:
    reproduced.edit("params.yaml", "train:\n  seed: 0 ", "train:\n  seed: 1 ")
    assert stages_run(reproduced("dvc", "repro")) == ["train", "evaluate"]
    assert "accuracy" in reproduced("dvc", "metrics", "diff")
    reproduced("git", "reset", "-q", "--hard")
    # Going back takes the results from DVC's cache: nothing runs, and the run is in MLflow already.
    assert stages_run(reproduced("dvc", "repro")) == []
    assert [run.info.status for run in reproduced.runs()] == ["FINISHED"] * 2


def test_plots_are_drawn(reproduced: Project) -> None:
    reproduced("dvc", "plots", "show")
    page = (reproduced.root / "dvc_plots/index.html").read_text()
    for word in ("train/loss", "valid/accuracy", "confusion", "vegaEmbed"):
        assert word in page
    drawn = {path.name for path in (reproduced.root / "dvc_plots/static").iterdir()}
    assert {f"workspace_plots_pictures_{name}.png" for name in ("examples", "mistakes", "filters_conv1")} <= drawn


@pytest.mark.parametrize(
    ("old", "new", "stage", "message"),
    [
        ("  epochs: 30 ", "  epoch: 30 ", "prepare", "train.epoch: unknown key (did you mean epochs?)"),
        ("name: SGD ", "name: Sgd ", "train", "train.optimizer.name: 'Sgd' is unknown (did you mean SGD?)"),
    ],
)
def test_wrong_params_end_in_one_screen(
    project: Project, digits: Path, old: str, new: str, stage: str, message: str
) -> None:
    project.edit("params.yaml", old, new)
    arguments = {"prepare": ["out"], "train": [str(digits), "out", "out.csv"]}[stage]
    output = project("python", "-m", f"stages.{stage}", *arguments, fails=True)
    assert message in output
    assert output.startswith("error: ")
    assert len(output.splitlines()) <= 24
    assert not list(project.root.glob("*out*"))


def test_code_of_another_directory_is_refused(project: Project, tmp_path: Path) -> None:
    (project.root / "elsewhere").mkdir()
    command = f"cd elsewhere && PYTHONPATH={project.root} python -m stages.prepare --help"
    output = project("sh", "-c", command, fails=True)
    assert f"error: the code comes from {tmp_path}, but the current directory is {tmp_path}/elsewhere" in output


@pytest.mark.parametrize("stage", ["prepare", "train", "evaluate"])
def test_help_has_an_example(project: Project, stage: str) -> None:
    output = project("python", "-m", f"stages.{stage}", "--help")
    assert f"    python -m stages.{stage} " in output
    assert "usage: python -m stages." in output


@pytest.mark.slow
def test_several_experiments_at_once_by_hand(project: Project) -> None:
    assert "dvc --wait-for-lock exp run --temp" in " ".join((ROOT / "README.md").read_text().split())
    (project.root / "dvc.lock").unlink()
    project("git", "commit", "-qam", "no results")
    command = ["dvc", "--wait-for-lock", "exp", "run", "--temp"]
    started = [
        project.start(*command, "--name", f"at-once-{i}", "-S", f"prepare.seed={i}", "prepare") for i in range(8)
    ]
    said = [process.communicate(timeout=300)[0] for process in started]
    # DVC may lose one of several that begin at one moment, as seen once: it is run again, as the README says.
    there = project("dvc", "exp", "list", "--name-only").split()
    lost = [i for i in range(8) if f"at-once-{i}" not in there]
    assert len(lost) <= 1, [said[i] for i in lost]
    for i in lost:
        project(*command, "--name", f"at-once-{i}", "-S", f"prepare.seed={i}", "prepare")
    names = project("dvc", "exp", "list", "--name-only").split()
    assert {f"at-once-{i}" for i in range(8)} == set(names)
    for i, process in enumerate(started):
        [ref] = project("git", "for-each-ref", "--format=%(refname)", f"refs/exps/*/*/at-once-{i}").split()
        assert YAML_READER.load(project("git", "show", f"{ref}:params.yaml"))["prepare"]["seed"] == i
        # A process of DVC that is done takes what waits, also what another is about to begin: then one of them fails.
        others = said[:i] + said[i + 1 :]
        assert i in lost or process.returncode == 0 or any(f"experiment 'at-once-{i}'" in text for text in others), (
            said[i]
        )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_after_dvc_was_killed_the_lock_names_the_weights_that_are_there(project: Project, number: int) -> None:
    project("dvc", "repro", "prepare")
    project.edit("params.yaml", "  epochs: 30 ", "  epochs: 400 ")
    killed = project.start("dvc", "repro")
    assert killed.stdout is not None
    while "epoch 1/400" not in killed.stdout.readline():
        pass
    killed.send_signal(number)
    killed.wait()  # until then DVC takes it for alive
    project.edit("params.yaml", "  epochs: 400 ", "  epochs: 30 ")
    project.edit("params.yaml", "train:\n  seed: 0 ", "train:\n  seed: 5 ")
    assert "train" in stages_run(project("dvc", "repro"))
    assert killed.stdout.read().splitlines()[-2:] == [
        "the DVC that ran this has ended",
        "interrupted",
    ]  # and it is gone
    assert project("dvc", "status").strip() == "Data and pipelines are up to date."
    lock = YAML_READER.load((project.root / "dvc.lock").read_text())["stages"]["train"]
    assert lock["params"]["params.yaml"]["train"]["seed"] == 5
    assert load_weights(project.root / "models/net.safetensors")[1].seed == 5
    assert len(pd.read_csv(project.root / "metrics/train.csv")) == 30
    assert [run.info.status for run in project.runs()] == ["FINISHED", "KILLED"]
    assert not list((project.root / ".repronet/locks").iterdir())
