"""The reference: the slow T5Tokenizer of transformers 4.57.6, run by a Python that has it and sentencepiece.

    python reference.py FOLDER < request.json > answer.json

request: {"texts": [str], "ids": [[int]], "repeat": int, how often to encode, for speed.py}
answer: {"ids": ids of each text, "seconds": those of the fastest encoding of all the texts,
         "decode" and "decode_skip_special": the text of each of the ids}
"""

import json
import sys
from time import perf_counter

from transformers import T5Tokenizer

tokenizer = T5Tokenizer.from_pretrained(sys.argv[1])
request = json.load(sys.stdin)
answer = {"seconds": float("inf")}

for _ in range(request["repeat"]):
    start = perf_counter()
    answer["ids"] = tokenizer(request["texts"], add_special_tokens=False)["input_ids"]
    answer["seconds"] = min(answer["seconds"], perf_counter() - start)

answer["decode"] = [tokenizer.decode(ids) for ids in request["ids"]]
answer["decode_skip_special"] = [tokenizer.decode(ids, skip_special_tokens=True) for ids in request["ids"]]
json.dump(answer, sys.stdout)
