"""One run: prepare the job, supervise the workers, work through the shards.

The only room with worker processes, signals and deadlines. A run ends when all shards are there or when it is told to
stop; either way, the same command resumes it and loses nothing.

    run.py          prepare, supervise, close the accounting
    prepare.py      from a spec to a job that may run
    supervisor.py   starts workers, restarts them, stops them; worker_process.py is one of them as it sees it
    messages.py     what it and its workers tell each other
    process.py      a worker's process: an engine, signals, and the loop
    worker.py       the loop: admit, step, journal, commit
    queue.py        what is to be generated next; open_shard.py: what becomes of a shard meanwhile
    admission.py    which requests are in the engine together
    committer.py    makes complete shards final
    death.py        why an engine died; poison.py: which item it died of
    deadline.py     when the run has to end; slurm.py: what Slurm knows of that
    gpus.py         which GPUs or cores a worker gets
    progress.py     the bar, or the lines in a log
"""
