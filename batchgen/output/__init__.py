"""Where a job's results lie, and all that its runs leave there.

Only this room knows a name in an output folder (layout.py) and asks what keeps it (store.py). Everything appears whole
or not at all. What the disk refuses leaves this room as Stopped: the same command goes on later.
"""
