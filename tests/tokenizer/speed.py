"""How many times as fast as the reference encode_batch is, on the texts of the vectors.

    python tests/tokenizer/speed.py PYTHON_WITH_THE_REFERENCE

The reference is timed in its own process, with reference.py. The best of five runs counts, on both sides.
"""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from time import perf_counter

from batchgen.model.tokenizer import Tokenizer

HERE = Path(__file__).parent
REPEAT = 5

with gzip.open(HERE / "vectors.jsonl.gz", "rt", encoding="utf-8") as lines:
    vectors = [json.loads(line) for line in lines]
corpora = {
    "all texts": [vector["text"] for vector in vectors] * 10,
    "prompts": [vector["text"] for vector in vectors if vector["class"].startswith("prompt")] * 20,
}


def seconds_of_ours(tokenizer: Tokenizer, texts: list[str], parse_special: bool, num_threads: int) -> float:
    best = float("inf")
    for _ in range(REPEAT):
        start = perf_counter()
        tokenizer.encode_batch(texts, parse_special, num_threads)
        best = min(best, perf_counter() - start)
    return best


for name in ("bilingual", "japanese-3.6b"):
    for corpus, texts in corpora.items():
        request = json.dumps({"texts": texts, "ids": [], "repeat": REPEAT})
        command = [sys.argv[1], HERE / "reference.py", HERE / name]
        run = subprocess.run(command, input=request.encode(), capture_output=True, check=True)
        reference = json.loads(run.stdout)["seconds"]
        print(f"{name}, {len(texts)} {corpus}: reference {reference:.3f} s")
        for parse_special in (False, True):
            for num_threads in (1, -1):
                seconds = seconds_of_ours(Tokenizer.load(HERE / name), texts, parse_special, num_threads)
                ratio = reference / seconds
                print(f"  {parse_special=} {num_threads=}: {seconds:.3f} s, {ratio:.1f} times as fast")
