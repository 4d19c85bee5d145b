"""The process that a stage is to DVC, the shell and the terminal. Its work is done by a fork of the server."""

import fcntl
import hashlib
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from stages.base.dvc import CLIENT, OWNER, owner
from stages.base.processes import STOPPING

SWITCH = "REPRONET_FORKSERVER"  # "off": every stage imports for itself
# What a stage's environment may have other than its server's: libraries do not read it when they are imported.
OWN = (
    *("DVC_", "GIT_", "REPRONET_", "MLFLOW_EXPERIMENT_", "MLFLOW_HTTP_", "MLFLOW_TRACKING_"),
    *("CUBLAS_WORKSPACE_CONFIG=", "CUDA_VISIBLE_DEVICES=", "OLDPWD=", "PWD=", "SHLVL=", "_="),
)
FORWARDED = (*STOPPING, signal.SIGCONT)
SERVER = Path(__file__).with_name("server.py")
BEGUN = b"+"  # what the number of a stage comes with
WAITING = 64  # stages that a server may have before it


def run_in_fork(module: str, arguments: Sequence[str]) -> None:
    """Run a module as a fork of the server, and end as it ends. Return if there is no server, and none can be had.

    One is shared by all stages of one DVC, or one sweep, that have the same environment.
    """
    if sys.platform != "linux" or os.environ.get(SWITCH) == "off" or not (process := owner()):
        return
    os.environ[OWNER] = process
    try:
        for descriptor in range(3):
            os.fstat(descriptor)
        connection = _connected(process, os.environ)
        request = os.memfd_create("request")
        os.write(request, json.dumps(_request(module, arguments)).encode())
    except OSError:  # a closed descriptor, no place for the socket, or a system that knows less
        return
    signals = Signals(connection)
    with suppress(OSError):
        socket.send_fds(connection, [module.encode()], [0, 1, 2, request])
    os.close(request)
    if not (stage := _answer(connection, socket.MSG_PEEK)).startswith(BEGUN):
        signals.restore()
        return
    signals.has_begun = True
    _answer(connection)  # the same, now that it is known
    if not (status := _answer(connection)):  # who should say it was killed, and so is the stage
        with suppress(ProcessLookupError):
            os.kill(int(stage), signal.SIGKILL)
    _end(int(status or -signal.SIGKILL))


def begin(environment: Mapping[str, str]) -> None:
    """Let the server of the stages that will have this environment, which names its OWNER, import already."""
    if sys.platform == "linux" and environment.get(SWITCH) != "off" and (process := environment.get(OWNER)):
        with suppress(OSError):  # each stage starts one itself, then, or imports for itself
            _connected(process, environment).close()


def _request(module: str, arguments: Sequence[str]) -> dict[str, object]:
    """Return what the fork is to have of this process."""
    os.umask(umask := os.umask(0o077))
    return {
        "module": module,
        "argv": [module, *arguments],
        "orig_argv": sys.orig_argv,
        "path": sys.path,
        "folder": str(Path.cwd()),
        "environment": os.environ | {CLIENT: str(os.getpid())},
        "umask": umask,
        "ignored": [number for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN],
        "blocked": list(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    }


def _answer(connection: socket.socket, flags: int = 0) -> bytes:
    """Return the next thing that the server's side says, nothing if that has ended."""
    for _ in range(2):  # the first fails if it ended without reading a signal, whatever it had said before
        with suppress(OSError):
            return connection.recv(100, flags)
    return b""


def _connected(process: str, environment: Mapping[str, str]) -> socket.socket:
    """Return a connection to the server of this owner and this environment, which is started if there is none.

    Raises OSError.
    """
    number, folder = process.split()[0], _folder()
    path = folder / f"{number}-{_digest(process, environment)}"
    try:
        return _connection(path)
    except (FileNotFoundError, ConnectionRefusedError):
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                return _connection(path)  # another has just started one
            except (FileNotFoundError, ConnectionRefusedError):
                _start(path, number, environment)
        return _connection(path)


def _connection(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _address(path) as address:
            connection.connect(address)
    except OSError:
        connection.close()
        raise
    return connection


@contextmanager
def _address(path: Path) -> Iterator[str]:
    """Yield a short name of `path`: that of a socket has 107 bytes at most, and some clusters' TMPDIR is long."""
    folder = os.open(path.parent, os.O_PATH)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _start(path: Path, number: str, environment: Mapping[str, str]) -> None:
    """Start a server at `path`, and remove what killed ones have left.

    Raises ConnectionRefusedError if its owner has ended.
    """
    for left in [path, *path.parent.glob("*-*")]:
        if left == path or not Path("/proc", left.name.split("-")[0]).exists():
            left.unlink(missing_ok=True)
    if not Path("/proc", number).exists():
        raise ConnectionRefusedError(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        with _address(path) as address:
            listener.bind(address)
        listener.listen(WAITING)
        subprocess.Popen(
            [sys.executable, "-P", str(SERVER), str(path), number],
            stdin=listener.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",  # no folder of an experiment, which is removed
            start_new_session=True,  # Ctrl-C is for the stages
        )


def _folder() -> Path:
    """Return the folder of this user's servers. Raises OSError where others could enter it, too."""
    path = Path(tempfile.gettempdir()) / f"repronet-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(path)
    return path


def _digest(process: str, environment: Mapping[str, str]) -> str:
    """Return what tells servers of one owner apart: Python with its packages, limits, and what they may read."""
    packages = [f"{path} {Path(path).stat().st_mtime_ns}" for path in sys.path if path.endswith("site-packages")]
    limits = [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT_")]
    place = [process, sys.executable, *packages, str(limits), str(sorted(os.sched_getaffinity(0)))]
    variables = sorted(f"{name}={value}" for name, value in environment.items())
    variables = [each for each in variables if not each.startswith(OWN)]
    return hashlib.sha256(os.fsencode("\0".join([*place, *variables]))).hexdigest()[:16]


class Signals:
    """From now on what comes to this process goes to the fork. Until that has begun, it ends this process."""

    def __init__(self, connection: socket.socket) -> None:
        self.has_begun = False
        self._connection, self._before = connection, dict[int, object]()
        for number in FORWARDED:
            self._handle(number, self._forward)
        self._handle(signal.SIGTSTP, self._stop)

    def restore(self) -> None:
        """Let it come to this process again."""
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]

    def _handle(self, number: int, handler: "signal._HANDLER") -> None:
        if signal.getsignal(number) is not signal.SIG_IGN:
            self._before[number] = signal.signal(number, handler)

    def _forward(self, number: int, _frame: FrameType | None = None) -> None:
        if not (self.has_begun or number == signal.SIGCONT or self._has_just_begun()):
            _end(-number)  # the server ends what begins in this moment
        with suppress(OSError):  # there is no fork any more
            self._connection.send(bytes([number]))

    def _has_just_begun(self) -> bool:
        with suppress(OSError):
            return self._connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == BEGUN
        return False

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        """Ctrl-Z: stop the fork, and this process until it is to go on, unless nobody would tell it to."""
        with suppress(OSError):
            self._connection.send(bytes([signal.SIGSTOP]))
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        signal.signal(number, self._stop)
        with suppress(OSError):
            self._connection.send(bytes([signal.SIGCONT]))


def _end(status: int) -> NoReturn:
    """End with this code, or by this signal if it is negative."""
    if status < 0:
        with suppress(OSError):  # of those that cannot be handled
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)
