"""What becomes of a row: the requests it makes of the engine, and the output rows made of the answers.

The worker's loop knows requests and answers only; what they mean is decided here. A row ends with all of its
answers, or as a `Reject`.
"""
