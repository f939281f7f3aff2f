"""What the user asks for: the job file and the flags as one typed spec.

A TOML file and flags go in; a `JobSpec` or a one-line `JobError` comes out. This room decides which keys change results
(and so belong to a job's fingerprint) and which only change speed, and it knows the vocabulary of the job file:
sampling parameters, formats, limits. It reads no file but the TOML and knows nothing of models or vLLM. A new key of
the job file starts here.
"""
