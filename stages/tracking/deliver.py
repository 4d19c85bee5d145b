"""The process beside a stage that brings its journal to MLflow, so that no store can hold the stage up.

    python -m stages.tracking.deliver JOURNAL [--evaluation]

goes on until the journal has ended, or the standard input, which is the stage, and then tries once more what has
failed. It prints lines of JSON: its number, and the first failure. It ends with 0 if the store has all.
"""

import json
import os
import select
import sys
import threading
import time
from pathlib import Path

from stages.base.locks import locked_if_free
from stages.base.processes import ignore_signals
from stages.base.text import say
from stages.tracking.monitor import Machine
from stages.tracking.replay import BusyError, Replay
from stages.tracking.store import Store, set_up_mlflow

POLL_SECONDS = 0.2  # from one look into the journal to the next
GATHER_SECONDS = 2.0  # likewise where only points come: a thousand at once cost MLflow 0.6 of ten times a hundred
BUSY_SECONDS = 4.0  # in all that another process is waited for, which brings a journal that comes before
LAST_SECONDS = 150.0  # longer than a stage waits
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before what has failed is tried again


def main() -> None:
    ignore_signals()  # which come to the stage, too, and that says when to end
    say(json.dumps({"process": os.getpid()}))  # the stage may have started another, whose fork this is
    folder = Path(sys.argv[1])
    set_up_mlflow(Store.from_environment().uri)
    if "--evaluation" in sys.argv:
        import torch._dynamo  # which exports models: now, while the stage computes

        torch.set_num_threads(1)  # the others are the stage's
        import stages.tracking.writer  # noqa: F401
    with locked_if_free(folder) as is_ours:
        has_arrived = is_ours and followed(folder)
    os._exit(0 if has_arrived else 1)  # whatever threads MLflow has


def followed(folder: Path) -> bool:
    """Bring a journal as it is written; return whether all of it has arrived. Then it is removed."""
    store, replay, machine = Store.from_environment(), None, None
    pause, busy, is_last, has_failed = FIRST_PAUSE, 0.0, False, False
    while True:
        if not is_last and (is_last := stage_has_ended(0)):
            give_up_after(LAST_SECONDS)
        try:
            store.client()
            replay = replay or Replay(store, folder)
            replay.go_on()
            if replay.sampled and not replay.is_whole:
                machine = machine or Machine(replay.sampled)
                replay.log_machine(machine.sample())
            if is_last or replay.is_whole:
                replay.finish()
                return True
            only_points_come = replay.run_id and not machine
            wait, pause = GATHER_SECONDS if only_points_come else POLL_SECONDS, FIRST_PAUSE
        except Exception as error:
            replay = None
            if isinstance(error, BusyError) and busy < BUSY_SECONDS:
                time.sleep(POLL_SECONDS)
                busy += POLL_SECONDS
                continue
            if not has_failed:
                say(json.dumps({"failed": store.why(error)}))
            has_failed, store = True, Store.from_environment()
            wait, pause = pause, min(2 * pause, LONGEST_PAUSE)
        if is_last:
            return False
        stage_has_ended(wait)


def stage_has_ended(seconds: float) -> bool:
    """Return whether the stage has said, or its end says, within these seconds, that no more is to come."""
    ready, _, _ = select.select([0], [], [], seconds)
    return bool(ready)


def give_up_after(seconds: float) -> None:
    """Let this process end then, whatever it waits for: nobody may be there to end it."""
    timer = threading.Timer(seconds, os._exit, [1])
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    main()
