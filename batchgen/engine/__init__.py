"""Token ids in, token ids out.

The only room that imports vllm or torch, and the only one that knows what depends on their versions. An engine accepts
requests at any time and returns the responses that each step finishes; it knows nothing of rows, shards or files.

    types.py       what other rooms know of an engine
    choice.py      which one a worker runs
    installed.py   what can be known of vLLM without importing it
    vllm.py        vLLM's engine; seeded.py: our draw of a token on a CPU; stop.py: where a stop text ends a response
    lora.py        what vLLM needs for adapters
    instant.py     an engine that answers at once, for benchmarks and tests
"""
