"""Starts the processes of a training by torch's own launcher, and says to each what it is.

Torch's agent starts all anew, from the last checkpoint, if one is killed or hangs. What the user has to change is not
tried again: a process that finds such a thing writes it down and ends in order.
"""

import ctypes
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import distributed

from stages.base.errors import InputError
from stages.base.files import write_synced
from stages.base.params import TrainParams
from stages.base.processes import STOPPING
from stages.base.text import say, warn
from stages.training.parallel import ALONE, Group, Lost, awaiting_others

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

RESTARTS = 3
TIMEOUT = "REPRONET_TIMEOUT_SECONDS"  # after which a process that does not answer is taken for hung
TIMEOUT_SECONDS = 600.0
REFUSAL = "REPRONET_REFUSAL"  # the file in which a process says what the user has to change
LAUNCHER = "REPRONET_LAUNCHER"  # the number of the process that has started them
INTERRUPTED = 130  # exit status
MEMBER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what a launcher, torch's or a scheduler's, sets
PARENT_DEATH_SIGNAL = 1  # of Linux's prctl


def is_member(environment: Mapping[str, str], processes: int) -> bool:
    """Return whether a launcher has started this process as one of a training's. Some set all of it for one, too."""
    return all(name in environment for name in MEMBER) and not processes == int(environment["WORLD_SIZE"]) == 1


def launch(module: str, arguments: Sequence[str], processes: int) -> None:
    """Run `python -m MODULE ARGUMENTS` in so many processes, and return when all have ended.

    On several machines each starts as many as the others: PET_NNODES and torchrun's other variables say so. Raises
    InputError for what a process has refused, if the machines do not find each other, and if the processes were ended
    and started anew too often.
    """
    from torch.distributed import run  # 0.5 s, which a single process does not pay
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError

    nodes = os.environ.get("PET_NNODES", "1")
    if not nodes.isdigit() or processes % int(nodes):
        raise InputError(f"train.processes: {processes}, should be a multiple of the machines, PET_NNODES: {nodes!r}")
    logging.disable()  # tables and traces of what is said here
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else each connection to a host without a name is a warning
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else torch warns that it does this; train.threads decides
    # In the store of the attempt before, Gloo finds where its processes listened, and waits for them.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    handled = [number.name for number, handler in handlers.items() if handler is not signal.SIG_IGN]
    options = {
        "--nproc-per-node": processes // int(nodes),
        "--max-restarts": RESTARTS,
        "--signals-to-handle": ",".join(handled),
    }
    if nodes == "1":
        options["--local-addr"] = "127.0.0.1"  # the machine's name may lead nowhere
    with tempfile.TemporaryDirectory(prefix="repronet-") as folder:
        refusal = Path(folder, "refusal")
        os.environ |= {REFUSAL: str(refusal), LAUNCHER: str(os.getpid())}
        words = [str(word) for option in options.items() for word in option]
        try:
            run.run(run.parse_args([*words, "--log-dir", folder, "--module", module, *arguments]))
        except SignalException as error:
            raise KeyboardInterrupt from error
        except ChildFailedError as error:
            if not refusal.exists():
                raise InputError(_ended(error.failures)) from error
        except RendezvousError as error:
            raise InputError(
                f"the {nodes} machines of the training do not find each other at"
                f" {os.environ.get('PET_RDZV_ENDPOINT', 'PET_RDZV_ENDPOINT')}: {error}"
            ) from error
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            del os.environ[REFUSAL], os.environ[LAUNCHER]
        if refusal.exists():
            raise InputError(refusal.read_text(encoding="utf-8"))


def _ended(failures: "Mapping[int, ProcessFailure]") -> str:
    """Return how a training has failed: by the process that ended otherwise than those that had lost it."""
    rank, failure = min(failures.items(), key=lambda each: (each[1].exitcode == INTERRUPTED, each[1].timestamp))
    how = f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else f"ended with {failure.exitcode}"
    return (
        f"process {rank} of the training {how}, also after {RESTARTS} restarts from the last checkpoint; the next"
        " attempt goes on from there"
    )


@contextmanager
def joined(params: TrainParams, outputs: Mapping[str, Path]) -> Iterator[tuple[Group, dict[str, Path]]]:
    """Yield this process's place among those of the training, and where it writes its `outputs`.

    Only the first writes what stays, and prints; the others have a folder for theirs that is removed. Raises InputError
    if they are not as many as params.yaml says.
    """
    if not is_member(os.environ, params.processes):
        yield ALONE, dict(outputs)
        return
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    refusal = Path(os.environ[REFUSAL]) if REFUSAL in os.environ else None
    end_with_launcher()
    try:
        with ExitStack() as stack:
            if rank:
                nowhere = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
                place = refusal.parent if refusal else None
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="repronet-", dir=place)))
                outputs = {name: folder / path.name for name, path in outputs.items()}
            elif restarts := int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
                most = os.environ["TORCHELASTIC_MAX_RESTARTS"]
                say(f"a process of the training was killed, or hung: all start anew, {restarts} of {most} times")
            stack.enter_context(_refusing(refusal))
            if size != params.processes:
                raise InputError(
                    f"train.processes: {params.processes}, but WORLD_SIZE: {size} in the environment, which is to be"
                    " unset where the stage itself is to start them"
                )
            seconds = float(os.environ.get(TIMEOUT, TIMEOUT_SECONDS))
            is_on_gpu = params.device in ("auto", "cuda") and torch.cuda.is_available()
            backend = "cpu:gloo,cuda:nccl" if is_on_gpu else "gloo"
            with awaiting_others():
                distributed.init_process_group(backend, timeout=timedelta(seconds=seconds))
            stack.callback(distributed.destroy_process_group)
            stack.enter_context(_refusing(refusal))  # before the others see that this one has left
            yield Group(rank, size, _gpu(rank)), dict(outputs)
    except KeyboardInterrupt as error:
        if refusal is None:
            raise
        if isinstance(error, Lost) and refusal.exists():
            sys.exit(0)
        if isinstance(error, Lost) and rank == 0:
            warn(f"the other processes of the training do not answer: {error}")
        sys.exit(INTERRUPTED)  # the launcher says so


@contextmanager
def _refusing(refusal: Path | None) -> Iterator[None]:
    """Write down what is refused, for the launcher, and end in order, so that it is not tried again."""
    try:
        yield
    except InputError as error:
        if refusal is None:
            raise
        write_synced(refusal, str(error).encode())
        sys.exit(0)


def _gpu(rank: int) -> int:
    """Return which of the GPUs that this process sees is its own: some schedulers show each only one."""
    own = "TORCHELASTIC_RUN_ID" not in os.environ and torch.cuda.device_count() == 1
    return 0 if own else int(os.environ.get("LOCAL_RANK", rank))


def end_with_launcher() -> None:
    """Let this process be interrupted when its launcher, if it is ours, is killed, on Linux."""
    if sys.platform == "linux" and LAUNCHER in os.environ:
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != int(os.environ[LAUNCHER]):
            raise KeyboardInterrupt
