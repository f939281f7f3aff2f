"""What is not ours is shown so that a terminal obeys none of it, and nobody takes it for a line of ours."""

import json
import re
import shutil

import pytest
from conftest import MODEL, demo_records

from batchgen.host import terminal

# A colour, a window's title, the clipboard, a C1 introducer, a turned direction, separators, hidden text, half a pair.
EVIL = "a\x1b[2J\x1b]0;owned\x07\x1b]52;c;eA==\x07\x9b31m\u202egpj\u2028b\x7f\u200b\U000e0041\rc"
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2028\u2029\u2066-\u2069\ud800-\udfff\U000e0041]")
HARMLESS = "月曜日　はれ 👩‍👩‍👧 🇯🇵 ❤️ é नमस्ते می‌خواهم"


def test_what_a_terminal_obeys_is_escaped_and_the_rest_is_left():
    assert terminal.line(HARMLESS) == HARMLESS
    assert terminal.line("\x1b]\x9b\x7f\n\u202e\ud800") == "\\x1b]\\x9b\\x7f\\n\\u202e\\ud800"
    assert terminal.lines("a\nb\x07") == "a\nb\\x07"


def test_a_document_stays_json():
    value = {"a": f"{EVIL}\n{HARMLESS}"}
    document = terminal.document(json.dumps(value, ensure_ascii=False).encode())
    assert not OBEYED.search(document) and HARMLESS in document
    assert json.loads(document) == value


@pytest.fixture
def evil_job(generate, write_rows):
    """A finished job with an odd row, and what it read."""
    rows = [{"id": EVIL, "text": f"Monday {EVIL} {HARMLESS}"}, f"no JSON {EVIL}", {"text": "", "k\x1b[2J": 1}]
    source = write_rows([json.dumps(row) if isinstance(row, dict) else row for row in rows], f"in {EVIL[:9]}.jsonl")
    return generate([source]), source


def is_clean(text: str) -> bool:
    assert not OBEYED.search(text), ascii(text)
    return True


def test_rejects_are_shown_a_line_each(batchgen, evil_job):
    out, _ = evil_job
    shown = batchgen("rejects", out).stdout
    assert is_clean(shown)
    assert len(shown.splitlines()) == 5  # two for each reject, and the sum
    assert "\\x1b]0;owned\\x07" in shown


def test_plans_and_their_prompts(batchgen, evil_job, tmp_path):
    _, source = evil_job
    flags = [source, "--model", MODEL, "--output", tmp_path / "other"]
    shown = batchgen("plan", *flags, "--show", 3)
    assert is_clean(shown.stdout + shown.stderr)
    assert HARMLESS in shown.stdout and "\\u202egpj" in shown.stdout
    assert not OBEYED.search(document := batchgen("plan", *flags, "--show", 3, "--json").stdout)
    assert json.loads(document)["prompts"][0]["id"] == EVIL


def test_workers_that_others_forged(batchgen, evil_job):
    out, _ = evil_job
    beat = {
        **dict.fromkeys(("rows", "open_rows", "prompt_tokens", "response_tokens", "running", "waiting"), 0),
        **{"state": "x\x1b[2J\nFAKE  done", "slurm": {"job_id": EVIL}, "stale": 1e6, "started": None},
        **{"host": "elsewhere", "boot": EVIL, "pid": 1},
    }
    (out / "_state" / "workers" / "w\nFAKE  done\x1b]0;x\x07").write_text(json.dumps(beat))
    shown = batchgen("status", out)
    assert is_clean(shown.stdout + shown.stderr)
    assert [line for line in shown.stdout.splitlines() if line.startswith("FAKE")] == []
    assert "w\\nFAKE  done\\x1b]0;x\\x07" in shown.stdout
    document = batchgen("status", out, "--json").stdout
    assert is_clean(document)
    assert json.loads(document)["workers"][0]["state"] == "x\x1b[2J\nFAKE  done"


def test_a_models_folder(batchgen, tmp_path):
    model = tmp_path / f"m{EVIL[:9]}"
    shutil.copytree(MODEL, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": f"x{EVIL}\nweights  FAKE"}))
    shown = batchgen("inspect", model)
    assert is_clean(shown.stdout + shown.stderr)
    assert [line for line in shown.stdout.splitlines() if "FAKE" in line and line.startswith("weights  FAKE")] == []


def test_errors_and_usage(batchgen, write_rows, tmp_path):
    for command in (
        ["plan", tmp_path / EVIL, "--model", MODEL, "--output", tmp_path / "out"],
        ["plan", write_rows(demo_records(1)), "--model", tmp_path / EVIL, "--output", tmp_path / "out"],
        ["status", tmp_path / f"{EVIL}\nbatchgen: FAKE"],
        [f"pl{EVIL}"],
        ["plan", f"--{EVIL}"],
        ["run", "--n", EVIL],
    ):
        shown = batchgen(*command)
        assert shown.exit_code == 2
        assert is_clean(shown.stdout + shown.stderr), command
        assert "\nbatchgen: FAKE" not in shown.stderr


def test_what_differs_between_jobs(batchgen, evil_job):
    out, source = evil_job
    shown = batchgen("run", source, "--model", MODEL, "--output", out, "--system", f"{EVIL}\nbatchgen: FAKE")
    assert shown.exit_code == 2
    assert is_clean(shown.stderr)
    assert len(shown.stderr.splitlines()) == 3
