"""From files to rows, and from rows to conversations.

`files.find` turns paths, globs and URIs into files; `plan.plan_input` cuts their rows into shards, which `scan` counts
and digests in one pass over each file; `rows.Reader` reads a shard's rows in order; `shapes.read` turns a row's record
into a conversation. Row numbers run over all files from 0 and never change. A file that cannot be used raises
`JobError` (or `Stopped`, once the job runs); a row that cannot be used raises `Reject` and costs nothing but that row.
Nothing here writes a file or knows a model.
"""
