"""Stop texts: where a response ends, and what of its last token is still its own; by vLLM's own search."""

import random
from collections.abc import Iterable

import pyarrow.dataset as ds
import pytest
from conftest import demo_records
from vllm.v1.engine.detokenizer import check_stop_strings

from batchgen.engine.stop import MOST_HELD, StopSearch
from batchgen.engine.types import WHOLE, Response
from batchgen.job.sampling import Sampling
from batchgen.model.vllm_tokenizer import VllmTokenizer
from batchgen.output import journal
from batchgen.output.store import at
from batchgen.task.task import Answer, Entry

GREEDY = {"temperature": 0, "max_tokens": 64}


def rows_of(out) -> list[dict]:
    return ds.dataset(out).to_table().to_pylist()


class Detokenizing(VllmTokenizer):
    """With what vLLM's own detokenizer asks of a tokenizer beside it."""

    all_special_ids: tuple[int, ...] = ()

    def convert_ids_to_tokens(self, ids: Iterable[int], skip_special_tokens: bool = False) -> list[str]:
        return [f"{token}" for token in ids if token in self._ours.text_ids or not skip_special_tokens]

    def get_added_vocab(self) -> dict[str, int]:
        return {}

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return self._ours.decode(map(int, tokens))


# Of stop texts that one token completes vLLM 0.26 takes the first of the list, not the one that is complete first.
EARLIEST_COUNTS = check_stop_strings("abc", 3, ["bc", "b"], False) == ("b", 1)


def finish(engine, requests: dict[str, tuple[list[int], Sampling]]) -> dict[str, Response]:
    for name, (prompt, sampling) in requests.items():
        engine.add(name, prompt, sampling, seed=0)
    found = {}
    while len(found) < len(requests):
        found |= {response.request_id: response for response in engine.step()}
    return found


def finish_by_vllm(engine, requests: dict[str, tuple[list[int], Sampling]]) -> dict[str, tuple[str, list[int], str]]:
    """Text, token ids and finish reason, as vLLM detokenizes and stops by itself."""
    for name, (prompt, sampling) in requests.items():
        params = engine.params(sampling, 0)
        params.detokenize, params.stop = True, sampling.stop
        params.include_stop_str_in_output = sampling.include_stop_str_in_output
        params.output_kind = engine._final_only
        params.output_text_buffer_length = 0
        engine._engine.add_request(name, {"type": "token", "prompt_token_ids": prompt}, params)
    found = {}
    while len(found) < len(requests):
        for output in engine._engine.step():
            [done] = output.outputs
            if output.finished:
                found[output.request_id] = done.text, list(done.token_ids), str(done.finish_reason)
    return found


def test_random_stop_texts_end_responses_exactly_as_vllms_own_search_does(engine, monkeypatch):
    tokenizer = engine._tokenizer
    monkeypatch.setattr(engine._engine.output_processor, "tokenizer", Detokenizing(tokenizer))
    prompts = [tokenizer.encode(f"ユーザー: {record['text']}\nシステム: ") for record in texts(60)]
    # Without an end of text some responses run on into bytes that are no characters.
    free = {
        str(i): (prompt, Sampling(temperature=0, max_tokens=48, ignore_eos=i % 3 == 0))
        for i, prompt in enumerate(prompts)
    }
    whole = {name: tokenizer.decode(done.token_ids) for name, done in finish(engine, free).items()}
    chance = random.Random(11)
    cases = {}
    for number in range(400):
        name = str(chance.randrange(len(prompts)))
        prompt, sampling = free[name]
        text = whole[name]
        stops = []
        for _ in range(chance.choice([1, 1, 2, 4]) if EARLIEST_COUNTS else 1):
            start, length = chance.randrange(max(1, len(text))), chance.choice([1, 1, 2, 3, 7])
            stops.append(text[start : start + length] or "nowhere")
        cases[f"{name}-{number}"] = (
            prompt,
            Sampling(
                temperature=0,
                max_tokens=48,
                ignore_eos=sampling.ignore_eos,
                stop=stops,
                min_tokens=chance.choice([0, 0, 1, 2, 3, 5, 8, 13, 21]),
                include_stop_str_in_output=chance.random() < 0.4,
            ),
        )
    ours, theirs = finish(engine, cases), finish_by_vllm(engine, cases)
    for name, (text, token_ids, reason) in theirs.items():
        mine = ours[name]
        decoded = tokenizer.decode(mine.token_ids)
        assert (mine.token_ids, mine.finish_reason) == (token_ids, reason), cases[name][1]
        if mine.text_end != WHOLE:
            assert decoded[: mine.text_end] == text, cases[name][1]
        else:
            assert decoded.startswith(text), cases[name][1]  # vLLM never shows bytes at the end that it holds back
    ended = [name for name, mine in ours.items() if mine.text_end != WHOLE]
    late = [name for name in ended if cases[name][1].min_tokens and len(ours[name].token_ids) > 2]
    assert len(ended) > 200 and len(late) > 50, "the cases must try what they are for"


