"""Training as a whole, on the digits: bit for bit the same twice, and what its outputs hold."""

import math
import os
import pty
import re
import subprocess
import sys
import termios
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from torch import nn

from stages.base.errors import InputError
from stages.base.processes import STOPPING, thread_count
from stages.batches.normalise import Normalise
from stages.batches.prepared import Prepared
from stages.nets.prediction import predict
from stages.nets.weights import load_weights
from stages.tracking.tracker import Tracker
from stages.train import train
from stages.training import metrics, options
from stages.training.checks import check_finite
from stages.training.selection import rank_of
from tests.conftest import ROOT, Project, clean_environment, params_with


def trained(digits: Path, folder: Path, changes: dict[str, Any]) -> tuple[bytes, bytes]:
    params = params_with({"train.epochs": 3} | changes).train
    train(params, digits, folder / "net.safetensors", folder / "train.csv", Tracker.off())
    return (folder / "net.safetensors").read_bytes(), (folder / "train.csv").read_bytes()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "train.net.arguments.Net.hidden": [20],
            "train.net.arguments.Net.dropout": 0.5,
            "train.optimizer.name": "AdamW",
        },
    ],
)
def test_two_trainings_are_equal_bit_for_bit(digits: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    first = trained(digits, tmp_path / "one", changes)
    torch.rand(3)  # what ran before in the process plays no part
    assert trained(digits, tmp_path / "two", changes) == first
    assert trained(digits, tmp_path / "three", changes | {"train.seed": 1}) != first


OPTIONS: list[dict[str, Any]] = [
    {"train.clip_norm": 0.5},
    {"train.ema_decay": 0.9},
    {"train.precision": "bfloat16"},
    {"train.optimizer.name": "LBFGS"},
    {"train.optimizer.name": "Muon"},
    {"train.schedule.name": "CyclicLR"},
    {"train.schedule.name": "ExponentialLR"},
    {"train.loss.name": "SoftMarginLoss"},
    {"train.warmup_epochs": 1},
    {"train.accumulate": 2},
    {"train.freeze": 1},
    {"train.normalise": "none"},
    {"train.optimizer.layer_decay": 0.5},
    {"train.optimizer.decay_on": "weights", "train.optimizer.arguments": {"SGD": {"weight_decay": 0.1}}},
]


@pytest.mark.parametrize("changes", OPTIONS)
def test_options_change_the_weights_and_repeat_bit_for_bit(
    digits: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    first = trained(digits, tmp_path / "one", changes)
    assert trained(digits, tmp_path / "two", changes) == first
    plain = trained(digits, tmp_path / "plain", {})
    assert plain != first


@pytest.mark.parametrize("changes", [{}, {"train.balance": "loss"}, {"train.transforms.train": ["MixUp"]}])
def test_several_small_batches_are_one_large_one(digits: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    trained(digits, tmp_path / "large", changes | {"train.batch_size": 96})
    trained(digits, tmp_path / "small", changes | {"train.batch_size": 32, "train.accumulate": 3})
    large, small = (load_weights(tmp_path / name / "net.safetensors")[0].state_dict() for name in ("large", "small"))
    for name, tensor in large.items():
        torch.testing.assert_close(tensor, small[name], rtol=1e-3, atol=1e-5)
    one, other = (pd.read_csv(tmp_path / name / "train.csv") for name in ("large", "small"))
    pd.testing.assert_frame_equal(one, other, rtol=1e-4)


def test_a_few_images_over_and_over_are_learnt_by_heart(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(digits, tmp_path, {"train.overfit": 16, "train.epochs": 10})
    history = pd.read_csv(tmp_path / "train.csv")
    assert history["train/loss"].iloc[-1] < 0.01
    assert history["train/accuracy"].iloc[-1] == 1
    assert history["valid/accuracy"].max() < 0.9, "it has seen 16 images of 1,294"
    shown, said = capsys.readouterr()
    assert "the same 16 training images over and over: loss 0.00" in shown
    assert "100.0% right" in shown
    assert said == ""
    trained(digits, tmp_path, {"train.overfit": 16, "train.optimizer.lr": 1e-5})
    shown, said = capsys.readouterr()
    assert "warning: the same 16 training images over and over: loss 2." in said
    assert "right, should be all, dropout, transforms and few epochs aside. Look at" in said


def test_wide_limits_change_nothing(digits: Path, tmp_path: Path) -> None:
    plain = trained(digits, tmp_path / "plain", {})
    wide = {"train.clip_norm": 1e9, "train.early_stopping": 100}
    assert trained(digits, tmp_path / "wide", wide) == plain


def test_early_stopping_ends_after_epochs_without_a_better_one(digits: Path, tmp_path: Path) -> None:
    whole, stopped = {"train.epochs": 20, "train.schedule.name": "ConstantLR"}, {"train.early_stopping": 2}
    trained(digits, tmp_path / "whole", whole)
    trained(digits, tmp_path / "stopped", whole | stopped)
    history = pd.read_csv(tmp_path / "whole/train.csv")
    ranks = list(zip(history["valid/accuracy"], -history["valid/loss"], strict=True))
    best, over = 0, 0
    for epoch in range(len(history)):
        if ranks[epoch] > ranks[best]:
            best = epoch
        if epoch - best >= 2:
            over = epoch
            break
    assert 3 <= over < 19
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "stopped/train.csv"), history[: over + 1])
    assert load_weights(tmp_path / "stopped/net.safetensors")[1].epoch == best + 1


def test_history_and_kept_epoch_agree_with_the_weights(digits: Path, tmp_path: Path) -> None:
    trained(digits, tmp_path, {"train.epochs": 6})
    history = pd.read_csv(tmp_path / "train.csv")
    assert history.columns.tolist() == [
        "epoch",
        "train/loss",
        "train/accuracy",
        "train/lr",
        "valid/loss",
        "valid/accuracy",
    ]
    assert history["epoch"].tolist() == [1, 2, 3, 4, 5, 6]

    net, description = load_weights(tmp_path / "net.safetensors")
    kept = history.sort_values(["valid/accuracy", "valid/loss"], ascending=[False, True]).iloc[0]
    assert (description.epoch, description.valid_accuracy) == (kept["epoch"], kept["valid/accuracy"])

    validation = Prepared(digits).split("valid", torch.device("cpu"))
    classifier = nn.Sequential(Normalise(description.mean, description.std), net)
    scores = predict(classifier, validation)
    assert metrics.accuracy(scores.argmax(1), validation.labels) == pytest.approx(kept["valid/accuracy"], rel=1e-5)
    loss = nn.CrossEntropyLoss()(scores, validation.labels).item()
    assert loss == pytest.approx(kept["valid/loss"], rel=1e-5)


def test_one_epoch_is_the_page_s_five_steps(digits: Path, tmp_path: Path) -> None:
    """The weights equal, up to rounding, those of a loop written out here, with nothing of the project but its data."""
    changes = {"train.epochs": 1, "train.optimizer.lr": 0.02, "train.schedule.name": "ConstantLR"}
    trained(digits, tmp_path, changes)
    weights = load_weights(tmp_path / "net.safetensors")[0].state_dict()

    data = Prepared(digits)
    split = data.split("train", torch.device("cpu"))
    pixels = split.read(slice(None)).float().unsqueeze(3).movedim(3, 1)
    images = (pixels - 255 * torch.tensor(data.mean[0])) / (255 * torch.tensor(data.std[0]))
    torch.manual_seed(0)
    conv1, fc1 = nn.Conv2d(1, 32, 5), nn.Linear(128, 10)
    nn.init.constant_(fc1.bias, 1.0)
    optimizer = torch.optim.SGD([*conv1.parameters(), *fc1.parameters()], lr=0.02, momentum=0.9)
    for rows in torch.randperm(len(images), generator=torch.Generator().manual_seed(1)).split(64):
        scores = fc1(nn.functional.max_pool2d(conv1(images[rows]).relu(), 2).flatten(1)).relu()
        loss = nn.functional.cross_entropy(scores, split.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(weights["conv1.weight"], conv1.weight.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weights["fc1.bias"], fc1.bias.detach(), rtol=1e-4, atol=1e-6)


def test_nll_of_the_same_net_is_cross_entropy(digits: Path, tmp_path: Path) -> None:
    trained(digits, tmp_path / "one", {"train.net.arguments.Net.output": "logits"})
    trained(digits, tmp_path / "two", {"train.net.arguments.Net.output": "logits", "train.loss.name": "NLLLoss"})
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "one/train.csv"), pd.read_csv(tmp_path / "two/train.csv"), rtol=1e-3
    )


def test_threads_are_as_asked_for(digits: Path, tmp_path: Path) -> None:
    for threads, expected in ((1, 1), (2, 2), ("auto", thread_count("auto"))):
        trained(digits, tmp_path, {"train.epochs": 1, "train.threads": threads})
        assert torch.get_num_threads() == expected


def test_a_step_of_a_small_net_has_one_thread(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    had, step = set[int](), metrics.step

    def watched(*batches: Any) -> Any:
        had.add(torch.get_num_threads())
        return step(*batches)

    monkeypatch.setattr(metrics, "step", watched)
    for changes, threads in (({}, 1), ({"train.net.arguments.Net.hidden": [8]}, 2)):
        had.clear()
        trained(digits, tmp_path, {"train.epochs": 1, "train.threads": 2} | changes)
        assert had == {threads}


def test_rank() -> None:
    rows = [{"valid/accuracy": a, "valid/loss": b} for a, b in [(0.9, 0.5), (0.95, 0.7), (0.95, 0.6), (0.8, 0.1)]]
    assert max(rows, key=rank_of) == {"valid/accuracy": 0.95, "valid/loss": 0.6}
    assert max(rows, key=partial(rank_of, monitor="loss")) == {"valid/accuracy": 0.8, "valid/loss": 0.1}
    scored = [row | {"valid/auroc": area} for row, area in zip(rows, (0.7, 0.7, 0.6, 0.5), strict=True)]
    assert max(scored, key=partial(rank_of, monitor="auroc")) == scored[1]


@pytest.mark.parametrize("monitor", ["loss", "macro_f1", "auroc"])
def test_the_monitored_figure_picks_the_epoch(digits: Path, tmp_path: Path, monitor: str) -> None:
    trained(digits, tmp_path, {"train.monitor": monitor, "train.epochs": 12, "train.optimizer.lr": 0.1})
    rows = pd.read_csv(tmp_path / "train.csv").to_dict("records")
    best = max(rows, key=partial(rank_of, monitor=monitor))
    assert load_weights(tmp_path / "net.safetensors")[1].epoch == best["epoch"]


def test_check_finite_names_step_rate_and_losses() -> None:
    check_finite([1.0, 2.0], 7, 0.1)
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(
            InputError, match=rf"loss is {bad} at step 7, .* rate of 0\.1; the losses before it: 1, 2\."
        ):
            check_finite([1.0, 2.0, bad], 7, 0.1)
    check_finite([math.inf, 2.0], 7, 0.1)  # a step of LBFGS may try a point that is too far
    with pytest.raises(InputError, match=r"is nan at step 31, .*; the losses before it: 1, 2\."):
        check_finite([1.0, 2.0, math.nan, 0.5], 32, 0.1, new=3)


def test_losses_that_are_read_now_and_then_give_the_same_bytes(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = trained(digits, tmp_path / "each", {})
    monkeypatch.setattr(options, "steps_between_reads", lambda *_: 16)  # as on a GPU
    assert trained(digits, tmp_path / "some", {}) == expected
    with pytest.raises(InputError, match="the loss is nan at step 2, "):
        trained(digits, tmp_path / "wrong", {"train.optimizer.lr": 1e30, "train.schedule.name": "ConstantLR"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.loss.name": "CrossEntropy"}, "train.loss.name: 'CrossEntropy' is unknown"),
        ({"train.optimizer.name": "SDG"}, "train.optimizer.name: 'SDG' is unknown"),
        ({"train.net.arguments.Net.kernel": 9}, r"conv1 \(a 9x9 kernel\) needs at least 9 pixels"),
        ({"train.device": "mps"}, "train.device: 'mps' is not available here; accepted: auto, "),
        ({"train.optimizer.lr": 1e30, "train.net.arguments.Net.output": "logits"}, "the loss is nan at step 2,"),
        (
            {
                "train.optimizer.lr": 1e38,
                "train.net.arguments.Net.output": "logits",
                "train.batch_size": 2000,
                "train.epochs": 1,
            },
            "the loss is nan at step 1,",
        ),
    ],
)
def test_what_cannot_be_trained_leaves_nothing(
    digits: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        trained(digits, tmp_path, changes)
    assert list(tmp_path.iterdir()) == []


def test_steps_are_logged_and_change_nothing(project: Project, digits: Path) -> None:
    project.edit("params.yaml", "  epochs: 30 ", "  epochs: 2 ")
    paths = [project.root / name for name in ("net.safetensors", "train.csv")]
    written = []
    for before, setting in ((0, 0), (0, 1), (1, 3)):
        project.edit("params.yaml", f"  log_steps: {before} ", f"  log_steps: {setting} ")
        project("python", "-m", "stages.train", str(digits), *map(str, paths))
        written.append([path.read_bytes() for path in paths])
    assert written == [written[0]] * 3
    client = mlflow.MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    third, every, none = (
        {
            name: {point.step: point.value for point in client.get_metric_history(run.info.run_id, name)}
            for name in run.data.metrics
        }
        for run in project.runs()
    )
    assert not {"step/loss", "step/lr"} & none.keys()
    assert list(every["step/loss"]) == list(every["step/lr"]) == list(range(1, 41))
    assert third["step/loss"] == {step: every["step/loss"][step] for step in range(3, 40, 3)}
    sizes = [64] * 19 + [1259 - 19 * 64]
    for epoch in (1, 2):
        losses = [every["step/loss"][20 * (epoch - 1) + number] for number in range(1, 21)]
        mean = sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / 1259
        assert mean == pytest.approx(every["train/loss"][epoch], rel=1e-5)
        assert every["step/lr"][20 * (epoch - 1) + 1] == every["train/lr"][epoch]


@pytest.mark.parametrize("number", STOPPING)
def test_interrupted_training_leaves_a_killed_run_and_no_outputs(project: Project, digits: Path, number: int) -> None:
    project.edit("params.yaml", "  epochs: 30 ", "  epochs: 100000 ")
    process = project.start("python", "-m", "stages.train", str(digits), "net.safetensors", "train.csv")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("epoch 1/100000: train loss")
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.splitlines()[-1] == "interrupted"
    assert "Traceback" not in output
    assert not list(project.root.glob("*.safetensors*"))
    assert not (project.root / "train.csv").exists()
    [run] = project.runs()
    assert run.info.status == "KILLED"
    assert run.data.metrics["train/loss"] > 0


@pytest.mark.slow
def test_of_two_trainings_on_one_output_the_second_is_refused(project: Project, digits: Path) -> None:
    project.edit("params.yaml", "  epochs: 30 ", "  epochs: 100000 ")
    command = ["python", "-m", "stages.train", str(digits), "net.safetensors"]
    first = project.start(*command, "one.csv")
    assert first.stdout is not None
    assert first.stdout.readline().startswith("epoch 1/100000")
    refused = project(*command, "two.csv", fails=True).splitlines()[-1]
    shown = f"process {first.pid} (python {' '.join(command[1:])} one.csv) since 20"
    assert refused.startswith(f"error: {project.root}/net.safetensors is being written by {shown}")
    assert first.poll() is None
    first.terminate()
    assert project.runs()[0].info.status in ("RUNNING", "KILLED")
    assert first.communicate(timeout=60)[0].splitlines()[-1] == "interrupted"
    assert len(project.runs()) == 1  # the second has left none
    assert not list(project.root.glob("*.csv")) + list(project.root.glob(".*.partial"))


def test_a_training_whose_terminal_is_closed_closes_its_run(project: Project, digits: Path) -> None:
    project.edit("params.yaml", "  epochs: 30 ", "  epochs: 100000 ")
    arguments = [str(digits), "net.safetensors", "train.csv"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(project.root)
        os.execve(sys.executable, [sys.executable, "-m", "stages.train", *arguments], clean_environment())
    termios.tcsetwinsize(terminal, (24, 100))  # without a size, no bar is shown
    shown = b""
    while b"validation accuracy" not in shown:
        shown += os.read(terminal, 65536)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    [run] = project.runs()
    assert run.info.status == "KILLED"


def test_a_bar_with_the_time_left_on_a_terminal(project: Project, digits: Path) -> None:
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 100))
    command = [sys.executable, "-m", "stages.train", str(digits), "net.safetensors", "train.csv"]
    process = subprocess.Popen(command, cwd=project.root, env=clean_environment(), stdout=end, stderr=end)
    os.close(end)
    shown = b""
    while True:
        try:
            block = os.read(terminal, 65536)
        except OSError:  # how Linux says that nobody holds the other end
            break
        if not block:
            break
        shown += block
    assert process.wait(timeout=120) == 0
    text = shown.decode()
    assert re.search(r"epoch 30/30: 100%.*600/600 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+step/s, validation accuracy 0\.9", text)
    assert "train loss" not in text


def test_docstring_s_commands_are_dvc_s() -> None:
    pipeline = (ROOT / "dvc.yaml").read_text()
    for stage in ("prepare", "train", "evaluate"):
        text = (ROOT / "stages" / f"{stage}.py").read_text()
        command = next(line.strip() for line in text.splitlines() if line.startswith("    python -m"))
        assert f"cmd: {command.replace('stages.', 'stages ')}\n" in pipeline
