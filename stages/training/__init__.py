"""What a training is made of: losses, optimizers, schedules, options, determinism; what is measured, and what is best.

It may import base. A new loss, optimizer or schedule is a line in the table of its module, with the reason where a
class of torch is refused. A metric is a pure function in metrics.py; evaluate.py writes its value.
"""
