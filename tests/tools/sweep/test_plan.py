"""What a sweep is to do: what is refused, and that the same command gives the same plan."""

import hashlib
import json

import pytest

from stages.base.errors import InputError
from tests.conftest import Project
from tools.sweep.plan import Plan


@pytest.mark.parametrize(
    ("search", "overrides", "name", "message"),
    [
        (False, ["train.epochs=x"], None, r"train\.epochs: 'x', should be"),
        (False, ["train.seed=1,2,-3"], None, r"train\.seed: -3, should be"),
        (
            False,
            ["train.optimizer.lr=interval(0,1)"],
            None,
            "an interval can be searched, with --search N, but not listed",
        ),
        (False, ["train.seed=int(interval(1,5))"], None, "seeds are listed, not searched: train.seed=0,1,2"),
        (
            True,
            ["train.net.arguments.Net.dropout=interval(0,1.5)"],
            None,
            r"train\.net\.arguments\.Net\.dropout: 1\.5, should be",
        ),
        (
            True,
            ["prepare.source=digits,fashion_mnist"],
            None,
            "a search cannot compare accuracies on other validation images",
        ),
        (False, ["train.seed=1"], "a b", "--name 'a b': letters, digits and hyphens are accepted"),
        (False, ["train.seed=1"], "taken", "--name taken is a sweep with other baseline, overrides; take another name"),
    ],
)
def test_wrong_input_is_refused_before_anything_runs(
    project: Project,
    monkeypatch: pytest.MonkeyPatch,
    search: bool,
    overrides: list[str],
    name: str | None,
    message: str,
) -> None:
    monkeypatch.chdir(project.root)
    other = {"baseline": "", "changes": hashlib.sha256(b"").hexdigest(), "overrides": [], "search": False, "threads": 1}
    (project.root / "sweeps/taken").mkdir(parents=True, exist_ok=True)
    (project.root / "sweeps/taken/plan.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match=message):
        Plan.of(overrides, 5 if search else None, name, jobs=1)


def test_the_plan_is_the_same_for_the_same_command(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    plan = Plan.of(["train.seed=1,2", "train.epochs=3"], None, None, jobs=100)
    assert Plan.of(["train.seed=1,2", "train.epochs=3"], None, None, jobs=1) == plan, "also what follows from jobs"
    assert plan.threads == 1
    assert Plan.of(["train.seed=1,2", "train.epochs=4"], None, None, jobs=1).name != plan.name
    project.edit("stages/nets/net.py", '"""The Net:', '"""A Net:')
    assert Plan.of(["train.seed=1,2", "train.epochs=3"], None, None, jobs=1).name != plan.name
    project("git", "checkout", "-q", "stages/nets/net.py")


def test_auto_threads_are_shared_out_too(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    monkeypatch.setattr("tools.sweep.plan.cores", lambda: 8)
    project.edit("params.yaml", "threads: 2 ", "threads: auto ")
    for physical, expected in [(8, 4), (4, 2)]:
        monkeypatch.setattr("tools.sweep.plan.thread_count", lambda _threads, count=physical: count)
        assert Plan.of(["train.seed=1,2"], None, f"auto-{physical}", jobs=2).threads == expected
    project("git", "checkout", "-q", "params.yaml")


def test_names_tell_experiments_apart(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project.root)
    plan = Plan.of(
        ["train.net.arguments.Net.widths=[8],[16,32]", "train.seed=0,1", "train.epochs=2"], None, "n", jobs=1
    )
    key = "train.net.arguments.Net.widths"
    values, seed = {key: "[16,32]", "train.epochs": "2"}, {"train.seed": "1"}
    assert plan.seeds == [{"train.seed": "0"}, {"train.seed": "1"}]
    made = plan.experiment(1, values, seed, taken=[])
    assert (made.name, made.number, made.values) == ("n-16_32-s1", 1, {key: "[16,32]"})
    assert made.description.overrides[:3] == [f"{key}=[16,32]", "train.epochs=2", "train.seed=1"]
    assert (made.description.baseline, made.description.patch) == (project("git", "rev-parse", "HEAD").strip(), b"")
    assert made.description.environment == {"REPRONET_SWEEP": "n"}
    assert plan.experiment(1, values, seed, taken=["n-16_32-s1", "other"]).name == "n-002"
    assert plan.experiment(1, values | {key: "9" * 90}, seed, taken=[]).name == "n-000"
