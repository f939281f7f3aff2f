"""batchgen as a model of lm-evaluation-harness: `python -m batchgen.lm_eval`.

The harness makes the prompts and adds up the scores. What it asks becomes batchgen jobs, one for each kind of request,
in folders below `work` named by what is asked: an evaluation that was killed goes on where it was, and one that is
run again asks the engine nothing. Tokens are those of a job, so prompts of the rinna series come out exact; the
harness's own backends put a space ahead, lose newlines and append `</s>`, with no error.

Written for lm-eval 0.4.13, the extra `eval`.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from ..errors import JobError
from ..host import safeopen
from ..job.sampling import Sampling
from ..job.spec import current_folder, load, model_path
from ..model.model import load_model
from ..output import shard, store
from ..runner.run import run
from .verify import open_finished

WORK = "lm_eval-batchgen"  # where the jobs lie, unless `work` says
NOT_OURS = {"batch_size", "max_batch_size", "device"}  # arguments that the harness gives every model
MAX_GEN_TOKS = 256  # what the harness's backends generate where a task does not say
PROMPT = {"format": "raw", "template": "{prompt}", "on_overlength": "clip"}


@register_model("batchgen")
class Batchgen(LM):
    """A model of the harness whose requests run as batchgen jobs.

    pretrained: model folder, or name of a model on the hub
    work: folder of the jobs
    revision: of a model on the hub
    keep_space: white space at the end of a context stays there, as it did before version 0.4 of the harness, and is
        not scored
    engine: further arguments are vLLM's EngineArgs by name
    """

    def __init__(self, pretrained: str, work: str = WORK, revision: str = "", keep_space: bool = False, **engine: Any):
        super().__init__()
        self._model = {"path": pretrained} | ({"revision": revision} if revision else {})
        self._work = Path(work)
        self._keep_space = keep_space
        self._engine = {name: value for name, value in engine.items() if name not in NOT_OURS and value is not None}

    @property
    def tokenizer_name(self) -> str:
        return str(self._model["path"]).replace("/", "__")

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = [request.args if self._keep_space else _with_its_space(*request.args) for request in requests]
        behind = self._run(
            "loglikelihood",
            [{"prompt": context, "text": text} for context, text in pairs if context],
            score={"mode": "continuation", "column": "text"},
            prompt=PROMPT,
        )
        alone = self._run("alone", [{"text": text} for context, text in pairs if not context], score={"mode": "text"})
        found = []
        for request, (context, text) in zip(requests, pairs, strict=True):
            row = behind[_key({"prompt": context, "text": text})] if context else alone[_key({"text": text})]
            [score] = row["scores"]
            found.append((score["logprob"], score["greedy"]))
            self.cache_hook.add_partial("loglikelihood", request.args, found[-1])
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        texts = [request.args[0] for request in requests]
        rows = self._run("rolling", [{"text": text} for text in texts if text], score={"mode": "text"})
        found = [rows[_key({"text": text})]["scores"][0]["logprob"] if text else 0.0 for text in texts]
        for request, logprob in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, logprob)
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        asked = [{"prompt": request.args[0], "sampling": sampling_of(self._sized(request))} for request in requests]
        rows = self._run(
            "generate",
            asked,
            prompt=PROMPT,
            input={"sampling": "sampling"},
            output={"include": ["response_token_ids"]},
        )
        found = [self._written(rows[_key(row)], row["sampling"]) for row in asked]
        for request, response in zip(requests, found, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, response)
        return found

    def _sized(self, request: Any) -> dict[str, Any]:
        """The harness's parameters of a request. `max_gen_toks_of` names a field of the document: the response may have
        as many tokens as the longest of its texts."""
        asked = dict(request.args[1])
        field = asked.pop("max_gen_toks_of", None)
        if field:
            asked["max_gen_toks"] = max([1, *(len(self._tokenizer.encode(text)) for text in request.doc[field])])
        return asked

    def _written(self, row: dict[str, Any], sampling: dict[str, Any]) -> str:
        """The response. Where the end-of-text token does not end it, it shows as text."""
        if not sampling.get("ignore_eos"):
            return str(row["response"])
        text: str = self._tokenizer.decode(row["response_token_ids"], skip_special_tokens=False)
        for end in sampling["stop"]:
            text = text.partition(end)[0]
        return text

    @cached_property
    def _tokenizer(self) -> Any:
        path = model_path(self._model["path"], current_folder())
        return load_model(path, self._model.get("revision", "")).tokenizer

    def _run(self, kind: str, rows: Sequence[dict[str, Any]], **tables: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The output rows of a job over these rows, by their keys; equal rows are one. Raises JobError, also if one is
        rejected."""
        distinct = {_key(row): row for row in rows}
        if not distinct:
            return {}
        lines = b"".join(
            json.dumps({"id": key, **row}, ensure_ascii=False).encode() + b"\n" for key, row in distinct.items()
        )
        place = self._work / f"{kind}-{hashlib.blake2b(lines, digest_size=8).hexdigest()}"
        place.mkdir(parents=True, exist_ok=True)
        source, out = place / "requests.jsonl", place / "out"
        if not source.exists() or source.read_bytes() != lines:
            safeopen.replace(source, lines)
        given: dict[str, dict[str, Any]] = {
            "input": {"path": [str(source)]},
            "output": {"path": str(out), "max_rejects": 0},
        }
        given |= {"model": self._model, "engine": self._engine}
        merged = {name: {**given.get(name, {}), **tables.get(name, {})} for name in given.keys() | tables.keys()}
        outcome = run(load(None, merged))
        if outcome.counts is None or outcome.counts.rejected:
            raise JobError(f"{out}: not every request was answered; see batchgen rejects {out}")
        record, _ = open_finished(store.at(out))
        columns = ["id", "scores"] if "score" in tables else ["id", "response", "response_token_ids"]
        finished = (shard.read(store.at(out), planned, columns) for planned in record.plan.shards)
        return {row["id"]: row for table in finished for row in table.to_pylist()}


def sampling_of(asked: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a row, from the harness's of a request: greedy, unless it is told to sample."""
    known = {name: value for name, value in asked.items() if name in Sampling.__struct_fields__}
    until = asked.get("until") or []
    known["stop"] = [until] if isinstance(until, str) else list(until)
    known["max_tokens"] = asked.get("max_gen_toks") or asked.get("max_new_tokens") or MAX_GEN_TOKS
    if not asked.get("do_sample", bool(asked.get("temperature"))):
        known["temperature"] = 0.0
    return msgspec.to_builtins(known)


def _with_its_space(context: str, text: str) -> tuple[str, str]:
    """White space at the end of a context belongs to what follows it, by the rule of the harness."""
    bare = context.rstrip()
    return bare, context[len(bare) :] + text


def _key(row: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(row, sort_keys=True).encode(), digest_size=16).hexdigest()
