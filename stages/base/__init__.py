"""What all the others use: params.yaml, the command line, files and their locks, errors, names of torch's classes.

It imports nothing of the other folders. A new parameter goes into params.py and params.yaml, and what every command
line should do into cli.py. Think twice: a change here runs every stage again.
"""
