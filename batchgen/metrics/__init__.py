"""How good the responses of several settings are, with intervals: what `batchgen sweep` and `batchgen report` compare.

    rows, each with its responses -> numbers per row and setting -> means, intervals, the best setting

summary.py    what comes out, as OUT/_sweep/summary.json has it
measure.py    the way from rows to that, and best.toml
metrics.py    the metrics by their names in a job file
texts.py      what they count in texts and token ids
scorer.py     metrics of the user's own, from a Python file
bootstrap.py  intervals by resampling rows, all settings together
"""
