"""The server: it imports the libraries once, and forks for each stage.

    python -P server.py SOCKET OWNER

It listens on its standard input, which is bound to SOCKET, until the process with the number OWNER has ended, or until
nobody has come for a while. It imports none of our own code: each fork reads that anew, from where its client is.

For each client there are two forks. One becomes the stage; the other is its parent, which gives it the client's signals
and tells the client how it has ended, so that the server's own end is no one else's.
"""

import ctypes
import gc
import io
import json
import os
import runpy
import select
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

IDLE_SECONDS = 60.0
SENDING_SECONDS = 1.0  # for a client that has come
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OF_GROUPS = (signal.SIGSTOP, signal.SIGCONT)  # with what the stage has started
PARENT_DEATH_SIGNAL, NAME = 1, 15  # Linux's PR_SET_PDEATHSIG and PR_SET_NAME

Request = dict[str, Any]


def tensors() -> None:
    import pandas
    import torch


def tracking() -> None:
    import mlflow


def store() -> None:
    import mlflow.store.tracking.sqlalchemy_store
    from sqlalchemy.orm import configure_mappers

    configure_mappers()


def pictures() -> None:
    import matplotlib.figure


def models() -> None:
    import mlflow.pytorch
    from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches

    warn_dependency_requirement_mismatches(["torch"])  # it looks through all packages, and keeps what it has found


def exports() -> None:
    import torch._dynamo
    import torch.export._trace


LIBRARIES = (tensors, tracking, store, pictures, models, exports)  # imported while there is nothing else to do
# What has to be there before a module is run.
NEEDED = {
    "stages.train": (tensors,),
    "stages.evaluate": (tensors, pictures),
    "stages.tracking.deliver": (tracking, store),
}


def main() -> None:
    gc.set_threshold(100_000, 50, 1000)  # as in stages/__init__.py
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody here waits for the forks
    if request := serve(Path(sys.argv[1]), int(sys.argv[2])):
        become(request)
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def serve(path: Path, owner: int) -> Request | None:
    """Return in a fork what its client asks for; in the server None, when it is to end."""
    listener, libraries = socket.socket(fileno=os.dup(0)), list(LIBRARIES)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    with suppress(ProcessLookupError):
        ended = os.pidfd_open(owner)
        while True:
            wait = 0 if libraries else IDLE_SECONDS
            ready, _, _ = select.select([listener.fileno(), ended], [], [], wait)
            if ended in ready or not (ready or libraries):
                break
            if not ready:
                imported(libraries.pop(0))
            elif request := forked(listener):
                listener.close()
                os.close(ended)
                return request
    path.unlink()  # before the listener is closed: another server may come in its place
    return None


def forked(listener: socket.socket) -> Request | None:
    """Let there be forks for who comes; return, in the one that becomes a stage, what its client asks for."""
    descriptors: list[int] = []
    with suppress(OSError):  # the client runs the stage itself then
        client, _ = listener.accept()
        with client:
            client.settimeout(SENDING_SECONDS)
            module, descriptors, _, _ = socket.recv_fds(client, 100, 4)
            client.settimeout(None)
            for library in NEEDED.get(module.decode(), ()):
                imported(library)
            gc.freeze()  # what is here is no garbage, and to look through it would copy it
            if descriptors and not os.fork():
                listener.close()
                try:
                    return attended(client, descriptors)
                except OSError:  # no more processes
                    os._exit(1)
    for descriptor in descriptors:
        os.close(descriptor)
    return None


def attended(client: socket.socket, descriptors: list[int]) -> Request:
    """Return in a new fork what the client asks for, and attend to it in this one."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    parent = os.getpid()
    with os.fdopen(descriptors.pop(), "rb") as file:
        file.seek(0)
        request: Request = json.load(file) | {"descriptors": descriptors}
    # In this one they stay blocked: who ends all processes at once, as a shutdown does, lets the stage end in order. To
    # the stage they come when it has its client's mask.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    if stage := os.fork():
        for descriptor in descriptors:
            os.close(descriptor)
        attend(client, stage)
    os.setpgid(0, 0)
    libc = ctypes.CDLL(None)
    libc.prctl(NAME, request["module"].encode())  # the beginning of it: what `top` shows
    libc.prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    with suppress(OSError):  # by itself, so that a client knows of all that has begun; + tells it from how one ended
        client.send(b"+%d" % os.getpid())
    return request


def attend(client: socket.socket, stage: int) -> NoReturn:
    """Give a stage its client's signals, and the client its end. If the client is killed, so is the stage."""
    with suppress(OSError):
        os.setpgid(stage, stage)  # it may not have done so itself yet
    ended = os.pidfd_open(stage)
    watched = [ended, client.fileno()]
    while ended not in select.select(watched, [], [])[0]:
        number = 0
        with suppress(OSError):
            number = int.from_bytes(client.recv(1))
        with suppress(OSError):
            if number in (0, *OF_GROUPS):
                os.killpg(stage, number or signal.SIGKILL)
            else:
                os.kill(stage, number)
        if not number:
            watched.remove(client.fileno())
    _, status = os.waitpid(stage, 0)
    with suppress(OSError):
        client.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def imported(library: Callable[[], None]) -> None:
    """Import a library. What is wrong with it, if it is needed, the stage will say."""
    with suppress(Exception):
        library()


def become(request: Request) -> None:
    """Let this process have all that its client has."""
    for number, descriptor in enumerate(request["descriptors"]):
        os.dup2(descriptor, number)
        os.close(descriptor)
    assert isinstance(sys.stdout, io.TextIOWrapper)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # as Python does at its start
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    os.umask(request["umask"])
    sys.argv, sys.orig_argv, sys.path = request["argv"], request["orig_argv"], request["path"]
    for signal_number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal_number in request["ignored"]:
            signal.signal(signal_number, signal.SIG_IGN)
        elif signal.getsignal(signal_number) is signal.SIG_IGN:
            own = signal.default_int_handler if signal_number == signal.SIGINT else signal.SIG_DFL
            signal.signal(signal_number, own)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])


if __name__ == "__main__":
    main()
