"""What is said of data that git would take into an experiment, or not, by real experiments of DVC."""

from pathlib import Path

import pytest

from stages.base.cli import WAY_BACK
from stages.base.params import NOTHING, RANDOM, WEIGHTS
from stages.tracking import data_in_git
from tests.conftest import Project, write_image

OWN = "data/raw/own images"
RUN = ["dvc", "exp", "run", "-S", "prepare.source=folder", "-S", f"prepare.path='{OWN}'"]


@pytest.fixture
def brought(project: Project) -> Project:
    (project.root / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")  # no results that the cache would lack
    project("git", "commit", "-qam", "no results")
    for seed in range(40):
        write_image(project.root / OWN / "ab"[seed % 2] / f"{seed}.{('png', 'bmp')[seed // 20]}", seed)
    return project


def test_data_that_go_into_git_are_named_and_refused_above_a_limit(brought: Project) -> None:
    refused = brought(*RUN, "prepare", fails=True, REPRONET_GIT_MB="0.001")
    assert f"error: 40 files of {OWN}, 0.0 MB, would go into git with the experiment's commit, and 0.001 MB" in refused
    assert f"`dvc add '{OWN}'` has DVC keep them instead; REPRONET_GIT_MB=1 in the environment lifts" in refused
    assert brought("dvc", "exp", "list", "--name-only").strip() == ""
    # What a failed experiment leaves behind, its message takes away.
    assert f"params.yaml keeps this experiment's values; the commit's come back with\n  {WAY_BACK}\n" in refused
    assert "params.yaml" in brought("git", "status", "--porcelain")
    brought("bash", "-ec", WAY_BACK)
    assert "params.yaml" not in brought("git", "status", "--porcelain")
    assert "REPRONET_GIT_MB: 'x', should be a number" in brought(*RUN, "prepare", fails=True, REPRONET_GIT_MB="x")
    brought("bash", "-ec", WAY_BACK)

    warned = brought(*RUN, "--name", "own", "prepare")
    assert f"warning: 40 files of {OWN}, 0.0 MB, go into git with the experiment's commit; `dvc add " in warned
    brought("bash", "-ec", WAY_BACK)
    brought("dvc", "add", "-q", OWN)
    assert "warning" not in brought(*RUN, "--name", "kept", "prepare")


def test_data_that_a_temporary_directory_lacks_stop_its_experiment(brought: Project) -> None:
    (brought.root / ".git/info/exclude").write_text("*.bmp\n")
    brought("git", "add", "data")
    brought("git", "commit", "-qm", "some")
    output = brought(*RUN, "--temp", "prepare", fails=True)
    assert f"error: 20 files of {OWN} are not here, since git does not hold them, such as {OWN}/" in output
    assert f"`dvc add '{OWN}'` and a commit of {OWN}.dvc bring them into experiments" in output
    assert WAY_BACK not in output, "the workspace is as it was"
    assert brought("git", "status", "--porcelain") == ""


def test_data_beside_the_repository_do_not_go_into_git(brought: Project) -> None:
    beside = brought.root.parent / f"{brought.root.name} data"
    (brought.root / OWN).rename(beside)
    output = brought(*RUN[:-1], f"prepare.path='../{beside.name}'", "--name", "beside", "prepare")
    assert "warning: " not in output.replace("WARNING", "")
    assert "prepared 40 images of folder" in output


@pytest.mark.parametrize("where", ["own", "ignored", "committed", "DVC's", "beside"])
def test_data_that_nobody_could_get_back_are_said(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    monkeypatch.chdir(project.root)
    path = Path(OWN) if where != "beside" else project.root.parent / f"{project.root.name} data"
    for seed in range(2):
        write_image(path / f"{seed}.png", seed)
    if where == "ignored":
        (project.root / ".git/info/exclude").write_text("*.png\n")
    if where == "committed":
        project("git", "add", "data")
        project("git", "commit", "-qm", "data")
    if where == "DVC's":
        project("dvc", "add", "-q", OWN)
    paths = [path, NOTHING, WEIGHTS / RANDOM]

    def said(environment: dict[str, str]) -> str:
        data_in_git.warn_of_lost(paths, environment)
        return capsys.readouterr().err

    begins = f"warning: results from {path} cannot be rebuilt once it is another: "
    of_it = "2 files of it are in neither git nor DVC. `dvc add 'data/raw/own images'` keeps it.\n"
    beside = "it is in neither git nor DVC. A copy in the project can be kept.\n"
    expected = {"own": begins + of_it, "ignored": begins + of_it, "beside": begins + beside}.get(where, "")
    assert said({}) == expected
    # An experiment's commit takes what git does not ignore.
    assert said({"DVC_EXP_NAME": "x"}) == ("" if where == "own" else expected)
