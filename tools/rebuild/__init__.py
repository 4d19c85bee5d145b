"""Runs again, from what they recorded: python -m tools.rebuild."""
