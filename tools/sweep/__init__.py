"""Many experiments: `python -m tools.sweep`."""
