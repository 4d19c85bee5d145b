import stages as stages  # before torch, which reads a setting that this makes
