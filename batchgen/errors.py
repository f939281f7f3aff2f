"""What can go wrong, sorted by who has to act: the user (JobError) or nobody, for one row (Reject)."""


class JobError(Exception):
    """Wrong usage, spec, input or model. Its text is the one line the user sees; the command exits 2."""


class Reject(Exception):
    """One row that gets no response. The job goes on; the row is listed under `_rejects/`.

    reason: one of invalid_json, invalid_utf8, bad_shape, unknown_speaker, empty, bad_sampling,
    too_long, engine_error. detail: a sentence for the person who mends the data.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class MachineError(Exception):
    """The engine or the machine failed. Its text is the one line the user sees; the command exits 1."""
