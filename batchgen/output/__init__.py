"""The output folder: shards, rejects, the job's record, and the state that makes a run resumable.

The only room that knows a name under that folder. A file appears there whole or not at all; a finished shard is never
rewritten; two workers on the same shard do no harm. What the disk refuses leaves this room as `Stopped`, which the same
command resumes.
"""
