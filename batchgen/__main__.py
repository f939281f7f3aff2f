"""`python -m batchgen`: the command where the package is not installed."""

from .cli import cli

cli(prog_name="batchgen")
