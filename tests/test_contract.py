"""What dvc.yaml, params.yaml and the code promise each other."""

import ast
import json
import re
import subprocess
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from stages.base.params import NOTHING, RANDOM, WEIGHTS, Params
from stages.evaluate import evaluate
from stages.prepare import prepare
from stages.tracking.tracker import Tracker
from stages.train import train
from tests.conftest import ROOT, YAML_READER, clean_environment, params_with, write_image

PIPELINE = YAML_READER.load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES = ["prepare", "train", "evaluate"]
ROOMS = sorted(path.name for path in (ROOT / "stages").iterdir() if (path / "__init__.py").exists())
FILES = sorted((ROOT / "stages").rglob("*.py"))
# The rooms that each room may import; a stage may import all.
BELOW: dict[str, set[str]] = {
    "base": set(),
    "start": {"base"},
    "sources": {"base"},
    "training": {"base"},
    "report": {"base", "training"},
    "batches": {"base"},
    "nets": {"base", "batches"},
    "tracking": {"base", "batches", "nets"},
}
# Influence no output, so they are no deps: test_pipeline.py and test_tracker.py show that.
NO_DEP = {"start", "tracking"}


def module(path: Path) -> str:
    """The name by which a file is imported."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """The modules and packages of stages that a file names in any import, also inside of functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & {module(file) for file in FILES} - {"stages"}


def room(name: str) -> str:
    """The room of a module, or the stage that it is."""
    return name.split(".")[1]


def closure(stage: str) -> set[str]:
    """The modules that a stage's process may run, itself among them."""
    files = {module(file): file for file in FILES}
    todo, found = {f"stages.{stage}"}, set[str]()
    while todo:
        name = todo.pop()
        found.add(name)
        todo |= imported(files[name]) - found
    return found


def names_of(entries: list[Any]) -> list[str]:
    """The paths of a stage's outs, some of which carry options."""
    return [name for entry in entries for name in ([entry] if isinstance(entry, str) else entry)]


def test_the_pipeline_is_three_stages() -> None:
    assert list(PIPELINE) == STAGES
    assert list(Params.model_fields) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_rooms_that_do_the_work(stage: str) -> None:
    code = [dep for dep in PIPELINE[stage]["deps"] if dep.startswith("stages/")]
    used = {room(name) for name in closure(stage)} - NO_DEP
    assert code == sorted(f"stages/{name}.py" if name == stage else f"stages/{name}" for name in used)


def test_stages_hold_three_stages_and_the_rooms() -> None:
    assert {path.stem for path in (ROOT / "stages").glob("*.py")} == {"__init__", "__main__", *STAGES}
    assert set(ROOMS) == set(BELOW)
    for name in ROOMS:
        doc = ast.get_docstring(ast.parse((ROOT / "stages" / name / "__init__.py").read_text()))
        assert doc, name
        assert 3 <= len(doc.splitlines()) <= 7, name


def test_imports_go_one_way() -> None:
    for file in FILES:
        own = module(file).split(".")[1:2]
        others = {room(name) for name in imported(file)} - set(own)
        allowed = BELOW.get(own[0], set(ROOMS)) if own else {"base"}
        assert others <= allowed, f"{file} imports {others - allowed}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    direct = {module(file): imported(file) for file in FILES}
    TopologicalSorter({name: others - {name} for name, others in direct.items()}).prepare()  # raises CycleError


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_names_inputs_and_outputs(stage: str) -> None:
    entry = PIPELINE[stage]
    program, arguments = entry["cmd"].split()[:4], entry["cmd"].split()[4:]
    assert program == ["python", "-m", "stages", stage]
    # A shell would expand what a user writes.
    data = [dep for dep in entry["deps"] if not dep.startswith("stages/") and "${" not in dep]
    assert sorted(arguments) == sorted(
        data + names_of([*entry.get("outs", []), *entry.get("metrics", []), *entry.get("plots", [])])
    )


