"""This machine: clock, console, terminal, environment, files and processes.

Knows nothing of jobs, rows or models. Every room may use it; it imports nothing but `errors`, which is on the same
level because every error that reaches a terminal passes through `host.terminal`.
"""
