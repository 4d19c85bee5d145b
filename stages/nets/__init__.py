"""Nets: the Net, torchvision's models, what a net predicts, and weights on disk.

It may import batches and base. A new net is a class in net.py and a line in its table, NETS. What a weights file says
of itself is the Description in weights.py.
"""
