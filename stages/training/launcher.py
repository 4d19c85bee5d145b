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

from stages.base.errors import InputError
from stages.base.text import say, warn
from stages.training.parallel import ALONE, Group, Lost

RESTARTS = 3
TIMEOUT = "REPRONET_TIMEOUT_SECONDS"  # after which a process that does not answer is taken for hung
TIMEOUT_SECONDS = 600.0
REFUSAL = "REPRONET_REFUSAL"  # the file in which a process says what the user has to change
MEMBER = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what a launcher, torch's or a scheduler's, sets
PARENT_DEATH_SIGNAL = 1  # of Linux's prctl


def is_member(environment: Mapping[str, str]) -> bool:
    """Return whether a launcher has started this process as one of a training's."""
    return all(name in environment for name in MEMBER)


def launch(module: str, arguments: Sequence[str], processes: int) -> None:
    """Run `python -m MODULE ARGUMENTS` in so many processes, and return when all have ended.

    On several machines each starts as many as the others: PET_NNODES and torchrun's other variables say so. Raises
    InputError for what a process has refused, and if they were ended and started anew too often.
    """
    from torch.distributed import run  # 0.5 s, which a single process does not pay
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    nodes = int(os.environ.get("PET_NNODES", "1").split(":")[0])
    if processes % nodes:
        raise InputError(f"train.processes: {processes}, should be a multiple of the {nodes} machines")
    logging.disable()  # tables and traces of what is said here
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else each connection to a host without a name is a warning
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # else torch warns that it does this; train.threads decides
    # In the store of the attempt before, Gloo finds where its processes listened, and waits for them.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    options = ["--nproc-per-node", str(processes // nodes), "--max-restarts", str(RESTARTS), "--module", module]
    with tempfile.TemporaryDirectory(prefix="repronet-") as folder:
        refusal = Path(folder, "refusal")
        os.environ[REFUSAL] = str(refusal)
        try:
            run.run(run.parse_args([*options, *arguments]))
        except SignalException as error:
            raise KeyboardInterrupt from error
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            how = f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else f"ended with {failure.exitcode}"
            raise InputError(
                f"process {rank} of the training {how}, also after {RESTARTS} restarts from the last checkpoint;"
                " the next attempt goes on from there"
            ) from error
        finally:
            del os.environ[REFUSAL]
        if refusal.exists():
            raise InputError(refusal.read_text(encoding="utf-8"))


@contextmanager
def joined(processes: int, outputs: Mapping[str, Path]) -> Iterator[tuple[Group, dict[str, Path]]]:
    """Yield this process's place among those of the training, and where it writes its `outputs`.

    Only the first writes what stays, and prints; the others have a folder for theirs that is removed. Raises InputError
    if they are not as many as `processes`.
    """
    if not is_member(os.environ):
        if processes > 1:
            raise InputError(f"train.processes: {processes}, but this process is alone")
        yield ALONE, dict(outputs)
        return
    from torch import distributed

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    end_with_launcher()
    refusal = Path(os.environ[REFUSAL]) if REFUSAL in os.environ else None
    try:
        with ExitStack() as stack:
            if rank:
                nowhere = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="repronet-")))
                outputs = {name: folder / path.name for name, path in outputs.items()}
            if size != processes:
                raise InputError(f"train.processes: {processes}, but {size} were started (WORLD_SIZE)")
            if restarts := int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")):
                say(f"a process of the training was killed, or hung: all start anew, {restarts} of {RESTARTS} times")
            seconds = float(os.environ.get(TIMEOUT, TIMEOUT_SECONDS))
            distributed.init_process_group(timeout=timedelta(seconds=seconds))
            stack.callback(distributed.destroy_process_group)
            yield Group(rank, size, int(os.environ.get("LOCAL_RANK", rank))), dict(outputs)
    except KeyboardInterrupt as error:
        if refusal is None:
            raise
        if isinstance(error, Lost) and refusal.exists():
            sys.exit(0)
        if isinstance(error, Lost) and rank == 0:
            warn(f"the other processes of the training do not answer: {error}")
        sys.exit(130)  # the launcher says so
    except InputError as error:
        if refusal is None:
            raise
        refusal.write_text(str(error), encoding="utf-8")
        sys.exit(0)


def end_with_launcher() -> None:
    """Let this process be interrupted when its launcher is killed, on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)
