"""`batchgen.generate`: the responses of a run, from an engine that stays."""

import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from conftest import MODEL, demo_records

from batchgen.api import generate as api
from batchgen.api.results import Results
from batchgen.errors import JobError, MachineError


@pytest.fixture(autouse=True)
def closed():
    yield
    api.close()


@pytest.fixture
def instant(monkeypatch):
    """The engine that answers at once, in its own process."""
    monkeypatch.setenv("BATCHGEN_ENGINE", "instant")


def is_alive(process: int) -> bool:
    """Nor waiting for whoever is to hear of its end."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pid() -> int:
    return api._kept._process.pid


def test_responses_are_those_of_a_run(generate, write_rows, tmp_path):
    """By vLLM, greedy and sampled, with several samples, rows' own parameters and rejects."""
    rows = [*demo_records(30), {"text": ""}, {"text": "Monday", "sampling": {"temperature": 0.0}, "seed": 9}]
    for sampling in ({"temperature": 0.0}, {"temperature": 1.0, "n": 2, "seed": 3}):
        sampling |= {"max_tokens": 12}
        out = generate([write_rows(rows)], out=f"out-{sampling['temperature']}", sampling=sampling)
        answers = list(api.generate(rows, MODEL, **sampling))
        assert [answer.record for answer in answers if not answer.reject] == list(Results(out))
        assert [(answer.row, answer.reject) for answer in answers if answer.reject] == [(30, "empty: text has no text")]


def test_answers_are_in_the_order_of_the_prompts(instant):
    answers = list(api.generate((f"Row {n}" for n in range(300)), MODEL, max_tokens=3))
    assert [answer.row for answer in answers] == list(range(300))


def test_texts_are_prompts_and_their_number_is_their_id(instant):
    [answer] = api.generate(["Friday"], MODEL)
    assert (answer.id, answer.sample, answer.finish_reason) == ("0", 0, "stop")
    assert answer.record["conversation"] == [{"speaker": "ユーザー", "text": "Friday"}]


def test_no_prompts_have_no_answers(instant):
    assert list(api.generate([], MODEL)) == []
    assert api._kept is None


def test_a_text_by_itself_is_told_from_a_path(instant, tmp_path):
    with pytest.raises(JobError, match=r"'Friday': no such file or folder; a text to be answered goes into a list"):
        next(api.generate("Friday", MODEL))
    with pytest.raises(JobError, match=r"Friday.jsonl: no such file or folder$"):
        next(api.generate("Friday.jsonl", MODEL))


def test_checks_and_their_tries_are_those_of_a_run(instant):
    [answer] = api.generate(["Friday"], MODEL, check={"checks": ["forbidden:."], "tries": 3, "on_failure": "null"})
    assert answer.response is None and answer.reject is None and answer.record["tries"] == 3
    [answer] = api.generate(["Friday"], MODEL, check={"checks": ["forbidden:."], "on_failure": "reject"})
    assert answer.reject.startswith("check_failed: ")


def test_the_engine_is_kept_while_it_fits(instant):
    list(api.generate(["Friday"], MODEL))
    first = pid()
    list(api.generate(["Monday"], MODEL, temperature=0.5))
    assert pid() == first
    list(api.generate(["Monday"], MODEL, engine={"max_num_seqs": 4}))
    assert pid() != first


def test_breaking_off_leaves_the_engine_fit_for_the_next_call(instant):
    first = list(itertools.islice(api.generate([f"Row {n}" for n in range(100)], MODEL), 3))
    again = list(api.generate([f"Row {n}" for n in range(100)], MODEL))
    assert again[:3] == first and len(again) == 100


def test_two_threads_share_an_engine(instant):
    prompts = [f"Row {n}" for n in range(200)]
    alone = list(api.generate(prompts, MODEL))
    found: dict[int, list] = {}

    def work(number: int) -> None:
        found[number] = list(api.generate(prompts, MODEL))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == dict.fromkeys(range(3), alone)


def test_the_engine_outlives_the_thread_that_made_the_first_call(instant):
    thread = threading.Thread(target=lambda: list(api.generate(["Friday"], MODEL)))
    thread.start()
    thread.join(60)
    first = pid()
    time.sleep(1.5)  # Linux would end it at once, what watches its parent within a second
    list(api.generate(["Monday"], MODEL))
    assert pid() == first


def test_the_engine_ends_with_a_process_that_is_killed(tmp_path):
    program = (
        "import os, signal, sys, batchgen\n"
        "from batchgen.api import generate as api\n"
        "list(batchgen.generate(['Friday'], sys.argv[1]))\n"
        "print(api._kept._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"BATCHGEN_ENGINE": "instant", "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", program, MODEL]
    engine = int(subprocess.run(command, stdout=subprocess.PIPE, env=environment, timeout=60).stdout)
    end = time.monotonic() + 10
    while is_alive(engine):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_answers_that_are_still_to_come_from_an_engine_that_was_closed_are_an_error(instant):
    answers = api.generate([f"Row {n}" for n in range(5000)], MODEL)
    next(answers)
    list(api.generate(["Friday"], MODEL, engine={"max_num_seqs": 4}))
    with pytest.raises(JobError, match=r"was closed, by close\(\) or by a call with another model or \[engine\]"):
        list(answers)
    assert len(list(api.generate(["Friday"], MODEL, engine={"max_num_seqs": 4}))) == 1


def test_a_thread_that_waits_for_answers_is_told_that_the_engine_was_closed(instant):
    told: list[Exception] = []
    has_begun = threading.Event()

    def ask() -> None:
        try:
            for _ in api.generate((f"Row {n}" for n in range(50_000)), MODEL):
                has_begun.set()
        except Exception as error:
            told.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert has_begun.wait(60)
    api.close()
    thread.join(60)
    assert [type(error) for error in told] == [JobError]


def test_an_engine_that_dies_is_an_error_and_the_next_call_has_a_new_one(instant):
    answers = api.generate([f"Row {n}" for n in range(5000)], MODEL)
    next(answers)
    os.kill(pid(), signal.SIGKILL)
    with pytest.raises(MachineError, match="the engine failed: its process ended"):
        list(answers)
    assert len(list(api.generate(["Friday"], MODEL))) == 1


def test_a_wrong_argument_is_told_before_an_engine_starts(instant):
    with pytest.raises(JobError, match="temperatur: unknown key; did you mean temperature"):
        next(api.generate(["Friday"], MODEL, temperatur=1))
    assert api._kept is None


def test_nothing_is_left_behind(instant, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    list(api.generate(["Friday"], MODEL))
    api.close()
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith("torchinductor")]
