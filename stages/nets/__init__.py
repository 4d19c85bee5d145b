"""Nets: the Net, torchvision's models, what a net predicts, and weights on disk.

It may import batches and base. A new net is a line in the table of build.py, or a module beside net.py that build.py
knows. What a weights file says of itself is the Description in weights.py.
"""