def test_a_stage_depends_on_the_files_that_params_name_and_no_others() -> None:
    named = {stage: [dep for dep in entry["deps"] if "${" in dep] for stage, entry in PIPELINE.items()}
    of_prepare = ["${prepare.path}", "${prepare.exclude}"]
    assert named == {"prepare": of_prepare, "train": [f"{WEIGHTS}/${{train.init_from}}"], "evaluate": []}
    defaults = params_with({})
    assert (defaults.prepare.path, defaults.train.init_from) == (str(NOTHING), RANDOM)
    assert [str(path) for path in defaults.inputs] == [str(NOTHING), "data/excluded.csv", str(WEIGHTS / RANDOM)]
    tracked = ["git", "ls-files", "--error-unmatch", *map(str, defaults.inputs)]
    subprocess.run(tracked, cwd=ROOT, env=clean_environment(), check=True)
    assert [(ROOT / name).read_bytes() for name in defaults.inputs] == [b"", b"source\n", b""]


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_s_run_cache_serves_the_stage(stage: str) -> None:
    # DVC keeps out of it whatever has a plain output with `cache: false`, or one with `persist: true`.
    assert all(isinstance(out, str) for out in PIPELINE[stage].get("outs", []))


def test_git_is_run_in_one_place() -> None:
    for path in [file for folder in ("stages", "tools", "bench") for file in (ROOT / folder).rglob("*.py")]:
        runs_git = re.search(r"""(?m)["']git["']\s*[],]|^ *(import|from) (git|pygit2|dulwich)\b""", path.read_text())
        assert not runs_git or path == ROOT / "stages/tracking/git.py", path


def test_only_tracking_imports_mlflow() -> None:
    for file in FILES:
        if re.search(r"^\s*(import|from) mlflow", file.read_text(), re.MULTILINE):
            assert room(module(file)) == "tracking" or module(file) == "stages.start.server", file


# What runs code that a file names or holds: pickles, MLflow's flavours, exported graphs, whose sizes are expressions.
RUNS_CODE = {"cloudpickle", "dill", "eval", "exec", "exec_module", "import_module", "joblib", "load_model", "marshal"}
RUNS_CODE |= {"pickle", "pyfunc", "read_pickle", "shelve", "sympify", "sympy", "unsafe_load"}


def test_what_is_printed_goes_through_one_place() -> None:
    tools = (ROOT / "tools").rglob("*.py")
    calls = {
        (str(file.relative_to(ROOT)), ast.unparse(node.func))
        for file in [*FILES, *tools]
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("print", "sys.stdout.write", "sys.stderr.write")
    }
    assert calls == {("stages/base/text.py", "print")}


