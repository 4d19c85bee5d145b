"""Keeps the house: removes what nothing needs and a rebuild brings back: python -m tools.tidy."""
