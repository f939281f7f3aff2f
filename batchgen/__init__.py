"""batchgen: offline generation over whole datasets with vLLM."""

__version__ = "0.3.0"
