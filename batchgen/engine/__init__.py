"""Token ids in, token ids out. types.py has what other rooms know of an engine, choice.py says which one a worker runs,
installed.py what can be known of vLLM without importing it. No other room imports vLLM or torch."""
