"""Jobs with images from the command line: killed and resumed, checked, repeated, and in how much memory."""

import json
import random
import re
import time
from pathlib import Path

import pictured
import pytest
from conftest import MODEL
from minigpt4 import minigpt4  # noqa: F401
from processes import Watch
from test_kills import WHOLE, killed_and_resumed, while_generating, whole_folder

from batchgen.engine.vision import CACHE

TEMPERATURE = ["--temperature", 1.0]


def flags(made, *more: object) -> list:
    return ["--model", made.model, "--vision", made.vision, "--image-column", "image", *more]


def rows_with_images(folder: Path, number: int) -> list[dict]:
    """Some without an image, with two, or with one that is broken."""
    (folder / "images").mkdir()
    for place in range(number):
        (folder / "images" / f"{place}.png").write_bytes(pictured.photo(place))
    (folder / "images" / "bad.png").write_bytes(b"no image")
    rows = [{"text": f"What is {place}?", "image": f"images/{place}.png"} for place in range(number)]
    for place in range(0, number, 7):
        rows[place]["image"] = [f"images/{place}.png", f"images/{place // 2}.png"]
    for place, value in ((3, []), (4, "images/bad.png"), (5, "images/none.png")):
        rows[place]["image"] = value
    return rows


@pytest.mark.slow
def test_killed_and_resumed_no_byte_is_different(start, minigpt4, write_rows, tmp_path):  # noqa: F811
    source = write_rows(rows_with_images(tmp_path, 60))
    more = flags(minigpt4, *TEMPERATURE, "--shard-rows", 20, "--max-tokens", 40)
    assert start(source, tmp_path / "expected", *more).wait(WHOLE) == 0
    watch, chance = Watch(tmp_path), random.Random(2)
    killed_and_resumed(start, watch, source, tmp_path / "out", more, [while_generating(chance, 20) for _ in range(3)])
    assert whole_folder(tmp_path / "out") == whole_folder(tmp_path / "expected")


@pytest.mark.slow
def test_verify_and_replay_see_the_images(start, batchgen_process, minigpt4, write_rows, tmp_path):  # noqa: F811
    source = write_rows(rows_with_images(tmp_path, 20))
    run = start(source, tmp_path / "out", *flags(minigpt4, *TEMPERATURE, "--max-tokens", 8))
    assert run.wait(WHOLE) == 0
    done = batchgen_process("verify", tmp_path / "out", "--replay", 5)
    assert done.returncode == 0 and "5 of 5" in done.stdout, done.stdout + done.stderr
    (tmp_path / "images" / "9.png").write_bytes(pictured.photo(99))
    done = batchgen_process("verify", tmp_path / "out")
    assert done.returncode == 1 and "the input says" in done.stdout + done.stderr, done.stdout + done.stderr


def test_plan_counts_the_images_and_says_their_share(batchgen, minigpt4, write_rows, tmp_path):  # noqa: F811
    rows = rows_with_images(tmp_path, 10)
    (tmp_path / "images" / "moving.gif").write_bytes(pictured.every_kind()["animated GIF"])
    rows[8]["image"] = "images/moving.gif"
    more = flags(minigpt4, "--output", tmp_path / "out")
    seen = batchgen("plan", write_rows(rows), *more, "--json").stdout
    found = json.loads(seen)
    assert found["rejects"] == {"image_missing": 1, "image_unreadable": 1}
    assert found["images"] == {"total": 9, "rows": 7, "distinct": 8, "animated": 1, "tokens": 9 * 32}
    said = batchgen("plan", write_rows(rows), *more).stdout
    share = round(100 * 9 * 32 / found["prompt_tokens"]["total"])
    assert f"9 in 7 rows, 8 of them distinct, {share}% of the prompt tokens; of 1 animated ones" in said


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (["--model", MODEL, "--image-column", "image"], "takes no images"),
        (["--image-column", ""], "the job has no images; name their column"),
        (["--on-overlength", "clip"], "clip might cut an image"),
        (["--score-mode", "continuation", "--score-column", "text"], "[score] has no use for images"),
        (["--image-column", "picture"], "no row has a column picture"),
    ],
)
def test_what_a_job_with_images_cannot_be_is_one_line(batchgen, minigpt4, write_rows, tmp_path, more, why):  # noqa: F811
    given = flags(minigpt4, *more)
    if "--model" in more:
        given = more
    rows = write_rows([{"text": "x", "image": "a.png"}])
    done = batchgen("plan", rows, *given, "--output", tmp_path / "out")
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1) and why in done.stderr


def memory(process: int) -> float:
    """MB that a process holds, without what it has of files."""
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())[1]) / 1024


@pytest.mark.slow
def test_ten_thousand_images_take_no_more_memory_than_a_thousand(start, minigpt4, write_rows, tmp_path):  # noqa: F811
    """But for the embeddings that are remembered, 64 MB, which are 4,096 images here, and for holes in malloc's heap.
    Once as many are remembered, the worker may grow by 30 MB; it grew by 16."""
    (tmp_path / "images").mkdir()
    for place in range(10_000):
        (tmp_path / "images" / f"{place}.jpg").write_bytes(pictured.photo(place, 48, 32))
    rows = write_rows([{"text": "What?", "image": f"images/{place}.jpg"} for place in range(10_000)])
    out, used = tmp_path / "out", []
    run = start(rows, out, *flags(minigpt4, "--max-tokens", 1, "--shard-rows", 500))
    begin = time.monotonic()
    while run.process.poll() is None:
        finished = len(list(out.glob("part-*")))
        if finished > 1:
            used += [(finished, memory(worker)) for worker in run.workers()[:1] if Path(f"/proc/{worker}").exists()]
        time.sleep(0.5)
    assert run.wait() == 0, run.stderr
    assert len(list(out.glob("part-*"))) == 20
    early, full, late = (max(mb for at, mb in used if low <= at < high) for low, high in ((2, 6), (9, 13), (13, 21)))
    print(f"\n10,000 images in {time.monotonic() - begin:.0f} s; at most {early:.0f} MB up to 3,000,", end=" ")
    print(f"{full:.0f} MB up to 6,500, when embeddings are forgotten again, then {late:.0f} MB")
    assert late < full + 30 and late < early + CACHE / 1e6 + 60
