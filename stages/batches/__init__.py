"""Arrays to batches: the prepared set, its batches for training, the transforms of images.

It may import base. A class of torchvision.transforms.v2 that params.yaml should accept goes into
transform_table.py; what happens to every image on its way to the net stands in normalise.py.
"""
