"""What the nodes of a cluster can reach: code by git's remote, data by DVC's."""

from collections.abc import Collection
from pathlib import Path

from stages.base.errors import InputError, listed
from stages.base.text import shown_url
from stages.tracking.git import git, untracked
from tools.sweep.copies import dvc

OF_REMOTE = ("url", "endpointurl", "region", "profile", "user", "port")  # what of DVC's remote is no secret


def reachable(baseline: str, remote: str) -> tuple[str, str]:
    """Let git's remote have the commit; return the remote's URL, and the ref that has it there. Raises InputError."""
    if remote not in (remotes := git("remote").split()):
        accepted = f"accepted: {listed(remotes)}" if remotes else "there is none: git remote add origin URL"
        raise InputError(f"--git-remote {remote!r}: nodes get the code from a remote of git; {accepted}")
    url, ref = git("ls-remote", "--get-url", remote).strip(), f"refs/repronet/baselines/{baseline}"
    git("push", "-q", remote, f"{baseline}:{ref}")
    return str(Path(url).resolve()) if Path(url).exists() else url, ref


def dvc_settings() -> tuple[str, bool]:
    """Return what .dvc/config.local has on a node, and whether .dvc/config names a cache that nodes share.

    Raises InputError if there is no remote.
    """
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
    return text, "dir" in Config.from_cwd(validate=False).read("repo").get("cache", {})


def check_reaches(template: Path) -> None:
    """Raise InputError if experiments here would have files that neither git nor DVC has, so that no node does."""
    own = (":(exclude).dvc/config.local", ":(exclude).dvc/tmp", ":(exclude).dvc/cache")
    added = {f":(exclude,literal){name}" for name in git("diff", "--name-only", "--diff-filter=A", "HEAD").splitlines()}
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
