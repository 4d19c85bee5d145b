"""Whether a run could be made again here, bit for bit: what it was made of is compared with what git and DVC have."""

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stages.base import instructions
from stages.base.errors import InputError, listed
from stages.base.params import NOTHING
from stages.base.processes import AUTO, thread_count
from stages.tracking.artifacts import models_of
from stages.tracking.git import GitError, git, git_bytes, prefix
from stages.tracking.params import given
from stages.tracking.result import PATCH, RECORD, RECORD_TAG, RESUMED_TAG, TAKEN_UP_TAG, WEIGHTS, WEIGHTS_TAG
from tools.commits import contents, file_digests, is_intact
from tools.dvclock import digests_in, weights_digest
from tools.runs import PREDICTIONS

if TYPE_CHECKING:
    from mlflow.entities import Run

# The packages that no result depends on.
NO_PART = {"mypy", "pip", "pre_commit", "pytest", "repronet", "ruff", "setuptools", "uv"}
DIGEST = re.compile(r"\b[0-9a-f]{32}(?:\.dir)?\b")

Files = dict[str, tuple[str, str]]  # of a commit with a patch, by their paths in the project: mode and blob


class Origins:
    """What runs were made of. What they share is read once."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory()  # of a repository with an index of its own, where patches are applied
        self._clone = Path(self._folder.name, "clone")
        self._above = "" if prefix() == Path() else f"{prefix()}/"  # of the project in the repository
        self._md5: dict[str, str] = {}  # by blobs

    def why_lost(self, run: "Run", record: Path) -> str:
        """Return why a run could not be had again, "" if it could; `record` is the folder of its artifacts."""
        tags = run.data.tags
        if lacks := [
            name for name in ("params.yaml", "dvc.yaml", "dvc.lock", PREDICTIONS) if not (record / name).is_file()
        ]:
            return f"without {lacks[0]}"
        if not models_of(run):
            return "without a model"
        if "seconds/training" not in run.data.metrics:  # the last that a training logs
            return "whose training was not seen to its end"
        lock = (record / "dvc.lock").read_text(encoding="utf-8", errors="replace")
        return (
            other_bits(tags, given(run), record)
            or self._other_sources(tags, record, lock)
            or other_weights(record, tags.get(WEIGHTS_TAG, ""), weights_digest(lock))
        )

    def _other_sources(self, tags: Mapping[str, str], record: Path, lock: str) -> str:
        patch = record / PATCH
        if tags.get(RECORD_TAG, str(RECORD)) != str(RECORD):
            return "of other code"
        if not (commit := tags.get("mlflow.source.git.commit")):
            return "logged without a commit"
        if tags.get("git.untracked"):
            return "with new files that were too large for their record"
        if tags.get("git.dirty") != "false" and not patch.is_file():
            return "of other files than their commit's, without a patch"
        files = self._files_of(commit, patch.read_bytes() if patch.is_file() else b"")
        if isinstance(files, str):
            return files
        for name in ("params.yaml", "dvc.yaml"):
            content = (record / name).read_bytes()
            if files.get(name, ("", ""))[1] != hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest():
                return f"whose {name} is not the one of their commit and patch"
        read, made = digests_in(lock, "deps"), digests_in(lock, "outs")
        if set(read) != {"prepare", "train"}:
            return "whose dvc.lock has other stages than today's"
        for path, digest in {**read["prepare"], **read["train"]}.items():
            if path in made["prepare"]:  # other packages may prepare otherwise, and it is not known which did
                if not digest or made["prepare"][path] != digest or not is_intact(digest):
                    return f"of which DVC's cache has not all of {path}"
            elif not digest or self._digest(files, path) != digest:
                return f"for which neither git nor DVC's cache has {path} as it was"
        return ""

    def _files_of(self, commit: str, patch: bytes) -> Files | str:
        """Return the files of a commit with a patch, or why they cannot be had."""
        if not self._clone.exists():
            repository = git("rev-parse", "--show-toplevel").removesuffix("\n")
            git("clone", "-q", "--shared", "--no-checkout", repository, str(self._clone))
        try:
            git("read-tree", commit, folder=self._clone)
        except GitError:
            return "whose commit is not in this repository"
        try:
            if patch:
                git_bytes("apply", "--cached", folder=self._clone, stdin=patch)
        except GitError:
            return "whose patch does not fit their commit"
        files = {}
        for line in git("ls-files", "-z", "--stage", folder=self._clone).split("\0")[:-1]:
            about, path = line.split("\t", 1)
            if path.startswith(self._above):
                files[path.removeprefix(self._above)] = about.split()[0], about.split()[1]
        return files

    def _digest(self, files: Files, path: str) -> str:
        """Return the digest, as dvc.lock has it, of what git or DVC's cache has of a path, "" if neither has all."""
        there = {name: about for name, about in files.items() if name == path or name.startswith(f"{path}/")}
        if not there:
            return self._digest_of_dvc(files.get(f"{path}.dvc", ("", ""))[1])
        if any(mode not in ("100644", "100755") for mode, _ in there.values()):  # links, and other repositories
            return ""
        if new := {blob for _, blob in there.values()} - self._md5.keys():
            self._md5 |= {blob: _md5(text) for blob, text in contents(new, self._clone).items()}
        found = {name: self._md5.get(there[name][1], "") for name in sorted(there, key=PurePosixPath)}
        if path in there:
            return found[path]
        entries = [{"md5": digest, "relpath": name.removeprefix(f"{path}/")} for name, digest in found.items()]
        return _md5(json.dumps(entries).encode()) + ".dir"

    def _digest_of_dvc(self, blob: str) -> str:
        text = b"".join(contents([blob], self._clone).values() if blob else ()).decode(errors="replace")
        digests = DIGEST.findall(text)
        return digests[0] if len(digests) == 1 and "hash: md5" in text and is_intact(digests[0]) else ""


