"""batchgen from Python: what `import batchgen` offers, the same as the command line."""
