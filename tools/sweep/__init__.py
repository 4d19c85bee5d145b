"""Many experiments: `python -m tools.sweep`. Another place to run them becomes another Runner, beside local.py."""
