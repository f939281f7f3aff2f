"""How good the responses of several settings are, with intervals: what `batchgen sweep` and `batchgen report` compare.

    rows, each with its responses -> numbers per row and setting -> means, intervals, the best setting

summary.py    what comes out, as OUT/_sweep/summary.json has it
measure.py    the way from rows to that
best.py       the best setting, as tables to paste into a job file
metrics.py    the metrics by their names in a job file
judge.py      from the responses to one row to the numbers of every metric
texts.py      what they count in texts and token ids
chrf.py       chrF, by sacrebleu
scorer.py     metrics of the user's own, from a Python file
bootstrap.py  intervals by resampling rows, all settings together
"""
