"""One run: prepare the job, supervise the workers, work through the shards.

The only room with worker processes, signals and deadlines. A run ends when all shards are there or when it is told to
stop; either way, the same command resumes it and loses nothing.
"""
