"""The image of the Dockerfile: its steps one by one on this machine.

One by one, they are carried out in a folder in the place of /repronet, with an empty environment and a HOME of its own.
The packages are this environment's: installing them takes minutes and gigabytes. The steps of root are not carried out,
since this system is nobody's to change; what they bring must be here.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, Project, clean_environment

PLACE = "/repronet"
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


def steps() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, each with the rest of its line."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
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


def test_each_step_is_carried_out(make_project: Callable[[], Project], tmp_path: Path) -> None:
    context, place, home = make_project(), tmp_path / "repronet", tmp_path / "home"
    private = ["models/old", ".dvc/config.local", ".venv/own", "data/raw/own.jpg", "data/weights/own", ".git/config"]
    for name in private[:-1]:
        (context.root / name).parent.mkdir(parents=True, exist_ok=True)
        (context.root / name).write_text("")
    place.mkdir()
    home.mkdir()
    # make finds no other Python: it would make the environment again, which the image must not.
    environment = {"PATH": os.defpath, "HOME": str(home), "PYTHON": "false"}
    arguments, user, found = dict[str, str](), "root", dict[str, str]()

    def run(*command: str) -> None:
        command = tuple(part.replace(PLACE, str(place)) for part in command)
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    for keyword, rest in steps():
        words = rest.split()
        match keyword:
            case "ARG":
                name, _, value = rest.partition("=")
                arguments[name] = value
            case "FROM":
                assert arguments[re.fullmatch(r"\$\{(\w+)\}", rest)[1]] == "debian:bookworm-slim"  # type: ignore[index]
            case "RUN" if user == "root":
                for command in rest.split(" && "):
                    matched = next(filter(None, (re.fullmatch(pattern, command) for pattern in AS_ROOT)), None)
                    assert matched, f"root runs what this test does not know: {command}"
                    found |= matched.groupdict()
                    for package in matched.groupdict().get("packages", "").split():
                        assert shutil.which(BRINGS.get(package, package)) or Path(BRINGS[package]).exists()
            case "USER":
                user = rest
                assert user == found["user"] == found["owner"]
            case "WORKDIR":
                assert rest == PLACE == found["place"]
            case "ENV":
                for word in words:
                    name, _, value = word.partition("=")
                    environment[name] = value.replace(PLACE, str(place)).replace("$PATH", environment["PATH"])
            case "COPY":
                assert words[0] == f"--chown={user}"
                copy(words[1:-1], context.root, place)
            case "RUN":
                if "make setup" in rest:
                    (place / ".venv").mkdir()
                    for file in Path(sys.prefix).iterdir():
                        (place / ".venv" / file.name).symlink_to(file)
                    (place / ".venv/installed").unlink(missing_ok=True)
                    (place / ".venv/installed").touch()
                    environment |= {name: value for name, value in arguments.items() if name.startswith("UV_")}
                run("sh", "-c", rest)
            case "CMD":
                run(*json.loads(rest))
            case _:
                pytest.fail(f"this test does not know {keyword}")

    assert user != "root"
    assert keyword == "CMD"
    assert [name for name in private if (place / name).exists()] == []
    assert (place / "models/net.safetensors").exists()
    run("sh", "-c", REPRODUCED)
