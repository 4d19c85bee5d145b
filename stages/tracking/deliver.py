"""The process beside a stage that brings its journal to MLflow, so that no store can hold the stage up.

    python -m stages.tracking.deliver JOURNAL [--evaluation]

goes on until the journal has ended, or the standard input, which is the stage, and then tries once more what has
failed. It prints a line of JSON about the first failure. It ends with 0 if the store has all.
"""

import json
import os
import select
import sys
import time
from pathlib import Path

from stages.base.locks import locked_if_free
from stages.base.processes import ignore_signals
from stages.base.text import say
from stages.tracking.journal import Events, has_end, remove
from stages.tracking.replay import BusyError, Replay, deliver_those_before
from stages.tracking.store import Store, set_up_mlflow

POLL_SECONDS = 0.2
BUSY_SECONDS = 30.0  # in all that another process is waited for, which brings a journal that comes before
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds before what has failed is tried again


def main() -> None:
    ignore_signals()  # which come to the stage, too, and that says when to end
    folder = Path(sys.argv[1])
    set_up_mlflow(Store.from_environment().uri)
    if "--evaluation" in sys.argv:
        import torch._dynamo  # noqa: F401 (what exports models; now, while the stage computes)

        import stages.tracking.writer  # noqa: F401
    with locked_if_free(folder) as is_ours:
        sys.exit(0 if is_ours and followed(folder) else 1)


def followed(folder: Path) -> bool:
    """Bring a journal as it is written; return whether all of it has arrived. Then it is removed."""
    store, replay = Store.from_environment(), None
    pause, busy, is_last, has_failed = FIRST_PAUSE, 0.0, False, False
    while True:
        is_last = is_last or stage_has_ended(0)
        try:
            store.client()
            if replay is None or is_last:
                deliver_those_before(store, folder)
            replay = replay or Replay(store, folder)
            replay.go_on()
            if is_last:
                replay.kill()
            if is_last or replay.has_ended:
                remove(folder)
                return True
            wait, pause = POLL_SECONDS, FIRST_PAUSE
        except Exception as error:
            if isinstance(error, BusyError) and busy < BUSY_SECONDS:
                time.sleep(POLL_SECONDS)
                busy += POLL_SECONDS
                continue
            if not has_failed:
                say(json.dumps({"failed": store.why(error)}))
            has_failed, store, replay = True, Store.from_environment(), None
            wait, pause = pause, min(2 * pause, LONGEST_PAUSE)
        # Processes that the stage has forked keep its end of the pipe open.
        if is_last or (replay is None and has_end(Events(folder).read())):
            return False
        is_last = stage_has_ended(wait)


def stage_has_ended(seconds: float) -> bool:
    """Return whether the stage ends, within these seconds, what it writes."""
    ready, _, _ = select.select([0], [], [], seconds)
    return bool(ready) and not os.read(0, 1)


if __name__ == "__main__":
    main()
