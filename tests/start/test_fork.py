"""Stages as forks of a server that has imported the libraries: to all around them they are as without it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from stages.base.dvc import OWNER, identity
from stages.start.client import SERVER
from tests.conftest import ROOT, clean_environment, wait_until

# It says what it is, and then does what it is told.
PROBE = """
import json, os, signal, sys, time
from pathlib import Path
{before}
mask = os.umask(0)
print(json.dumps({{
    "arguments": sys.argv[1:],
    "command": sys.orig_argv[1:],
    "environment": dict(os.environ),
    "folder": os.getcwd(),
    "ignored": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
    "libraries": [name for name in sys.modules if "." not in name],
    "name": __name__,
    "number": os.getpid(),
    "umask": mask,
}}), flush=True)
print("to the error output", file=sys.stderr)
if "read" in sys.argv:
    print(sys.stdin.read(), end="")
while "wait" in sys.argv:
    time.sleep(0.01)
sys.exit(3 if "fail" in sys.argv else 0)
"""
RUN = "import sys; from stages.start.client import run_in_fork; run_in_fork('probe', sys.argv[1:]); print('not forked')"


class Owner:
    """A process whose stages share a server, and a folder with the module `probe`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.temporary = folder / "wörk", folder / ("long" * 30)
        self.folder.mkdir()
        self.temporary.mkdir()
        self.write()
        self.process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        self.clients: list[subprocess.Popen[str]] = []
        self.environment = clean_environment() | {
            OWNER: identity(self.process.pid),
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.temporary),
        }

    def write(self, before: str = "") -> None:
        (self.folder / "probe.py").write_text(PROBE.format(before=before))

    def start(self, *arguments: str, code: str = RUN, **environment: str) -> "subprocess.Popen[str]":
        client = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,  # whose parent is in another one: to others, Ctrl-Z does nothing
        )
        self.clients.append(client)
        return client

    def family(self) -> list[psutil.Process]:
        """The servers of this owner that live, and their forks."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if str(self.temporary) in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def servers(self) -> list[psutil.Process]:
        """The servers of this owner that live: their forks are of their session."""
        found = []
        for process in self.family():
            with suppress(ProcessLookupError):
                if os.getsid(process.pid) == process.pid:
                    found.append(process)
        return found

    @property
    def sockets(self) -> list[Path]:
        return list(self.temporary.glob(f"repronet-{os.getuid()}/*-*"))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()

    def end_all(self) -> None:
        self.end()
        for process in self.clients:
            process.kill()
            process.wait()


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Owner]:
    made = Owner(tmp_path)
    yield made
    made.end_all()
    until(lambda: not made.servers())
    assert made.sockets == []


until = partial(wait_until, seconds=60)


def said(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """What a probe that goes on has said of itself."""
    assert process.stdout is not None
    return dict(json.loads(process.stdout.readline()))


def test_a_fork_is_what_its_client_is(owner: Owner) -> None:
    before = "signal.signal(signal.SIGINT, signal.SIG_IGN); os.umask(0o027); "
    client = subprocess.Popen(
        [sys.executable, "-c", f"import os, signal; {before}{RUN}", "a b", "read", "fäil", "fail"],
        cwd=owner.folder,
        env=owner.environment | {"DVC_ROOT": "/some/where", "REPRONET_X": "a\nb"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    output, errors = client.communicate("what it reads\n")
    assert client.returncode == 3
    assert errors == "to the error output\n"
    first, rest = output.split("\n", 1)
    assert rest == "what it reads\n"
    fork = json.loads(first)
    assert fork["arguments"] == ["a b", "read", "fäil", "fail"]
    assert fork["command"][-4:] == fork["arguments"]
    assert fork["environment"].items() >= {"DVC_ROOT": "/some/where", "REPRONET_X": "a\nb"}.items()
    assert fork["folder"] == str(owner.folder)
    assert fork["ignored"]
    assert fork["name"] == "__main__"
    assert fork["number"] != client.pid
    assert fork["umask"] == 0o027


def test_libraries_are_imported_once_and_our_own_code_each_time(owner: Owner) -> None:
    until(lambda: {"torch", "mlflow"} <= set(described(owner)["libraries"]))
    [server] = owner.servers()
    owner.write(before="print('changed')")
    output, _ = owner.start().communicate()
    assert output.startswith("changed\n")
    assert "stages" not in described(owner, skip=1)["libraries"]
    assert owner.servers() == [server]


def described(owner: Owner, skip: int = 0) -> dict[str, Any]:
    output, errors = owner.start().communicate()
    assert errors == "to the error output\n"
    return dict(json.loads(output.splitlines()[skip]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_come_to_the_fork(owner: Owner, number: signal.Signals) -> None:
    owner.write(before=f"signal.signal({number:d}, lambda number, _: sys.exit(number))")
    client = owner.start("wait")
    said(client)
    client.send_signal(number)
    assert client.wait(timeout=60) == number


def test_a_stage_ends_in_order_where_all_processes_are_told_to(owner: Owner) -> None:
    owner.write(before="signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), sys.exit(7)))")
    client = owner.start("wait")
    stage = psutil.Process(said(client)["number"])
    for number in (stage.ppid(), stage.pid, client.pid):
        os.kill(number, signal.SIGTERM)
    assert client.wait(timeout=60) == 7


def test_a_fork_that_handles_no_signal_ends_by_it_and_so_does_its_client(owner: Owner) -> None:
    for which in ("client", "fork"):
        client = owner.start("wait")
        number = {"client": client.pid, "fork": said(client)["number"]}[which]
        os.kill(number, signal.SIGTERM)
        assert client.wait(timeout=60) == -signal.SIGTERM


def test_ctrl_z(owner: Owner) -> None:
    client = owner.start("wait")
    fork = psutil.Process(said(client)["number"])
    client.send_signal(signal.SIGTSTP)
    until(lambda: {fork.status(), psutil.Process(client.pid).status()} == {psutil.STATUS_STOPPED})
    client.send_signal(signal.SIGCONT)
    until(lambda: psutil.STATUS_STOPPED not in {fork.status(), psutil.Process(client.pid).status()})
    client.terminate()
    client.wait()


def test_who_is_killed_takes_the_stage_along_with_all_that_it_has_started(owner: Owner) -> None:
    owner.write(before="import subprocess; print(subprocess.Popen(['sleep', '100']).pid)")
    for which in ("client", "stage", "parent"):
        client = owner.start("wait")
        assert client.stdout is not None
        child = psutil.Process(int(client.stdout.readline()))
        stage = psutil.Process(said(client)["number"])
        os.kill({"client": client.pid, "stage": stage.pid, "parent": stage.ppid()}[which], signal.SIGKILL)
        assert client.wait(timeout=60) == -signal.SIGKILL
        psutil.wait_procs([stage], timeout=60)
        assert not stage.is_running()
        if which == "client":
            psutil.wait_procs([child], timeout=60)
            assert not child.is_running()
        else:
            child.kill()


def test_the_end_of_a_server_is_no_stage_s(owner: Owner) -> None:
    client = owner.start("wait")
    said(client)
    [server] = owner.servers()
    server.kill()
    [left] = owner.sockets
    assert owner.start().communicate()[0] != "not forked\n"
    assert owner.sockets == [left], "in whose place the next one's is"
    assert len(owner.servers()) == 1
    client.terminate()
    assert client.wait(timeout=60) == -signal.SIGTERM


def test_a_server_that_comes_to_nothing_costs_nothing(owner: Owner) -> None:
    no_server = f"from pathlib import Path; from stages.start import client; client.SERVER = Path('none.py'); {RUN}"
    assert owner.start(code=no_server).communicate()[0] == "not forked\n"
    [left] = owner.sockets
    left.unlink()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_before_the_stage_has_begun_a_signal_ends_its_client_at_once(owner: Owner, number: signal.Signals) -> None:
    owner.write(before="print('begun', flush=True); Path('begun').touch()")
    owner.start().communicate()
    (owner.folder / "begun").unlink()
    [server] = owner.servers()
    server.suspend()
    client = owner.start("wait")
    until(lambda: signal.SIGTERM in handled(client.pid))
    client.send_signal(number)
    assert client.wait(timeout=60) == -number
    server.resume()
    assert json.loads(owner.start().communicate()[0].removeprefix("begun\n"))["arguments"] == []
    until(lambda: len(owner.family()) == 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_the_client_has_read_that_the_stage_has_begun(owner: Owner, number: signal.Signals) -> None:
    owner.write(before=f"signal.signal({number:d}, lambda number, _: sys.exit(number))")
    slow = "import time; from stages.start import client; answer = client._answer\n"
    slow += "client._answer = lambda *given: time.sleep(2) or answer(*given)\n"
    client = owner.start("wait", code=slow + RUN)
    said(client)
    client.send_signal(number)
    assert client.wait(timeout=60) == number


def test_a_stage_that_is_killed_before_it_has_begun_is_run_without_a_fork(owner: Owner) -> None:
    code = f"import sys; sys.path.insert(0, {str(SERVER.parent)!r}); import server; server.LIBRARIES = ()\n"
    code += f"import os; die = lambda: (os.mkdir({str(owner.folder / 'killed')!r}), os.kill(os.getpid(), 9))\n"
    code += "server.os.setpgid = lambda number, _: number or die()\n"
    code += "server.main()"
    (owner.folder / "server.py").write_text(code)
    server = (
        f"from pathlib import Path; from stages.start import client; client.SERVER = Path('{owner.folder}/server.py')"
    )
    client = owner.start(code=f"{server}; {RUN}")
    assert client.communicate(timeout=60)[0] == "not forked\n"
    assert (owner.folder / "killed").exists()


def test_a_signal_while_the_fork_becomes_the_stage(owner: Owner) -> None:
    code = f"import sys; sys.path.insert(0, {str(SERVER.parent)!r}); import server; server.LIBRARIES = ()\n"
    code += "import os, signal, runpy; became = server.become\n"
    code += "def become(request): os.kill(os.getpid(), signal.SIGINT); became(request)\n"
    code += "server.become = become; server.main()"
    (owner.folder / "server.py").write_text(code)
    server = (
        f"from pathlib import Path; from stages.start import client; client.SERVER = Path('{owner.folder}/server.py')"
    )
    client = owner.start("wait", code=f"{server}; {RUN}")
    assert client.wait(timeout=60) == -signal.SIGINT


def handled(number: int) -> set[int]:
    """The signals that a process handles by itself."""
    [mask] = re.findall(r"^SigCgt:\s*(\w+)$", Path(f"/proc/{number}/status").read_text(), flags=re.MULTILINE)
    return {each for each in signal.valid_signals() if int(mask, 16) >> (each - 1) & 1}


@pytest.mark.parametrize("redirection", ["0<&-", "1>&-", "2>&-"])
def test_with_a_closed_descriptor_there_is_no_fork(owner: Owner, redirection: str) -> None:
    run = RUN.replace("print('not forked')", "open('direct', 'w').close()")
    command = ["bash", "-c", f'"$@" {redirection}', "bash", sys.executable, "-c", run]
    assert subprocess.run(command, cwd=owner.folder, env=owner.environment, timeout=60).returncode == 0
    assert (owner.folder / "direct").exists()
    assert owner.servers() == []


def test_where_ended_children_are_not_waited_for(owner: Owner) -> None:
    code = f"import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); {RUN}"
    assert owner.start("fail", code=code).wait(timeout=60) == 3


def test_several_that_start_at_once_share_a_server(owner: Owner) -> None:
    outputs = [client.communicate()[0] for client in [owner.start() for _ in range(8)]]
    assert len({json.loads(output)["number"] for output in outputs}) == 8
    assert len(owner.servers()) == 1


def test_other_settings_are_another_server_s(owner: Owner) -> None:
    for environment in ({}, {"OMP_NUM_THREADS": "3"}, {"DVC_STAGE": "train"}, {"CUDA_VISIBLE_DEVICES": "1"}):
        output, _ = owner.start(**environment).communicate()
        assert json.loads(output)["environment"].items() >= environment.items()
    assert len(owner.servers()) == 2


def test_a_server_ends_with_its_owner_and_lets_its_stages_be(owner: Owner) -> None:
    client = owner.start("wait")
    said(client)
    owner.end()
    until(lambda: owner.sockets == [])
    assert owner.start().communicate()[0] == "not forked\n"
    until(lambda: not owner.servers())
    assert client.poll() is None
    client.terminate()
    assert client.wait() == -signal.SIGTERM


def test_a_server_that_nobody_uses_ends(owner: Owner) -> None:
    code = f"import sys; sys.path.insert(0, {str(SERVER.parent)!r}); import server; server.IDLE_SECONDS = 0.5"
    code += "; server.LIBRARIES = (); server.main()"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(owner.folder / "s"))
        listener.listen()
        command = [sys.executable, "-c", code, str(owner.folder / "s"), str(owner.process.pid)]
        assert subprocess.run(command, stdin=listener.fileno(), timeout=60).returncode == 0
    assert not (owner.folder / "s").exists()


def test_a_server_can_be_begun_before_its_first_stage(owner: Owner) -> None:
    code = "import os; from stages.start.client import begin; begin(os.environ)"
    assert owner.start(code=code).wait(timeout=60) == 0
    [server] = owner.servers()
    said(owner.start("wait", DVC_STAGE="train"))
    assert owner.servers() == [server]


def test_without_a_server_a_stage_imports_for_itself(owner: Owner) -> None:
    assert owner.start(REPRONET_FORKSERVER="off").communicate()[0] == "not forked\n"
    assert owner.start(REPRONET_OWNER="").communicate()[0] == "not forked\n"


def test_a_folder_that_others_can_enter_is_not_used(owner: Owner) -> None:
    folder = owner.temporary / f"repronet-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o755)
    assert owner.start().communicate()[0] == "not forked\n"
    folder.rmdir()
    folder.symlink_to(owner.folder)
    assert owner.start().communicate()[0] == "not forked\n"
    folder.unlink()
    assert owner.servers() == []
