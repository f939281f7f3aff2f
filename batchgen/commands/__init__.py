"""One file behind each further command of the CLI: plan, status, verify, retry, export, sweep, report, submit, bench.

Each takes plain values, does its work with the rooms below and returns a typed result; `cli` prints it.
"""
