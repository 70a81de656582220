"""A trial: some real optimizer steps, and what they did to held-out prompts."""

#: Optimizer steps of a trial where nobody says another number. Ten said less of the runs of our study, and were less
#: often right (docs/evidence.md).
STEPS = 20
#: Held-out prompts of a trial where nobody says another number.
PROMPTS = 64
