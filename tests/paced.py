"""An engine for BATCHGEN_ENGINE, at a pace that a test sets. Workers import it: nothing of the tests is loaded here."""

import os
import time

from batchgen.engine.instant import InstantEngine


class Instant(InstantEngine):
    """Is up after BATCHGEN_TEST_START seconds; each step takes BATCHGEN_TEST_STEP seconds and finishes all that run, 8
    requests unless the job says otherwise."""

    def __init__(self, model, args, context):
        time.sleep(float(os.environ.get("BATCHGEN_TEST_START", 0)))
        super().__init__(model, {"max_num_seqs": 8} | args, context)

    def step(self):
        time.sleep(float(os.environ.get("BATCHGEN_TEST_STEP", 0)))
        return super().step()
