"""What DVC runs: prepare, train and evaluate, and the folders that they use."""

import gc
import os

from stages.base import instructions

# Python looks for garbage after every 700 new objects. While torch and mlflow are imported that takes a quarter of the
# time, and there is hardly any garbage to find.
gc.set_threshold(100_000, 50, 1000)

# Read when torch is imported. Threads that wait actively take the cores that others need: two trainings at once on two
# cores took 120 s instead of 54 s. GNU's OpenMP, which torch brings on Linux, is told to look for 0.2 ms first: without
# that, a small net by itself is less than half as fast. docs/performance.md has the figures. No result depends on it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
# Likewise. Where the machine is busy, true gives fewer threads than torch has shared a sum out to: losses were NaN.
os.environ["OMP_DYNAMIC"] = "FALSE"

# Read when MLflow is imported, which may be before the code that sets what else it reads.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

# Read when torch is imported, too, and the results depend on it.
instructions.limit(os.environ)
