"""Floor 5: a trainer in, findings out, before a step is trained.

`checks.py` lists the checks, `inspection.py` runs them. Each has a file with its figures, thresholds and words.
"""
