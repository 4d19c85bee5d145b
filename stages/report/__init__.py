"""What evaluate draws.

It may import base. A new picture is a function in pictures.py, or in layers.py if it is of the net, that takes tensors
and a path; evaluate.py calls it. They share canvas.py, and fonts.py finds what names need. Equal results have to give
equal bytes; where a name has letters that DejaVu Sans lacks, with equal fonts.
"""
