"""The same Net, trained on Fashion-MNIST by this project and by what people would use instead, one module each.

Each is a program, so that it has a process of its own: what run.py says. `python -m bench.training` runs them in turn.
"""
