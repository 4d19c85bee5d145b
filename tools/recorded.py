"""Results as DVC records them, in experiments, in commits and in the workspace, and how to get at their files.

Files are read with dvc.api. Three things have no public way in DVC, and come from its inner modules: whether another
process is at work in the workspace (`dvc status --json` ends as it does for any other failure), the files of an older
commit with today's configuration, and the error for a directory whose list of files is lost.
"""

import hashlib
import json
import shlex
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stages.base.errors import InputError, listed, unknown
from stages.base.params import WEIGHTS, flattened, load_params
from stages.base.text import shown_url
from stages.base.yaml import read_yaml
from stages.tracking import provenance
from stages.tracking.git import GitError, git, git_bytes, prefix
from stages.tracking.provenance import Provenance
from stages.tracking.result import ResultFiles

if TYPE_CHECKING:
    from dvc.api import DVCFileSystem

EVALUATE = ("python -m stages evaluate ", "python -m stages.evaluate ")  # the second in older commits


@dataclass(frozen=True)
class RecordedResult:
    """A result that DVC recorded in an experiment, in a commit or in the workspace."""

    name: str  # the experiment's, the abbreviated commit, or "workspace"
    commit: str = ""  # that holds it; none for the workspace
    baseline: str = ""  # of an experiment: the commit that it started from
    sweep: str = ""  # that an experiment belongs to, where that is known

    @property
    def experiment(self) -> str:
        """The experiment's name, "" for a commit and for the workspace."""
        return self.name if self.baseline else ""

    def provenance(self) -> Provenance:
        """Return where its run is said to come from."""
        if not self.commit:
            return provenance.of_process({})
        found = provenance.of_commit(self.commit, self.experiment, self.baseline)
        return replace(found, tags=found.tags | {"sweep": self.sweep}) if self.sweep else found

    @contextmanager
    def files(self) -> Iterator[ResultFiles]:
        """Yield its files, for a commit copies that go away again. Raises InputError if they cannot be used."""
        if not self.commit:
            check_workspace()
            yield files_of(as_yaml(Path("dvc.lock").read_bytes()), Path())
            return
        fs = _at_commit(self.commit)
        lock = as_yaml(fs.read_bytes("dvc.lock") if fs.exists("dvc.lock") else b"")
        arguments = _arguments(lock)
        check_commit(lock, fs)
        with TemporaryDirectory() as folder:
            weights, prepared, *others = arguments
            paths = ["params.yaml", "dvc.yaml", "dvc.lock", weights, f"{prepared}/dataset.json", *others]
            missing = [path for path in paths if not copied(fs, path, Path(folder))]
            if missing:
                raise InputError(self._where_to_get(missing))
            try:
                yield _files(arguments, Path(folder))
            except InputError as error:
                raise InputError(str(error).replace(f"{folder}/", "")) from error

    def _where_to_get(self, missing: list[str]) -> str:
        """Return what to say of files that neither DVC's cache nor its remote has: where they are, or can be put."""
        from dvc.config import Config

        config, lacks = Config.from_cwd(validate=False), f"DVC's cache lacks {', '.join(missing)}"
        remotes, name = config["remote"], config["core"].get("remote")
        if not remotes:
            return f"{lacks}, and no DVC remote is set here: dvc remote add --local -d storage URL, and this again"
        if not name:
            default = f"dvc remote default --local {next(iter(remotes))}"
            return f"{lacks}, and no DVC remote of {', '.join(remotes)} is the default: {default}, and this again"
        url = shown_url(str(remotes[name]["url"]))
        push = f"dvc exp push GIT_REMOTE {self.name}" if self.experiment else "dvc push --all-commits"
        # DVC pushes a commit's files to the remote that this commit's own configuration names, or the local one.
        if f'remote "{name}"' not in _text_at(self.commit, ".dvc/config"):
            push = f"dvc remote add --local -f -d {name} {shlex.quote(url)} && {push}"
        return f"{lacks}, and so does the remote {name} ({url}). In the clone that has them: {push}"


