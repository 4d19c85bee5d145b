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
from stages.tracking.git import GitError, git, git_bytes, prefix
from stages.tracking.params import given
from stages.tracking.result import PATCH, RECORD, RECORD_TAG, WEIGHTS
from tools.commits import cached, contents, is_whole, list_of
from tools.dvclock import digests_in
from tools.runs import PREDICTIONS

if TYPE_CHECKING:
    from mlflow.entities import Run

# The packages that compute or draw what is in an output.
COMPUTE = (
    *("llvmlite", "matplotlib", "numpy", "pandas", "pillow", "safetensors"),
    *("scikit_learn", "scipy", "timm", "torch", "torchvision"),
)
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
        return other_bits(run.data.tags, given(run), record) or self._lost(run, record)

    def _lost(self, run: "Run", record: Path) -> str:
        tags, patch = run.data.tags, record / PATCH
        if int(tags.get(RECORD_TAG, RECORD)) > RECORD:
            return "of later code"
        if not (commit := tags.get("mlflow.source.git.commit")):
            return "logged without a commit"
        if tags.get("git.untracked"):
            return "with new files that were too large for their record"
        if tags.get("git.dirty") != "false" and not patch.exists():
            return "of other files than their commit's, without a patch"
        if lacks := [
            name for name in ("params.yaml", "dvc.yaml", "dvc.lock", PREDICTIONS) if not (record / name).exists()
        ]:
            return f"without {lacks[0]}"
        files = self._files_of(commit, patch.read_bytes() if patch.exists() else b"")
        if isinstance(files, str):
            return files
        for name in ("params.yaml", "dvc.yaml"):
            content = (record / name).read_bytes()
            if files.get(name, ("", ""))[1] != hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest():
                return f"whose {name} is not the one of their commit and patch"
        lock = (record / "dvc.lock").read_text(encoding="utf-8")
        read, made = digests_in(lock, "deps"), digests_in(lock, "outs")
        if set(read) != {"prepare", "train"}:
            return "whose dvc.lock has other stages than today's"
        outs = {path for stage in made.values() for path in stage}
        for path, digest in {**read["prepare"], **read["train"]}.items():
            if path not in outs and (not digest or self._digest(files, path) != digest):
                return f"for which neither git nor DVC's cache has {path} as it was"
        return self._unreadable(record, made["prepare"])

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
            return self._digest_of_dvc(files, PurePosixPath(path))
        if any(mode not in ("100644", "100755") for mode, _ in there.values()):  # links, and other repositories
            return ""
        if new := {blob for _, blob in there.values()} - self._md5.keys():
            self._md5 |= {blob: _md5(text) for blob, text in contents(new, self._clone).items()}
        if path in there:
            return self._md5[there[path][1]]
        return _of_list({name.removeprefix(f"{path}/"): self._md5[blob] for name, (_, blob) in there.items()})

    def _digest_of_dvc(self, files: Files, path: PurePosixPath) -> str:
        kept = next((one for one in (path, *path.parents) if f"{one}.dvc" in files), None)
        if kept is None:
            return ""
        text = next(iter(contents([files[f"{kept}.dvc"][1]], self._clone).values())).decode(errors="replace")
        digests = DIGEST.findall(text)
        if len(digests) != 1 or "hash: md5" not in text or not is_whole(digests[0]):
            return ""
        if kept == path or not digests[0].endswith(".dir"):
            return digests[0] if kept == path else ""
        listed_there = list_of(digests[0])
        inner = str(path.relative_to(kept))
        below = {
            name.removeprefix(f"{inner}/"): digest
            for name, digest in listed_there.items()
            if name.startswith(f"{inner}/")
        }
        return listed_there.get(inner) or (_of_list(below) if below else "")

    def _unreadable(self, record: Path, prepared: Mapping[str, str]) -> str:
        """Return why today's code could not bring weights back that are made again, "" if it could."""
        from stages.batches.prepared import DatasetInfo
        from stages.nets.weights import load_weights  # with torch

        try:
            for file in (record / WEIGHTS).glob("*"):
                load_weights(file)
            for digest in prepared.values():
                info = list_of(digest).get("dataset.json", "")
                if info and cached(info).exists():
                    folder = Path(self._folder.name, digest)
                    folder.mkdir(exist_ok=True)
                    (folder / "dataset.json").write_bytes(cached(info).read_bytes())
                    DatasetInfo(folder)
        except InputError:
            return "whose weights or data today's code does not read"
        return ""


def other_bits(tags: Mapping[str, str], params: Mapping[str, str], record: Path) -> str:
    """Return why what is made here now would have other bits than a run has, "" if it would not."""
    recorded: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        recorded = json.loads((record / "environment.json").read_bytes())
    had, level = recorded.get("packages"), params.get("train.determinism")
    if not had or not all(tags.get(f"env.{name}") for name in ("python", "torch", "numpy", "cpu", "device", "threads")):
        return "that do not say what they were made with"
    if level in (None, "off"):
        return "whose bits are left open: train.determinism is off"
    if params.get("prepare.source") not in ("digits", "fashion_mnist", "folder", "csv"):
        return "of a source of your own, which may read what nobody keeps"
    if (
        params.get("prepare.source") == "fashion_mnist"
        and params.get("prepare.path") == str(NOTHING)
        and not _has_fashion()
    ):
        return "of Fashion-MNIST, which is not here"
    if tags["env.device"] != "cpu" and (not recorded.get("gpu") or recorded["gpu"] != _gpu()):
        return f"made on {tags['env.device']}, with other drivers than here, or none"
    is_portable = level == instructions.PORTABLE and tags["env.device"] == "cpu"
    is_portable &= tags.get("env.cpu_capability") == "AVX2" and instructions.has_avx2()
    if not is_portable and tags["env.cpu"] != instructions.cpu_model():
        return f"made on another CPU: {tags['env.cpu']}"
    if params.get("train.processes", "1") != "1":
        return "of several processes, which may have been on several machines"
    if params.get("train.threads", AUTO) == AUTO and tags["env.threads"] != str(thread_count(AUTO)):
        return f"made with {tags['env.threads']} threads, where train.threads: auto gives {thread_count(AUTO)} here"
    now = _now()
    before = {name: had.get(name) for name in now} | {"python": tags["env.python"], "torch": tags["env.torch"]}
    if others := [name for name in now if before[name] != now[name]]:
        return f"made with other versions than here: {listed(f'{name} {before[name]}' for name in others)}"
    return ""


@cache
def _now() -> dict[str, str | None]:
    """Return the versions of Python, and of what computes, here."""
    from stages.tracking.environment import packages  # with torch

    there = packages()
    import torch

    return {name: there.get(name) for name in COMPUTE} | {
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


@cache
def _gpu() -> dict[str, str]:
    import torch

    from stages.tracking.environment import gpu

    return gpu(torch.device("cuda")) if torch.cuda.is_available() else {}


def _has_fashion() -> bool:
    from stages.sources.published import DEBIAN, DOWNLOADS, FASHION_MNIST

    folders = DEBIAN, DOWNLOADS.expanduser() / "FashionMNIST" / "raw"
    return any(all(list(folder.glob(f"{name}*")) for name in FASHION_MNIST) for folder in folders)


def _of_list(files: Mapping[str, str]) -> str:
    """Return the digest of a folder, as DVC computes it, with the files of these digests by their paths in it."""
    entries = [{"md5": files[name], "relpath": name} for name in sorted(files, key=PurePosixPath)]
    return _md5(json.dumps(entries).encode()) + ".dir"


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()
