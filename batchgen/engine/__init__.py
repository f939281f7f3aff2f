"""Token ids in, token ids out.

The only room that imports vllm or torch, and the only one that knows what depends on their versions. An engine accepts
requests at any time and returns the responses that each step finishes; it knows nothing of rows, shards or files.
"""