def everything() -> list[RecordedResult]:
    """Return the results of all experiments, of the commits of HEAD and all branches, and of the workspace."""
    order = ["--full-history", "--topo-order", "--reverse", "--format=%H"]
    commits: dict[object, str] = {}
    # There is no HEAD before the first commit.
    for commit in git("log", *order, "--ignore-missing", "HEAD", "--branches", "--", "dvc.lock").split():
        # Many a commit changes code, and dvc.lock with it, but no result: of these the last stands for all.
        if result := _result_of(commit):
            commits.pop(result, None)
            commits[result] = commit
    return [
        *experiments(),
        *(RecordedResult(commit[:9], commit) for commit in commits.values()),
        RecordedResult("workspace"),
    ]


def named(names: Collection[str]) -> list[RecordedResult]:
    """Return the results with these names: of experiments, of revisions, "workspace". Raises InputError for others."""
    found, known = [], experiments() if {*names} - {"workspace"} else []  # which need git
    for name in names:
        if name == "workspace":
            found.append(RecordedResult(name))
        elif of_name := [experiment for experiment in known if experiment.name == name]:
            found += of_name
        else:
            try:
                commit = git("rev-parse", "--quiet", "--verify", f"{name}^{{commit}}").strip()
            except GitError as error:
                accepted = ["workspace", *(experiment.name for experiment in known)]
                hint = f"{unknown(name, accepted)}, any git revision"
                raise InputError(f"no experiment or revision is called {name!r}{hint}") from error
            found.append(RecordedResult(commit[:9], commit))
    return found


def experiments() -> list[RecordedResult]:
    """Return DVC's experiments: commits that it keeps under refs/exps/<baseline, cut after two digits>/<name>."""
    found = []
    for line in git("for-each-ref", "--format=%(objectname)/%(refname:lstrip=2)", "refs/exps/??/*/*").splitlines():
        commit, start, rest, name = line.split("/")
        found.append(RecordedResult(name, commit, start + rest))
    return found


def as_yaml(content: bytes) -> dict[str, Any]:
    """Return the mapping that YAML holds, {} if it holds none."""
    try:
        values = read_yaml(content, "")
    except InputError:  # such as the marks of a merge
        values = None
    return values if isinstance(values, dict) else {}


def read_params(path: Path) -> dict[str, Any]:
    """Return the params of any commit by their dotted names, as they stand there if they are not today's."""
    try:
        return load_params(path).flat()
    except InputError:
        return flattened(as_yaml(path.read_bytes()))


def _text_at(commit: str, path: str) -> str:
    """Return a file of the project at a commit, "" if it is not there."""
    return git("show", f"{commit}:./{path}") if git("ls-tree", commit, path) else ""


def _result_of(commit: str) -> object:
    """Return what is equal for commits with the same result: params.yaml and the outputs. None if it holds none."""
    if not git("ls-tree", commit, "dvc.lock"):
        return None
    stages = _stages(as_yaml(git_bytes("show", f"{commit}:./dvc.lock")))
    if "evaluate" not in stages:
        return None
    return git("ls-tree", commit, "params.yaml"), tuple(sorted(digests_of({"stages": stages}, "outs").items()))


def _stages(lock: dict[str, Any]) -> dict[str, Any]:
    """Return the stages in dvc.lock, {} if it has none that can be read."""
    stages = lock.get("stages")
    return stages if isinstance(stages, dict) and all(isinstance(stage, dict) for stage in stages.values()) else {}


def _recorded(entry: dict[str, Any]) -> str:
    """Return the digest of a dep or output; where its remote keeps versions, dvc.lock has those of a folder's files."""
    return str(entry.get("md5") or sorted((file["relpath"], file["md5"]) for file in entry.get("files", [])))


def _arguments(lock: dict[str, Any]) -> list[str]:
    """Return weights, prepared set, history, results and plots, as on the command line of evaluate."""
    if "evaluate" not in (stages := _stages(lock)):
        raise InputError("dvc.lock has no evaluation")
    command = stages["evaluate"].get("cmd")
    start = next((start for start in EVALUATE if str(command).startswith(start)), None)
    words = str(command).removeprefix(start).split() if start else []
    if len(words) != 5:
        raise InputError(f"evaluate was another command than today's: {command}")
    return words