def texts(count: int) -> list[dict]:
    return [{"text": record["conversation"][-1]["text"]} for record in demo_records(count)]


@pytest.mark.parametrize("min_tokens", range(9))
def test_a_stop_text_that_is_complete_before_min_tokens_never_ends_the_response(generate, write_rows, min_tokens):
    source = write_rows([{"text": "Friday"}])
    [whole] = rows_of(generate([source], "whole", sampling=GREEDY, output={"include": ["response_token_ids"]}))
    first = whole["response"][:2]
    assert whole["response"].count(first) == 1
    [row] = rows_of(generate([source], "cut", sampling={**GREEDY, "stop": [first], "min_tokens": min_tokens}))
    completed_by = row["response_tokens"] if row["response"] == "" else None
    if completed_by is None:
        assert row["response"] == whole["response"]
    else:
        assert completed_by > min_tokens


class Bytes:
    """A tokenizer whose tokens are the bytes of UTF-8."""

    @staticmethod
    def decode(ids) -> str:
        return bytes(ids).decode(errors="replace")


def search(text: bytes, **sampling) -> tuple[int, str] | None:
    """At which token the search ends the response, and the response."""
    looking = StopSearch(Sampling(**sampling), Bytes.decode)
    for number, byte in enumerate(text, 1):
        if (end := looking.take(byte)) is not None:
            return number, Bytes.decode(text[:number])[:end]
    return None


def test_a_stop_text_is_found_over_bytes_and_the_character_that_begins_before_min_tokens_counts():
    assert search("月曜日です".encode(), stop=["日"]) == (9, "月曜")
    assert search("月曜日です".encode(), stop=["曜日"], include_stop_str_in_output=True) == (9, "月曜日")
    assert search("月曜日です".encode(), stop=["日"], min_tokens=8) == (9, "月曜")
    assert search("月曜日です".encode(), stop=["日"], min_tokens=9) is None
    assert search("月曜日です".encode(), stop=["曜日"], min_tokens=7) == (9, "月")  # begins before it, ends behind it


def test_of_stop_texts_that_one_token_completes_the_earliest_counts():
    pieces = [b"Kana", b"zawa station"]
    looking = StopSearch(
        Sampling(stop=["station", "zawa", "anazawa"]),
        lambda ids: b"".join(pieces[i] for i in ids).decode(),
    )
    assert looking.take(0) is None
    assert "Kanazawa station"[: looking.take(1)] == "Kana"  # of the two that end there the first in the list


def test_bytes_that_never_become_a_character_are_no_stop_text_and_do_not_cost_more_and_more():
    decoded = []

    def counted(ids) -> str:
        decoded.append(len(ids))
        return Bytes.decode(ids)

    looking = StopSearch(Sampling(stop=["\ufffdx"]), counted)
    for byte in b"\xe6" * 500:
        assert looking.take(byte) is None
    assert max(decoded) <= 2 * MOST_HELD + 1
    assert search("\ufffd".encode(), stop=["\ufffd"]) is None  # vLLM holds it back as well


def test_a_response_is_cut_where_the_journal_says_and_an_older_journal_is_cut_by_its_own_rule(tmp_path, item_of):
    made, job = item_of({"text": "Friday", "sampling": {"stop": ["す", "で"]}})
    ids = job.model.tokenizer.encode("金曜です")
    text = job.model.tokenizer.decode(ids)
    old = Entry(0, 0, ids, "stop")
    (tmp_path / "_state" / "journal").mkdir(parents=True)
    out = at(tmp_path)
    written = journal.Journal(out, 0, "x", "f")
    # As 0.1.0 wrote an entry: an array of five.
    written._pending.append(journal._record(journal.msgspec.msgpack.encode([0, 0, ids, "stop", None])))
    written.append(Entry(0, 0, ids, "stop", None, 2))
    written.append(Entry(0, 0, ids, "stop", None, WHOLE))
    written.flush()
    written.close()
    [name] = journal.names(out, 0)
    entries, damage, _ = journal.read(out, name, "f")
    assert (entries[0], damage) == (old, "")
    [request] = made.requests
    answers = [row for entry in entries for row in job.task.output(made, [Answer(request, entry)])]
    assert [answer["response"] for answer in answers] == [text[: text.rfind("す")], text[:2], text]
