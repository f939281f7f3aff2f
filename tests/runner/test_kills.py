"""kill -9 at any moment: nothing is lost, nothing comes twice, and at most a second of finished work is done again."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import demo_records
from processes import Finished, Run, Watch, dataset, said, until
from wrapped import datasets

WHOLE = 600  # seconds for a whole run of 6,000 rows: 30 on quiet cores
BAD = ["no json", {"text": ""}, b'{"text": "\xff"}', {"text": "Monday", "sampling": {"top_p": 7}}]


def mixed_rows(number: int) -> list:
    """Demo conversations, long responses and bad rows among them."""
    demo = demo_records(2000)
    rows = [{**demo[i % 2000], "id": f"row {i}"} for i in range(number)]
    for i in range(0, number, 25):
        rows[i]["sampling"] = {"ignore_eos": True, "max_tokens": 150}
    for i in range(7, number, 40):
        rows[i] = BAD[i % len(BAD)]
    return rows


def lost(finished: list[Finished], kills: list[float]) -> list[tuple[Finished, float]]:
    """What engines finished and a later engine had to finish again, each with the moment of the kill in between."""
    last = {done.item: done.at for done in finished}
    return [(done, next(kill for kill in kills if kill > done.at)) for done in finished if done.at < last[done.item]]


def most_in_a_second(finished: list[Finished]) -> int:
    """Tokens of the best second of an undisturbed run."""
    return max(sum(done.tokens for done in finished if 0 <= done.at - first.at < 1) for first in finished)


# --- moments


def at_start(random: random.Random) -> Callable[[Run, Watch], None]:
    """Anywhere from the first line of Python to the first token."""
    seconds = random.uniform(0, 7)
    return lambda run, watch: until(lambda: time.monotonic() - run.begin > seconds)


def while_generating(random: random.Random, most: int) -> Callable[[Run, Watch], None]:
    """After so many more finished items, somewhere in a step."""
    items, seconds = random.randint(1, most), random.uniform(0, 0.03)

    def wait(run: Run, watch: Watch) -> None:
        before = len(watch.finished())
        until(lambda: len(watch.finished()) >= before + items or run.process.poll() is not None)
        time.sleep(seconds)

    return wait


def while_committing(random: random.Random) -> Callable[[Run, Watch], None]:
    """When the next shard's checksums are there: its Parquet file comes, its journals and its claim go."""
    seconds = random.uniform(0, 0.005)

    def wait(run: Run, watch: Watch) -> None:
        def committed() -> set[Path]:
            return set((run.out / "_state" / "checksums").glob("*"))

        before = committed()
        until(lambda: committed() - before or run.process.poll() is not None)
        time.sleep(seconds)

    return wait


# --- tests


def killed_and_resumed(start, watch: Watch, source: Path, out: Path, flags: list, moments: list) -> list[float]:
    """Kills a run at each of the moments, starts it again, and lets the last one come to its end."""
    kills = []
    for wait in moments:
        run = start(source, out, *flags, env=watch.environment)
        wait(run, watch)
        assert run.process.poll() is None, f"ended before it was killed: {run.stderr}"
        run.kill()
        kills.append(time.monotonic())
    run = start(source, out, *flags, env=watch.environment)
    assert run.wait(WHOLE) == 0, run.stderr
    return kills


@pytest.mark.slow
def test_fifty_kills_lose_nothing_and_cost_less_than_a_second_each(start, write_rows, tmp_path):
    source, flags = write_rows(mixed_rows(6000)), ["--temperature", 0.8, "--max-tokens", 96, "--shard-rows", 40]
    (tmp_path / "whole").mkdir()
    undisturbed = Watch(tmp_path / "whole")
    assert start(source, tmp_path / "expected", *flags, env=undisturbed.environment).wait(WHOLE) == 0

    chance = random.Random(3)
    moments = [*(at_start(chance) for _ in range(8)), *(while_generating(chance, 110) for _ in range(32))]
    moments += [while_committing(chance) for _ in range(10)]
    chance.shuffle(moments)
    watch = Watch(tmp_path)
    kills = killed_and_resumed(start, watch, source, tmp_path / "out", flags, moments)

    assert dataset(tmp_path / "out") == dataset(tmp_path / "expected")
    finished = watch.finished()
    again = lost(finished, kills)
    hit = {next((kill for kill in kills if kill > done.at), None) for done in finished} - {None}
    tokens, second = sum(done.tokens for done, _ in again), most_in_a_second(undisturbed.finished())
    oldest = max((kill - done.at for done, kill in again), default=0)
    print(
        f"\n{len(kills)} kills, {len(hit)} of them after responses had come; done twice: {len(again)} of "
        f"{len(finished)} items, {tokens} tokens ({second} are a second's worth), none older than {oldest:.3f} s"
    )
    assert len(hit) >= 40
    assert oldest < 1
    assert tokens <= len(kills) * second


