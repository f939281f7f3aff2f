"""An engine at a pace that a test sets. Workers import it: nothing of the tests is loaded here."""

import os
import time

from batchgen.engine.vllm import Response

LENGTH = 8  # tokens of a response, unless ignore_eos asks for all of max_tokens


class Instant:
    """Is up after BATCHGEN_TEST_START seconds; each step takes BATCHGEN_TEST_STEP seconds and finishes all that run, 8
    requests unless the job says otherwise. Responses are told from each other by their seeds."""

    dtype, device = "none", "answers at once"

    def __init__(self, model, args, context):
        time.sleep(float(os.environ.get("BATCHGEN_TEST_START", 0)))
        self.max_num_seqs = args.get("max_num_seqs", 8)
        self._pace = float(os.environ.get("BATCHGEN_TEST_STEP", 0))
        self._asked = []

    def add(self, name, prompt, sampling, seed):
        length = sampling.max_tokens if sampling.ignore_eos else min(sampling.max_tokens, LENGTH)
        self._asked.append(Response(name, [5 + (seed + place) % 900 for place in range(length)], "length"))

    def step(self):
        if self._pace:
            time.sleep(self._pace)
        done, self._asked = self._asked[: self.max_num_seqs], self._asked[self.max_num_seqs :]
        return done

    def when_process_dies(self, tell):
        pass
