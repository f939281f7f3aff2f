"""One run of a job: a supervisor, and worker processes with an engine each. The only room with processes, signals and
deadlines.

    run.py             prepare, supervise, close the accounting
    prepare.py         from a spec to a job that may run
    supervisor.py      starts workers, restarts them, stops them; worker_process.py is one of them as it sees it
    messages.py        what it and its workers tell each other
    worker.py          one worker: claims, the engine's loop, commits
    death.py           why an engine died; poison.py: which item it died of
    deadline.py        when the run has to end; slurm.py: what Slurm knows of that
    gpus.py            which GPUs or cores a worker gets
    progress.py        the bar, or the lines in a log
"""