def test_killed_while_vllm_generates_and_resumed_the_dataset_is_the_same(start, generate, write_rows, tmp_path):
    source, moments = write_rows(mixed_rows(400)), [while_generating(random.Random(1), 100)]
    expected = generate([source], "expected", output={"shard_rows": 40})
    watch = Watch(tmp_path)
    kills = killed_and_resumed(start, watch, source, tmp_path / "out", ["--shard-rows", 40], moments)
    assert dataset(tmp_path / "out") == dataset(expected)
    assert all(kill - done.at < 1 for done, kill in lost(watch.finished(), kills))


def test_killed_again_and_again_and_resumed_the_dataset_is_the_same(start, instantly, write_rows, tmp_path):
    source, chance = write_rows(mixed_rows(1000)), random.Random(1)
    expected = instantly([source], "expected", output={"shard_rows": 40})
    watch = Watch(tmp_path, step=0.03)
    moments = [*(while_generating(chance, 100) for _ in range(2)), *(while_committing(chance) for _ in range(3))]
    killed_and_resumed(start, watch, source, tmp_path / "out", ["--shard-rows", 40], moments)
    assert dataset(tmp_path / "out") == dataset(expected)


@pytest.mark.slow
def test_a_worker_killed_alone_is_started_again_and_the_run_goes_on(start, generate, write_rows, tmp_path):
    source = write_rows(mixed_rows(400))
    expected = generate([source], "expected", output={"shard_rows": 40})
    watch = Watch(tmp_path)
    run = start(source, tmp_path / "out", "--shard-rows", 40, env=watch.environment)
    until(lambda: len(watch.finished()) > 50)
    [worker] = run.workers()
    os.kill(worker, signal.SIGKILL)
    killed = time.monotonic()
    assert run.wait() == 0
    assert said(run.stderr) == ["batchgen: warning: the engine died (killed by SIGKILL); restarting in 1 s"]
    assert dataset(tmp_path / "out") == dataset(expected)
    assert all(kill - done.at < 1 for done, kill in lost(watch.finished(), [killed]))


TRANSLATION = ["--template", "{text}", "--translate-from", "English", "--translate-into", "Japanese"]
TRANSLATION += ["--translate-fields", "text", "--translate-protect", "url", "--translate-protect", "code"]


def texts_to_translate(number: int) -> list[dict]:
    """Several sentences each, some of them in many rows, and some with what is protected."""
    some = [
        record["text"] for dataset in datasets(980) for record in dataset.records if dataset.name in ("lines", "code")
    ]
    return [{"text": f"{some[i % len(some)]}\n\n{some[i * 7 % len(some)]}", "n": i} for i in range(number)]


def whole_folder(out: Path) -> dict[str, bytes]:
    files = [*out.glob("part-*"), *out.glob("_segments/*"), *out.glob("_rejects/*")]
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_thirty_kills_of_a_translation_change_no_byte(start, write_rows, tmp_path):
    source, flags = write_rows(texts_to_translate(600)), [*TRANSLATION, "--temperature", 1.5, "--shard-rows", 20]
    assert start(source, tmp_path / "expected", *flags).wait(WHOLE) == 0
    chance = random.Random(5)
    moments = [*(at_start(chance) for _ in range(4)), *(while_generating(chance, 60) for _ in range(18))]
    moments += [while_committing(chance) for _ in range(8)]
    chance.shuffle(moments)
    watch = Watch(tmp_path)
    kills = killed_and_resumed(start, watch, source, tmp_path / "out", flags, moments)
    assert whole_folder(tmp_path / "out") == whole_folder(tmp_path / "expected")
    assert all(kill - done.at < 1 for done, kill in lost(watch.finished(), kills))


def test_a_translation_that_is_killed_and_resumed_is_the_same(start, write_rows, tmp_path):
    source, flags = write_rows(texts_to_translate(60)), [*TRANSLATION, "--temperature", 1.5, "--shard-rows", 6]
    watch, chance = Watch(tmp_path, step=0.03), random.Random(1)
    assert start(source, tmp_path / "expected", *flags, env=watch.environment).wait(WHOLE) == 0
    moments = [while_generating(chance, 60), while_committing(chance), while_generating(chance, 60)]
    killed_and_resumed(start, watch, source, tmp_path / "out", flags, moments)
    assert whole_folder(tmp_path / "out") == whole_folder(tmp_path / "expected")
