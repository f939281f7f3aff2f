"""A model folder, or a model on the hub, as a checked `Model`.

`model.load_model` finds the files, checks them and digests them; a `Model` has the context length, the tokenizer, the
digests and the defaults for sampling and prompt format. Text goes in and token ids come out, and back. No weights are
loaded here: that is the engine's work. Anyone may have made the files, so none of them is trusted.
"""
