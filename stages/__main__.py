"""Runs a stage for DVC: `python -m stages train …` is `python -m stages.train …`, but starts sooner, see start/."""

import runpy
import sys

from stages.start import client

NAMES = ("prepare", "train", "evaluate", "tracking.deliver")

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(f"usage: python -m stages {'|'.join(NAMES)} ARGUMENTS, such as: python -m stages train --help")
    module, arguments = f"stages.{sys.argv[1]}", sys.argv[2:]
    client.run_in_fork(module, arguments)
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)
