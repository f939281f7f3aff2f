"""How long a supervisor waits, and for what; in which order a worker admits requests, and how many."""

import dataclasses
import os
import selectors
import signal
import subprocess
import time
from types import SimpleNamespace

import msgspec
import pytest
from conftest import MODEL, demo_records, untimed

from batchgen.errors import MachineError, Stopped, Stopping
from batchgen.host.console import Console
from batchgen.job.spec import load
from batchgen.output.journal import Entry, Journal, rows_done
from batchgen.output.opening import open_job
from batchgen.runner import admission, run
from batchgen.runner.death import Death
from batchgen.runner.messages import Exit, ExitKind
from batchgen.runner.prepare import Job, prepare
from batchgen.runner.progress import Progress
from batchgen.runner.supervisor import Supervisor
from batchgen.runner.worker_process import WorkerProcess


@pytest.fixture
def job(write_rows, tmp_path) -> Job:
    source = write_rows(demo_records(4))
    output = {"path": str(tmp_path / "out"), "stall": 10, "max_restarts": 8}
    prepared = prepare(load(None, {"input": {"path": [str(source)]}, "model": {"path": str(MODEL)}, "output": output}))
    open_job(prepared.out, prepared.record)
    return prepared


@pytest.fixture
def silent(job, monkeypatch):
    """A supervisor of one worker, which is another program that never says anything."""
    overseen = Supervisor(job, Progress(Console(None), 4, 0), [{}])
    [slot] = overseen._slots
    process = subprocess.Popen(["sleep", "600"], stdin=subprocess.PIPE, start_new_session=True)
    read, write = os.pipe()
    slot.worker = WorkerProcess(process, os.fdopen(read, "rb", buffering=0), 0)
    monkeypatch.setattr(overseen, "_on_exit", lambda slot, worker, end: words.append(end.text))
    words: list[str] = []
    yield overseen, slot, words
    slot.worker.kill()
    os.close(write)


def test_pauses_between_restarts_grow_to_a_minute_until_there_are_no_more(job):
    overseen = Supervisor(job, Progress(Console(None), 4, 0), [{}])
    [slot] = overseen._slots
    slot.engine_start = 1.0
    gone = WorkerProcess(None, None, 0)  # type: ignore[arg-type]
    pauses = []
    for _ in range(8):
        overseen._after_death(slot, gone, Death("CUDA error"))
        pauses.append(round(slot.start_at - time.monotonic()))
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    with pytest.raises(MachineError, match="the engine died 9 times in a row: CUDA error"):
        overseen._after_death(slot, gone, Death("CUDA error"))


def test_an_engine_may_take_longer_to_start_than_to_bring_a_token(silent):
    overseen, slot, words = silent
    for engine_start, silence, gone in ((None, 95, False), (None, 101, True), (5.0, 9, False), (5.0, 11, True)):
        slot.worker.engine_start = engine_start
        slot.worker.last_report = time.monotonic() - silence
        overseen._turned = time.monotonic()
        overseen._check_for_stall(slot, slot.worker)
        assert bool(words) == gone, (engine_start, silence)
        words.clear()


def test_what_a_supervisor_slept_through_is_nobodys_silence(silent):
    overseen, slot, words = silent
    slot.worker.engine_start = 5.0
    slot.worker.last_report = time.monotonic() - 31
    overseen._turned = time.monotonic() - 30  # our last look was 30 s ago
    overseen._forgive_absence()
    overseen._check_for_stall(slot, slot.worker)
    assert words == []
    slot.worker.last_report -= 10
    overseen._check_for_stall(slot, slot.worker)
    assert words == ["no token for 10 s"]


def test_the_last_report_of_a_worker_that_exits_after_we_looked_is_heard_in_the_next_turn(silent, monkeypatch):
    overseen, slot, _ = silent
    ends: list[Exit | None] = []
    monkeypatch.setattr(overseen, "_on_exit", lambda slot, worker, end=None: ends.append(end))
    read, write = os.pipe()
    slot.start_at = None
    slot.worker.reports = os.fdopen(read, "rb", buffering=0)

    def nothing_yet(timeout: float) -> list:
        slot.worker.process.kill()
        slot.worker.process.wait()
        os.write(write, msgspec.json.encode(Exit(ExitKind.DIED, "CUDA error")) + b"\n")
        return []

    overseen._selector = SimpleNamespace(select=nothing_yet)
    overseen._turn()
    with selectors.DefaultSelector() as overseen._selector:
        overseen._selector.register(slot.worker.reports, selectors.EVENT_READ, slot)
        overseen._turn()
    os.close(write)
    assert [end and end.text for end in ends] == ["CUDA error"]


def test_a_first_start_that_crashed_or_failed_is_given_up_and_one_that_was_killed_is_not(job):
    gone = WorkerProcess(None, None, 0)  # type: ignore[arg-type]
    for why, given_up in (
        (Death("ValueError: x"), True),
        (Death("killed by SIGSEGV", signal.SIGSEGV), True),
        (Death("killed by SIGKILL", signal.SIGKILL), False),
    ):
        overseen = Supervisor(job, Progress(Console(None), 4, 0), [{}])
        [slot] = overseen._slots
        if given_up:
            with pytest.raises(MachineError, match=why.text):
                overseen._after_death(slot, gone, why)
        else:
            overseen._after_death(slot, gone, why)
            assert slot.start_at is not None
        slot.engine_start, slot.deaths = 1.0, 0  # once it has been up, each of them may pass
        overseen._after_death(slot, gone, why)
        assert slot.start_at is not None