def test_nothing_that_a_file_holds_is_run() -> None:
    for path in [*FILES, *(ROOT / "tools").rglob("*.py"), *(ROOT / "bench").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            used = set[str]()
            if isinstance(node, ast.Import | ast.ImportFrom):
                used = {part for alias in node.names for part in alias.name.split(".")}
                used |= set((node.module or "").split(".")) if isinstance(node, ast.ImportFrom) else set()
            elif isinstance(node, ast.Attribute):
                used = {node.attr, ast.unparse(node)} - {"eval"}  # of a net
            elif isinstance(node, ast.Call):
                used = {ast.unparse(node.func)} | {ast.unparse(keyword) for keyword in node.keywords}
                assert ast.unparse(node.func) != "torch.load" or "weights_only=True" in used, path
                # One reader knows what is too large; result.py writes dvc.lock as it read it.
                assert "YAML" not in used or path.name in ("yaml.py", "result.py") or "bench" in path.parts, path
            wrong = used & {*RUNS_CODE, "torch.export.load", "torch.jit.load", "allow_pickle=True", "typ='unsafe'"}
            assert not wrong, f"{path}:{getattr(node, 'lineno', 0)}: {wrong}"


def leaves(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            assert field.is_required(), f"{prefix}{name} has a default outside of params.yaml"
            yield f"{prefix}{name}"


def test_every_key_is_a_field_and_every_field_a_key() -> None:
    # The Net's arguments stand there one by one, under the one field that holds those of any net.
    keys = {re.sub(r"^(train\.net\.arguments)\..*", r"\1", key) for key in params_with({}).flat()}
    assert sorted(leaves(Params)) == sorted(keys)


def test_every_parameter_is_explained_where_it_stands() -> None:
    for line in (ROOT / "params.yaml").read_text().splitlines():
        if re.match(r"\s+\w+: \S", line):
            assert re.search(r" # \S", line), line


class Read:
    """A section of the params that notes what is read of it."""

    def __init__(self, section: BaseModel, name: str, seen: set[str]) -> None:
        self._section, self._name, self._seen = section, name, seen

    def __getattr__(self, key: str) -> Any:
        value, name = getattr(self._section, key), f"{self._name}{key}"
        if isinstance(value, BaseModel):
            return Read(value, f"{name}.", self._seen)
        self._seen.add(name)
        return value

    def model_dump(self, exclude: frozenset[str] = frozenset()) -> dict[str, Any]:
        read = {name: getattr(self, name) for name in type(self._section).model_fields if name not in exclude}
        return {name: value.model_dump() if isinstance(value, Read) else value for name, value in read.items()}

    def model_dump_json(self, exclude: Any) -> str:
        """As the origin of a checkpoint has them: that is no use of any."""
        return str(self._section.model_dump_json(exclude=exclude))


def table_of_images(folder: Path) -> Path:
    """Write two classes of ten images and one without a file."""
    for seed in range(20):
        write_image(folder / f"{seed}.png", seed)
    rows = "".join(f"{seed}.png,{'ab'[seed % 2]}\n" for seed in range(21))
    (folder / "labels.csv").write_text(f"image,label\n{rows}")
    return folder


# Of the others evaluate's report says what they were.
BY_EVALUATE = ("evaluate", "train.determinism", "train.device", "train.loss", "train.threads")


def test_each_stage_lists_the_params_that_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.evaluate.trained", lambda *_: {"params": {}, "chosen": 0, "epochs": 0, "sha256": ""})
    params, read = params_with({"train.epochs": 1}), {stage: set[str]() for stage in STAGES}
    folder, weights, history = tmp_path / "prepared", tmp_path / "net", tmp_path / "train.csv"
    prepare(Read(params, "", read["prepare"]).prepare, folder)
    own = {"source": "csv", "path": str(table_of_images(tmp_path / "own")), "image_size": 8, "on_bad": "skip"}
    prepare(
        Read(params_with({f"prepare.{name}": value for name, value in own.items()}), "", read["prepare"]).prepare,
        tmp_path / "prepared_own",
    )
    train(Read(params, "", read["train"]).train, folder, weights, history, Tracker.off())
    everything: Any = Read(params, "", read["evaluate"])
    evaluate(everything, weights, folder, history, tmp_path / "evaluate.json", tmp_path / "plots", Tracker.off())
    assert PIPELINE["evaluate"]["params"] == STAGES
    for stage in STAGES:
        listed = BY_EVALUATE if stage == "evaluate" else tuple(PIPELINE[stage]["params"])
        covered = {leaf for leaf in leaves(Params) if leaf in listed or leaf.startswith(tuple(f"{p}." for p in listed))}
        assert read[stage] == covered


def test_metrics_have_the_promised_names() -> None:
    assert {"accuracy", "loss"} <= json.loads((ROOT / "metrics/evaluate.json").read_text()).keys()


def test_make_s_targets_are_listed_by_help() -> None:
    shown = subprocess.check_output(["make", "help"], cwd=ROOT, env=clean_environment(), text=True)
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [line.split()[1] for line in shown.splitlines()] == targets
    assert {"setup", "check", "test", "repro", "ui", "help"} <= set(targets)


def test_no_package_index_is_named() -> None:
    for name in ("constraints.txt", "pyproject.toml", "Makefile", ".ci/run", "Dockerfile"):
        assert not re.search(
            r"https?://(?!127\.0\.0\.1)|--(extra-)?index-url|--find-links", (ROOT / name).read_text()
        ), name
