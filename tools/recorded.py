"""Results as DVC records them, in experiments, in commits and in the workspace, and how to get at their files."""

import json
import shlex
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stages.base.errors import InputError, unknown
from stages.base.text import shown_url
from stages.tracking import provenance
from stages.tracking.git import GitError, git, git_bytes
from stages.tracking.provenance import Provenance
from stages.tracking.result import ResultFiles
from tools import facts
from tools.commits import at_commit, check_commit, copied, still_missing, text_at
from tools.dvclock import arguments_of, as_yaml, digests_of, files_of, stages_of


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
        known = facts.of(self.commit)
        if known.unusable:
            raise InputError(known.unusable)
        if missing := still_missing(known.missing):
            raise InputError(self._where_to_get(missing))
        fs = at_commit(self.commit)
        lock = as_yaml(fs.read_bytes("dvc.lock") if fs.exists("dvc.lock") else b"")
        try:
            weights, prepared, *others = arguments_of(lock)
            check_commit(lock, fs)
        except InputError as error:
            facts.add(self.commit, unusable=str(error))
            raise
        with TemporaryDirectory() as folder:
            paths = ["params.yaml", "dvc.yaml", "dvc.lock", weights, f"{prepared}/dataset.json", *others]
            if missing := [path for path in paths if not copied(fs, path, Path(folder))]:
                if not fs.repo.config["remote"]:  # which may get them; there are the commit's own, too
                    facts.add(self.commit, missing=_digests(lock, missing))
                raise InputError(self._where_to_get(missing))
            try:
                yield files_of(lock, Path(folder))
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
        if f'remote "{name}"' not in text_at(self.commit, ".dvc/config"):
            push = f"dvc remote add --local -f -d {name} {shlex.quote(url)} && {push}"
        return f"{lacks}, and so does the remote {name} ({url}). In the clone that has them: {push}"


def everything() -> list[RecordedResult]:
    """Return the results of all experiments, of the commits of HEAD and all branches, and of the workspace."""
    order = ["--full-history", "--topo-order", "--reverse", "--format=%H"]
    commits: dict[str, str] = {}
    # There is no HEAD before the first commit.
    for commit in git("log", *order, "--ignore-missing", "HEAD", "--branches", "--", "dvc.lock").split():
        # Many a commit changes code, and dvc.lock with it, but no result: of these the last stands for all.
        if identity := _identity(commit):
            commits.pop(identity, None)
            commits[identity] = commit
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


def _identity(commit: str) -> str:
    """Return what is equal for commits of the same result: params.yaml and the outputs. "" if it holds none."""
    identity = facts.of(commit).identity
    if identity is None:
        identity, stages = "", {}
        if git("ls-tree", commit, "dvc.lock"):
            stages = stages_of(as_yaml(git_bytes("show", f"{commit}:./dvc.lock")))
        if "evaluate" in stages:
            identity = json.dumps(
                [git("ls-tree", commit, "params.yaml"), digests_of({"stages": stages}, "outs")], sort_keys=True
            )
        facts.add(commit, identity=identity)
    return identity


def _digests(lock: dict[str, Any], paths: list[str]) -> dict[str, str]:
    """Return the digests of the outputs that these files are, or are in; {} if one is none."""
    outputs = digests_of(lock, "outs").items()
    found = {path: digest for path in paths for output, digest in outputs if Path(path).is_relative_to(output)}
    return found if len(found) == len(paths) else {}


def check_workspace() -> None:
    """Raise InputError if the workspace is not what dvc.lock says, or if DVC is at work in it.

    The latter has no public way: `dvc status --json` ends as it does for any other failure.
    """
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