def test_a_worker_that_outlasts_its_time_is_ended_and_its_engine_is_said_not_to_have_drained(silent, monkeypatch):
    overseen, slot, _ = silent
    ends = []
    monkeypatch.setattr(overseen, "_on_exit", lambda slot, worker, end: ends.append(end))
    overseen._turned = time.monotonic()
    overseen._stop_by = overseen._turned - 1
    overseen._check_for_stall(slot, slot.worker)
    assert [(end.kind, end.why) for end in ends] == [(ExitKind.STOPPED, Stopping.NOT_DRAINED)]
    assert [stopped.why for stopped in overseen._stopped] == [Stopping.TIME_UP]


FULL = Stopped("/out: No space left on device")


@pytest.mark.parametrize(
    ("stopped", "signals", "text", "why"),
    [
        ([Stopping.AS_ASKED, Stopping.AS_ASKED], [signal.SIGTERM], "stopped as asked; ", Stopping.AS_ASKED),
        ([Stopping.AS_ASKED], [signal.SIGUSR1], "stopped as asked; ", Stopping.TIME_UP),  # it comes from Slurm
        ([Stopping.TIME_UP, Stopping.AS_ASKED], [signal.SIGTERM], "stopped, as the time is", Stopping.TIME_UP),
        ([Stopping.TIME_UP, Stopping.NOT_DRAINED], [], "stopped; the engine did not drain", Stopping.TIME_UP),
        ([FULL, Stopping.AS_ASKED], [], str(FULL), Stopping.FAULT),  # the others were asked because of it
        ([Stopping.TIME_UP, FULL], [], str(FULL), Stopping.TIME_UP),
    ],
)
def test_a_run_that_ends_early_tells_of_a_fault_first_and_whether_the_time_is_up(job, stopped, signals, text, why):
    overseen = Supervisor(job, Progress(Console(None), 4, 0), [{}])
    overseen._stopped = [each if isinstance(each, Stopped) else Stopped(why=each) for each in stopped]
    overseen.signals = signals
    end = overseen._early_end()
    assert (str(end).startswith(text), end.why) == (True, why)


def test_a_job_that_goes_on_with_other_versions_says_so(job, capsys):
    run._warn_of_other_versions(job)
    assert capsys.readouterr().err == ""
    newer = dataclasses.replace(job, record=msgspec.structs.replace(job.record, versions={"vllm": "9.9"}))
    run._warn_of_other_versions(newer)
    [line] = untimed(capsys.readouterr().err).splitlines()
    assert line.startswith("batchgen: warning: this job was begun with {") and line.endswith(
        'goes on with {"vllm":"9.9"}'
    )


# --- what a worker admits


@pytest.fixture
def admitted(engine, monkeypatch) -> list[tuple[str, int]]:
    """Each request that went into the engine, and how many were there with it."""
    held: set[str] = set()
    seen = []
    add, step = engine.add, engine.step

    def watched_add(name, *arguments):
        add(name, *arguments)
        held.add(name)
        seen.append((name, len(held)))

    def watched_step():
        responses = step()
        held.difference_update(done.request_id for done in responses)
        return responses

    monkeypatch.setattr(engine, "add", watched_add)
    monkeypatch.setattr(engine, "step", watched_step)
    return seen


@pytest.mark.parametrize("limit", [None, 100])
def test_as_many_wait_as_run_unless_their_prompts_are_long(engine, generate, write_rows, monkeypatch, admitted, limit):
    if limit:
        monkeypatch.setattr(admission, "WINDOW_TOKENS", limit)
    generate([write_rows(demo_records(300))], sampling={"max_tokens": 8, "ignore_eos": True})
    most = max(held for _, held in admitted)
    assert most == engine.max_num_seqs * (1 if limit else admission.WINDOW_PER_SEQUENCE)


def test_the_last_shard_begins_with_its_longest_requests_and_the_others_keep_their_order(
    generate, write_rows, admitted
):
    rows = [{"text": "x" * (1 + 7 * i % 23), "sampling": {"max_tokens": 4 + 5 * i % 17}} for i in range(40)]
    generate([write_rows(rows)], output={"shard_rows": 20})
    order = [int(name.partition("-")[0]) for name, _ in admitted]
    assert order[:20] == list(range(20))
    last = [(rows[i]["sampling"]["max_tokens"], len(rows[i]["text"])) for i in order[20:]]
    assert last == sorted(last, reverse=True)


def test_rows_of_a_lost_worker_are_counted_from_its_journal(job):
    """Of a row with several samples all have to be there; another job's journal has none of them."""
    shard = job.plan.shards[0]
    fingerprint = job.fingerprint_of(shard)
    for worker_name, of_job in (("a", fingerprint), ("b", fingerprint), ("c", "another job's")):
        written = Journal(job.out, shard.index, worker_name, of_job)
        for row, sample in {"a": [(0, 0), (1, 0)], "b": [(1, 0), (2, 0), (2, 1)], "c": [(3, 0)]}[worker_name]:
            written.append(Entry(row, sample, [5], "stop"))
        written.flush()
        written.close()
    assert run._rows_done(job, Supervisor(job, Progress(Console(None), 4, 0), [{}])) == 3
    assert rows_done(job.out, shard.index, fingerprint, samples=2) == 1
