"""What evaluate draws.

It may import training and base. A new picture is a function in pictures.py, of figures in charts.py, or in layers.py if
it is of the net; evaluate.py calls it. They share canvas.py, and fonts.py finds what names need; mistakes_page.py is a
page. Equal results have to give equal bytes; where a name has letters that DejaVu Sans lacks, with equal fonts.
"""
