"""The six tasks of the model card: their data, prompts and scores.

In: a folder with the datasets' own files. Out: documents with finished prompts, for the tasks of lm-evaluation-harness
in `tasks/`, and what was published of each. No engine and no harness is needed for any of it.
"""
