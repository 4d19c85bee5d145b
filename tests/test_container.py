"""The image of the Dockerfile: its steps one by one on this machine.

One by one, they are carried out in a folder in the place of /repronet, with an empty environment and a HOME of its own.
The packages are this environment's: installing them takes minutes and gigabytes. The steps of root are not carried out,
since this system is nobody's to change; what they bring must be here. tests/test_deploy.py has the image of MLflow's
server made in the same way, with packages of its own, which uv installs in pip's place: its cache has them already.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.conftest import ROOT, Project, clean_environment

REPRODUCED = "git diff --quiet -- dvc.lock metrics && ! git status --porcelain | grep ."
# What a package of Debian brings, where that has another name.
BRINGS = {"ca-certificates": "/etc/ssl/certs/ca-certificates.crt", "python3-venv": "python3"}
AS_ROOT = [
    r"apt-get update",
    r"apt-get install --yes --no-install-recommends (?P<packages>[\w -]+)",
    r"rm -rf /var/lib/apt/lists/\*",
    r"useradd --create-home (?P<user>\w+)",
    r"install --directory --owner=(?P<owner>\w+) --group=(?P=owner) (?P<place>\S+)",
]


def steps(dockerfile: Path) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile, each with the rest of its line."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def rules() -> list[str]:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def ignored(path: str) -> bool:
    """Whether a file stays out of the image: as the last rule says that matches it, or a folder that it is in."""
    names = [path, *map(str, list(Path(path).parents)[:-1])]
    result = False
    for rule in rules():
        pattern = re.escape(rule.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if any(re.fullmatch(pattern, name) for name in names):
            result = not rule.startswith("!")
    return result


def copy(sources: list[str], context: Path, target: Path) -> None:
    """Copy as COPY does: what a name leads to in the context, without what is ignored; a file is as new as its copy."""
    for source in sources:
        files = [context / source] if (context / source).is_file() else (context / source).rglob("*")
        for file in files:
            name = str(file.relative_to(context))
            if file.is_file() and not ignored(name):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target / name)


def test_files_of_git_are_in_the_image_and_what_it_ignores_is_not() -> None:
    listed = subprocess.check_output(["git", "ls-files"], cwd=ROOT, env=clean_environment(), text=True).splitlines()
    assert [name for name in listed if ignored(name)] == []
    for folder in ("", ".dvc/"):
        for rule in (ROOT / folder / ".gitignore").read_text().splitlines():
            if rule and not rule.startswith("#"):
                anywhere = "" if rule.startswith("/") else "**/"
                assert f"{folder}{anywhere}{rule.strip('/')}" in rules()
    assert ignored("data/raw/flowers/roses/1.jpg")
    for name in ("flowers.dvc", "plants/flowers.dvc", "plants/.gitignore"):
        assert not ignored(f"data/raw/{name}")


@dataclass
class Image:
    """What stands in for an image: `root` is the folder in its WORKDIR's place."""

    root: Path
    environment: dict[str, str]
    workdir: str = ""
    user: str = "root"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)

    def here(self, text: str) -> str:
        """Say it with the place that this machine has for WORKDIR."""
        return text.replace(self.workdir, str(self.root)) if self.workdir else text

    def run(self, *command: str) -> None:
        own = [self.here(part) for part in command]
        done = subprocess.run(own, cwd=self.root, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{own}: {done.stdout}{done.stderr}"


def link_packages(image: Image) -> None:
    """Let the image have this environment's packages, before `make setup`, which makes no others then."""
    (image.root / ".venv").mkdir()
    for file in Path(sys.prefix).iterdir():
        (image.root / ".venv" / file.name).symlink_to(file)
    (image.root / ".venv/installed").unlink(missing_ok=True)
    (image.root / ".venv/installed").touch()


def by_uv(command: str) -> str:
    """Let uv do what pip is told."""
    uv = Path(sys.prefix, "bin/uv")
    cache = subprocess.check_output([uv, "cache", "dir"], text=True).strip()
    own = f"{uv} --cache-dir {shlex.quote(cache)} pip install --quiet --system-certs --python .venv/bin/python"
    return command.replace("pip install --no-cache-dir", own)


def carried_out(dockerfile: Path, context: Path, folder: Path) -> Image:
    """Carry out the steps of a Dockerfile in a new folder."""
    root, home = folder / "root", folder / "home"
    root.mkdir(parents=True)
    home.mkdir()
    # make finds no other Python: it would make the environment again, which the image must not.
    image = Image(root, {"PATH": os.defpath, "HOME": str(home), "PYTHON": "false"})
    arguments, found = dict[str, str](), dict[str, str]()
    for keyword, rest in steps(dockerfile):
        words = rest.split()
        match keyword:
            case "ARG":
                name, _, value = rest.partition("=")
                arguments[name] = value
            case "FROM":
                assert arguments[re.fullmatch(r"\$\{(\w+)\}", rest)[1]] == "debian:bookworm-slim"  # type: ignore[index]
            case "RUN" if image.user == "root":
                for command in rest.split(" && "):
                    matched = next(filter(None, (re.fullmatch(pattern, command) for pattern in AS_ROOT)), None)
                    assert matched, f"root runs what this test does not know: {command}"
                    found |= matched.groupdict()
                    for package in matched.groupdict().get("packages", "").split():
                        assert shutil.which(BRINGS.get(package, package)) or Path(BRINGS[package]).exists()
            case "USER":
                image.user = rest
                assert image.user == found["user"] == found["owner"]
            case "WORKDIR":
                image.workdir = rest
                assert rest == found["place"]
            case "ENV":
                for word in words:
                    name, _, value = word.partition("=")
                    image.environment[name] = image.here(value).replace("$PATH", image.environment["PATH"])
            case "COPY":
                assert words[0] == f"--chown={image.user}"
                copy(words[1:-1], context, root)
            case "RUN":
                if "make setup" in rest:
                    link_packages(image)
                build = {name: value for name, value in arguments.items() if name.startswith("UV_")}
                replace(image, environment=image.environment | build).run("sh", "-c", by_uv(rest))
            case "ENTRYPOINT":
                image.entrypoint = json.loads(rest)
            case "CMD":
                image.command = json.loads(rest)
            case _:
                pytest.fail(f"this test does not know {keyword}")
    assert image.user != "root"
    return image


def test_each_step_is_carried_out(make_project: Callable[[], Project], tmp_path: Path) -> None:
    context = make_project().root
    private = ["models/old", ".dvc/config.local", ".venv/own", "data/raw/own.jpg", "data/weights/own"]
    private += ["deploy/.env", ".git/config"]
    for name in private[:-1]:
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_text("")
    image = carried_out(ROOT / "Dockerfile", context, tmp_path / "image")
    assert [name for name in private if (image.root / name).exists()] == []
    image.run(*image.command)
    assert (image.root / "models/net.safetensors").exists()
    image.run("sh", "-c", REPRODUCED)