def files_of(lock: dict[str, Any], root: Path) -> ResultFiles:
    """Return the files of the result in dvc.lock, from `root` on. Raises InputError if it has none."""
    return _files(_arguments(lock), root)


def digests_of(lock: dict[str, Any], kind: str) -> dict[str, str]:
    """Return the digests of all "deps" or "outs" in dvc.lock by their paths."""
    entries = [entry for stage in _stages(lock).values() for entry in stage.get(kind, [])]
    return {entry["path"]: _recorded(entry) for entry in entries}


def _files(arguments: list[str], root: Path) -> ResultFiles:
    weights, prepared, history, results, plots = (root / argument for argument in arguments)
    return ResultFiles(weights, prepared, history, results, plots, root)


def _at_commit(commit: str) -> "DVCFileSystem":
    """Return the project's files at a commit, those of git and those that DVC keeps."""
    from dvc.api import DVCFileSystem
    from dvc.config import Config
    from dvc.fs import GitFileSystem
    from dvc.repo import Repo
    from dvc.scm import SCM

    scm = SCM(".")
    files = GitFileSystem(scm=scm, rev=scm.resolve_rev(commit))
    # DVCFileSystem by itself would show the whole repository, of which the project may be a folder. With today's
    # configuration: the commit may be older than the remote, and DVC takes a relative path in the configuration of a
    # commit as one from / on.
    config = Config.from_cwd(validate=False)
    return DVCFileSystem(Repo(f"/{prefix()}", fs=files, scm=scm, config=config, uninitialized=True))


def check_workspace() -> None:
    """Raise InputError if the workspace is not what dvc.lock says, or if DVC is at work in it."""
    from dvc.lock import LockError
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            changed = repo.status()
    except LockError as error:
        raise InputError("DVC is at work in it; run this again when that has ended") from error
    if changed:
        raise InputError(
            f"it is not what dvc.lock says ({', '.join(changed)} in dvc status); dvc repro makes it so, dvc checkout or"
            " dvc pull brings missing files"
        )


def check_commit(lock: dict[str, Any], fs: "DVCFileSystem") -> None:
    """Raise InputError if params or code were committed without the results that they give."""
    changed: dict[str, None] = {}
    for stage in _stages(lock).values():
        for file, params in stage.get("params", {}).items():
            values = as_yaml(fs.read_bytes(file)) if fs.exists(file) else {}
            changed |= {f"{file}: {key}": None for key, value in params.items() if _value(values, key) != value}
        for entry in [*stage.get("deps", []), *stage.get("outs", [])]:
            path = entry["path"]
            # What DVC keeps is found by its digest, so it is the right one.
            in_git = entry.get("hash") == "md5" and not Path(path).is_absolute() and not fs.isdvc(path)
            # Of folders those of code: of one with a source's images git may have a part.
            is_data = "nfiles" in entry and not fs.exists(f"{path}/__init__.py")
            # Nor has it weights that it ignores.
            is_data |= Path(path).is_relative_to(WEIGHTS) and not fs.exists(path)
            if in_git and not is_data and _digest(fs, path) != entry.get("md5"):
                changed[path] = None
    if changed:
        raise InputError(f"committed without dvc repro: {listed(changed)}")


def _value(values: Any, key: str) -> object:
    """Return what stands under a dotted key, None if nothing does."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _digest(fs: "DVCFileSystem", path: str) -> str:
    """Return the digest of a file or folder in git as dvc.lock has it, "" if there is none."""
    if not fs.exists(path):
        return ""
    if not fs.isdir(path):
        return _md5(fs.read_bytes(path))
    files = {PurePosixPath(file).relative_to(f"/{path}"): _md5(fs.read_bytes(file)) for file in fs.find(f"/{path}")}
    entries = [{"md5": digest, "relpath": str(file)} for file, digest in sorted(files.items())]
    return _md5(json.dumps(entries).encode()) + ".dir"


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def copied(fs: "DVCFileSystem", path: str, folder: Path) -> bool:
    """Copy a file or folder into `folder`; return whether git, DVC's cache or a remote has it."""
    from dvc_data.index import DataIndexDirError

    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    try:
        fs.get(path, str(folder / path), recursive=True)
    except (FileNotFoundError, DataIndexDirError):
        return False
    return True
