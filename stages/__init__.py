"""What DVC runs: prepare, train and evaluate, and the small modules that they share."""
