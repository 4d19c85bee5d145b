"""What DVC runs: prepare, train and evaluate, and the folders that they use."""

import gc

# Python looks for garbage after every 700 new objects. While torch and mlflow are imported that takes a quarter of the
# time, and there is hardly any garbage to find.
gc.set_threshold(100_000, 50, 1000)
