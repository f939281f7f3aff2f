"""From conversations to prompts: text, then token ids that fit into the context.

`formats` renders a conversation and turns a response back into text; `fit` rejects or shortens what is too long. Both
are pure functions. `checker` runs the costly part (other models' templates and tokenizers, grammars) in a process of
its own, so that one row cannot take the run down.
"""
