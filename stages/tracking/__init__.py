"""MLflow: the run of a training, the store, what a run is made of, and where it comes from.

It may import nets, batches and base. Nothing here influences an output, so it is in no stage's deps: a change to it
trains nothing again. A new tag goes into provenance.py, a new artifact of an evaluation into writer.py and
artifacts.py.
"""
