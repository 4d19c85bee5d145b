"""What the nodes of a cluster can reach: code by git's remote, data by DVC's."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from stages.base.errors import InputError, listed
from stages.base.text import shown_url
from stages.tracking.git import git, untracked
from tools.sweep.copies import dvc

OF_REMOTE = ("url", "endpointurl", "region", "profile", "user", "port")  # what of DVC's remote is no secret


LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class DvcSettings:
    """What a node is told of DVC's storage."""

    text: str  # .dvc/config.local there
    places: list[str]  # the addresses in it
    has_shared_cache: bool  # which .dvc/config names


def is_own(place: str) -> bool:
    """Return whether each machine has something else there, a folder that all share apart."""
    parts = urlsplit(place)
    return Path(place).is_absolute() or parts.scheme == "file" or parts.hostname in LOOPBACK


def url_of(remote: str) -> str:
    """Return the URL of git's remote. Raises InputError if there is none of this name."""
    if remote not in (remotes := git("remote").split()):
        accepted = f"accepted: {listed(remotes)}" if remotes else "there is none: git remote add origin URL"
        raise InputError(f"--git-remote {remote!r}: nodes get the code from a remote of git; {accepted}")
    url = git("ls-remote", "--get-url", remote).strip()
    return str(Path(url).resolve()) if Path(url).exists() else url


def send_commit(baseline: str, remote: str) -> str:
    """Let git's remote have the commit; return the ref that has it there. Raises InputError."""
    ref = f"refs/repronet/baselines/{baseline}"
    git("push", "-q", remote, f"{baseline}:{ref}")
    return ref


def dvc_settings() -> DvcSettings:
    """Return what nodes are told. Raises InputError if DVC has no remote, or one with a password in its address."""
    from dvc.config import Config

    config = Config.from_cwd(validate=False)
    name = config["core"].get("remote")
    if not name or name not in config["remote"]:
        raise InputError(
            "--cluster: nodes bring data and results to a remote of DVC, and none is the default:"
            " dvc remote add -d storage URL"
        )
    remote = {key: str(value) for key, value in config["remote"][name].items() if key in OF_REMOTE}
    if remote["url"] != shown_url(remote["url"]):
        raise InputError(f"--cluster: the DVC remote {name} has a password in its address, {shown_url(remote['url'])}")
    lines = [f"    {key} = {value}" for key, value in remote.items()]
    text = "\n".join(["[core]", f"    remote = {name}", f"['remote \"{name}\"']", *lines, ""])
    places = [remote[key] for key in ("url", "endpointurl") if key in remote]
    return DvcSettings(text, places, "dir" in config.read("repo").get("cache", {}))


def check_reaches(template: Path) -> None:
    """Raise InputError if experiments here would have files that neither git nor DVC has, so that no node does."""
    own = (":(exclude).dvc/config.local", ":(exclude).dvc/tmp", ":(exclude).dvc/cache")
    new = git("diff", "--name-only", "--relative", "-z", "--diff-filter=A", "HEAD").split("\0")
    added = {f":(exclude,literal){name}" for name in new if name}
    if missing := untracked(".", *own, *added, folder=template, ignored=True):
        raise InputError(f"--cluster: nodes would lack what neither git nor DVC has: {listed(missing, 5)}")


def send_data(inputs: Collection[Path]) -> None:
    """Let DVC's remote have what experiments read and DVC keeps. Raises InputError if it cannot."""
    files = [Path(name) for name in git("ls-files", "--", "*.dvc").splitlines()]
    kept = {file: file.with_suffix("") for file in files}
    read = [
        str(file)
        for file, data in kept.items()
        if any(one.is_relative_to(data) or data.is_relative_to(one) for one in inputs)
    ]
    if read:
        dvc("push", *read)
