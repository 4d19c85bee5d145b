"""What every experiment of a sweep works in a copy of."""

from collections.abc import Collection
from pathlib import Path

from stages.tracking.git import git, git_bytes, prefix
from tools.sweep import overrides
from tools.sweep.copies import copy_repository
from tools.sweep.experiments import Description
from tools.sweep.results import taken


class Template:
    """A copy of the repository at `folder`, made when it is first needed: baseline and patch are a sweep's own."""

    def __init__(self, folder: Path, inputs: Collection[Path]) -> None:
        """`inputs` are files and folders of the user that experiments read."""
        self._folder, self._inputs = folder, inputs

    def made(self, description: Description) -> Path:
        """Return its folder. Raises InputError where it cannot be made."""
        if not self._folder.exists():
            copy_repository(self._folder, description.baseline, description.patch, self._inputs)
        return self._folder

    def check(self, description: Description, commit: str) -> None:
        """Raise InputError if a commit is not what the experiment would come to: it has other params or code."""
        folder = self.made(description) / prefix()
        expected = overrides.check(description.overrides, (folder / "params.yaml").read_text(encoding="utf-8"))
        if overrides.check([], git("show", f"{commit}:./params.yaml")) != expected:
            raise taken(description.name, "params")
        others = (":(exclude)params.yaml", ":(exclude)dvc.lock", ":(exclude)metrics")
        changed, deleted = (
            git("diff", "--name-only", "-z", f"--diff-filter={which}", commit, "--", ".", *others, folder=folder)
            for which in ("d", "D")
        )
        # What git does not track in the copy, the experiment's commit holds, since the stages depend on it.
        if changed or not all(self._holds(name, commit) for name in deleted.split("\0") if name):
            raise taken(description.name, "code")

    def _holds(self, name: str, commit: str) -> bool:
        file = self._folder / name
        return file.is_file() and file.read_bytes() == git_bytes("show", f"{commit}:{name}")
