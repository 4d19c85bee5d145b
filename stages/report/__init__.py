"""What evaluate draws.

It may import base. A new picture is a function in pictures.py that takes tensors and a path; evaluate.py calls it.
Equal results have to give equal bytes.
"""
