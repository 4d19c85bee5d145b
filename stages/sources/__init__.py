"""Images as they come, to arrays: digits, Fashion-MNIST, folders and tables; decoding; what is refused; the split.

It may import base. A new published set is a function in published.py and a line in loading.py; another layout of the
user's own files goes beside folders.py and tables.py. A single image is refused in images.py, what shows only when all
are decoded is in own.py, and what makes several of them doubtful is found in rejections.py.
"""