def other_bits(tags: Mapping[str, str], params: Mapping[str, str], record: Path) -> str:
    """Return why what is made here now would have other bits than a run has, "" if it would not."""
    from stages.tracking.environment import cpu_flags  # with torch

    recorded: dict[str, Any] = {}
    with suppress(OSError, ValueError, TypeError):
        recorded = dict(json.loads((record / "environment.json").read_bytes()))
    had, level, device = recorded.get("packages"), params.get("train.determinism"), tags.get("env.device")
    if not had or not all(tags.get(f"env.{name}") for name in ("python", "torch", "cpu", "device", "threads")):
        return "that do not say what they were made with"
    if {"training", TAKEN_UP_TAG, RESUMED_TAG} & tags.keys() or params.get("train.processes", "1") != "1":
        return "of several processes, which may have been on several machines, or of none that is known"
    if level in (None, "off"):
        return "whose bits are left open: train.determinism is off"
    source, path = params.get("prepare.source"), params.get("prepare.path")
    if source not in ("digits", "folder", "csv") and (source != "fashion_mnist" or path in (None, str(NOTHING))):
        return f"of {source}, whose images may come from elsewhere than git and DVC"
    if params.get("prepare.shards_to", "null") != "null":
        return "whose images are in a storage, which may lose them"
    gpu = _gpu()
    if device == "cpu" and gpu and params.get("train.device") != "cpu":
        return "made on a CPU, where train.device: auto takes a GPU here"
    if device != "cpu" and (not gpu or recorded.get("gpu") != gpu):
        return f"made on {device}, with other drivers than here, or none"
    is_portable = level == instructions.PORTABLE and device == "cpu"
    is_portable &= tags.get("env.cpu_capability") == "AVX2" and instructions.has_avx2()
    # Many CPUs share a name, above all in a cloud.
    flags = dict(recorded.get("cpu", {})).get("flags")
    if not is_portable and (tags["env.cpu"] != instructions.cpu_model() or flags != cpu_flags()):
        return f"made on another CPU: {tags['env.cpu']}"
    threads = params.get("train.threads", AUTO)
    if tags["env.threads"] != (threads := str(thread_count(AUTO)) if threads == AUTO else threads):
        return f"made with {tags['env.threads']} threads, and not with {threads} as here"
    before = had | {"python": tags["env.python"], "torch": tags["env.torch"], "system": libc(recorded.get("os", ""))}
    if others := [name for name in before if name not in NO_PART and before[name] != _now().get(name)]:
        return f"made with other versions than here: {listed((f'{name} {before[name]}' for name in others), 3)}"
    return ""


def libc(system: str) -> str:
    """Return the C library that a system's description ends with; on macOS and Windows all of it, with the version."""
    return system.rpartition("-with-")[2]


def other_weights(record: Path, digest: str, md5: str) -> str:
    """Return why a run's weights are not the file that its tag (SHA-256) and its dvc.lock (MD5) name, "" if they are.

    They are today's code's to read, too, which has to bring them back.
    """
    from stages.nets.weights import load_weights  # with torch

    files = [*(record / WEIGHTS).rglob("*")]
    if len(files) != 1 or files[0].is_symlink() or not files[0].is_file():
        return "that have not one file of weights"
    about = files[0].stat()
    if file_digests(files[0], about.st_ino, about.st_mtime_ns, about.st_size) != (digest, md5):
        return "whose weights are others than their tag or their dvc.lock names"
    try:
        load_weights(files[0])
    except InputError:
        return "whose weights today's code does not read"
    return ""


@cache
def _now() -> dict[str, str]:
    """Return the versions of packages and of Python here."""
    import torch

    from stages.tracking.environment import packages

    versions = {"python": platform.python_version(), "torch": torch.__version__, "system": libc(platform.platform())}
    return packages() | versions


@cache
def _gpu() -> dict[str, str]:
    """Return what `auto` takes here if it is no CPU, and its drivers, where that is known; {} if it is one."""
    import torch

    from stages.tracking.environment import gpu

    if torch.cuda.is_available():
        return gpu(torch.device("cuda"))
    return {"name": "mps"} if torch.backends.mps.is_available() else {}


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
