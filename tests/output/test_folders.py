"""Folders that older versions made: they go on as if nothing had changed. Newer ones are refused in one line."""

import json
import os
import re
import shutil
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import MODEL, demo_records
from folders.make import JOBS, LATER_JOBS, PLACES, command, put_places

from batchgen import __version__
from batchgen.output import opening
from batchgen.output import record as records
from batchgen.output.record import FORMAT
from batchgen.output.sealed import sealed, unsealed
from batchgen.output.store import at

MADE = Path(__file__).parent.parent / "folders"
VERSIONS = sorted(path.name for path in MADE.iterdir() if (path / "finished").is_dir())


@pytest.fixture(params=VERSIONS)
def made(request, tmp_path) -> Path:
    """A copy of what a version has left, as if it had been made here."""
    place = tmp_path / "made"
    shutil.copytree(MADE / request.param, place)
    put_places(place, PLACES[0], str(place))
    put_places(place, PLACES[1], str(MODEL))
    return place


def files(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [*out.glob("part-*"), *out.glob("_rejects/*"), out / "_SUCCESS"]}


def run(made: Path, name: str, *more: object) -> list[object]:
    return ["run", *command(made, name, MODEL), "--stale", 1, *more]


# --- older folders


@pytest.mark.parametrize("name", ["finished", "parquet", "grown"])
def test_a_finished_job_of_any_version_is_done_already(made, batchgen, name):
    before = files(made / name)
    result = batchgen(*run(made, name))
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("all done already: ")
    assert files(made / name) == before


@pytest.mark.parametrize("name", ["finished", "parquet", "grown"])
def test_a_folder_of_any_version_is_verified_shown_and_exported(made, batchgen, name, tmp_path):
    out = made / name
    counts = json.loads((out / "_SUCCESS").read_bytes())
    rejects = sum(counts["rejects"].values())
    expected = f"{counts['rows']:,} rows, {counts['responses']:,} responses, {rejects:,} rejects"
    assert batchgen("verify", out).stdout.startswith(f"verified: {expected}\n")
    assert json.loads(batchgen("status", out, "--json").stdout)["state"] == "done"
    assert batchgen("rejects", out).stdout.endswith(f"{rejects:,} rejected rows\n")
    to = tmp_path / "all.parquet"
    assert batchgen("export", out, "--to", to).stdout.startswith(f"exported: {expected}")
    assert pq.read_table(to).equals(ds.dataset(sorted(out.glob("part-*"))).to_table())
    batchgen("export", out, "--to", tmp_path / "card")
    assert f"| seed | {7 if name == 'finished' else 0} |" in (tmp_path / "card" / "README.md").read_text()


LATER = [version for version in VERSIONS if version >= "0.3"]  # that have the later jobs


@pytest.mark.parametrize("name", LATER_JOBS)
@pytest.mark.parametrize("made", LATER, indirect=True)
def test_a_translation_and_scores_of_any_version_are_done_verified_and_exported(made, batchgen, name, tmp_path):
    before = files(made / name)
    result = batchgen(*run(made, name))
    assert (result.exit_code, result.stdout.startswith("all done already: ")) == (0, True)
    assert files(made / name) == before
    assert batchgen("verify", made / name).exit_code == 0
    assert batchgen("export", made / name, "--to", tmp_path / "x.jsonl").exit_code == 0
    lines = (tmp_path / "x.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == sum(pq.read_metadata(path).num_rows for path in (made / name).glob("part-*"))


@pytest.mark.parametrize("made", LATER, indirect=True)
def test_a_translation_of_any_version_is_a_memory(made, batchgen_here, tmp_path):
    arguments = command(made, "translated", MODEL)
    arguments[arguments.index("--output") + 1] = str(tmp_path / "again")
    done = batchgen_here("run", *arguments, "--translate-memory", made / "translated")
    assert (done.exit_code, "; the engine was asked for nothing" in done.stdout) == (0, True)


@pytest.mark.parametrize(
    ("more", "line"),
    [(["--seed", "8"], "sampling.seed: 7 -> 8"), (["--top-p", "0.9"], "sampling.top_p: 0.85 -> 0.9")],
)
def test_drift_in_a_folder_of_any_version_is_told_by_old_and_new_value(made, batchgen, more, line):
    result = batchgen(*run(made, "finished", *more))
    assert result.exit_code == 2
    assert result.stderr.splitlines()[1:-1] == [f"  {line}"]


def test_an_interrupted_job_of_any_version_goes_on_from_its_journal(made, batchgen_here):
    out = made / "interrupted"
    held = opening.held_in(at(out))
    before = files_of_shards(out)
    done = batchgen_here(*run(made, "interrupted"))
    assert done.exit_code == 0, done.stderr
    kept = held.responses - 20  # of the shard that is finished
    assert kept > 0
    assert f" ({kept} responses from the journal)" in done.stdout
    assert files_of_shards(out).items() > before.items()
    assert (
        ds.dataset(sorted(out.glob("part-*")))
        .to_table()
        .equals(ds.dataset(sorted((made / "interrupted.expected").glob("part-*"))).to_table())
    )
    made_by = {pq.read_metadata(path).metadata[b"batchgen.fingerprint"] for path in out.glob("part-*")}
    assert made_by == {records.read_job(at(out)).fingerprint.encode()}


def test_a_job_of_the_first_version_makes_of_its_other_rows_what_that_version_would_have(tmp_path, batchgen_here):
    """System columns, contexts, histories, text parts, roles, ids and clipped texts: it had other rules for them."""
    place = tmp_path / "made"
    shutil.copytree(MADE / "0.1.0", place)
    put_places(place, PLACES[0], str(place))
    put_places(place, PLACES[1], str(MODEL))
    flags = "--temperature 0 --max-tokens 8 --shard-rows 12 --drop-last-response --on-overlength clip --include prompt"
    source, out, expected = place / "shapes.jsonl", place / "shapes", place / "shapes.expected"
    asked = [source, "--model", MODEL, "--output", out, *flags.split(), "--engine", "max_model_len=96"]
    done = batchgen_here("run", *asked)
    assert done.exit_code == 0, done.stderr
    for part in sorted(expected.glob("*.parquet")):
        assert pq.read_table(out / part.name).equals(pq.read_table(part))
    for part in sorted(expected.glob("*.jsonl")):
        assert (out / "_rejects" / part.name).read_bytes() == part.read_bytes()
    assert batchgen_here("verify", out, "--replay", 100).stdout.startswith(
        "verified: 36 rows, 27 responses, 9 rejects\n"
    )


def files_of_shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("part-*")}


def test_an_incremental_job_of_any_version_has_a_further_night(made, batchgen, batchgen_here):
    out = made / "grown"
    before = files_of_shards(out)
    first = records.read_job(at(out))
    with (made / "night.jsonl").open("a", encoding="utf-8") as lines:
        lines.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in demo_records(11)[8:])
    done = batchgen_here(*run(made, "grown"))
    assert done.exit_code == 0, done.stderr
    assert files_of_shards(out).items() > before.items()
    now = records.read_job(at(out))
    assert records.fingerprints(now)[:2] == records.fingerprints(first)
    assert batchgen("verify", out).stdout.startswith("verified: 11 rows, 11 responses, 0 rejects\n")
    assert batchgen(*run(made, "grown")).stdout.startswith("all done already: 11 rows")


def test_rows_of_a_folder_of_any_version_are_tried_again(made, batchgen, batchgen_here, tmp_path):
    new = tmp_path / "new"
    done = batchgen_here("retry", made / "finished", "--only", "length", "--max-tokens", 96, "--output", new)
    assert done.exit_code == 0, done.stderr
    old = ds.dataset(sorted((made / "finished").glob("part-*"))).to_table(["row", "finish_reason"]).to_pylist()
    rows = {row["row"] for row in old if row["finish_reason"] == "length"}
    assert set(ds.dataset(sorted(new.glob("part-*"))).to_table()["row"].to_pylist()) == rows
    assert batchgen("verify", new).exit_code == 0


def test_the_jobs_of_every_version_are_the_same():
    for version in VERSIONS:
        jobs = {path.name for path in (MADE / version).iterdir() if (path / "_job.json").exists()}
        assert jobs >= set(JOBS) | (set(LATER_JOBS) if version in LATER else set())


# --- newer and damaged ones


@pytest.fixture
def job(tmp_path):
    place = tmp_path / "made"
    shutil.copytree(MADE / VERSIONS[-1], place)
    put_places(place, PLACES[0], str(place))
    put_places(place, PLACES[1], str(MODEL))
    return place


def change(out: Path, **fields) -> None:
    table = json.loads((out / "_job.json").read_bytes())
    del table["digest"]
    table |= fields
    (out / "_job.json").write_bytes(json.dumps({**table, "digest": records.fingerprint(table)}).encode())


COMMANDS = {
    "run": lambda made, out: run(made, "grown"),
    "plan": lambda made, out: ["plan", *command(made, "grown", MODEL)],
    "verify": lambda made, out: ["verify", out],
    "status": lambda made, out: ["status", out],
    "export": lambda made, out: ["export", out, "--to", made / "x.jsonl"],
    "rejects": lambda made, out: ["rejects", out],
    "retry": lambda made, out: ["retry", out, "--only", "length", "--output", made / "new"],
}
every_command = pytest.mark.parametrize("name", COMMANDS)


def newer_format(out: Path) -> str:
    change(out, format=FORMAT + 1, results={"all": "new"}, plan=None)
    return f"made by a newer batchgen: format {FORMAT + 1}, and this one ({__version__}) knows formats up to {FORMAT}"


def unknown_key(out: Path) -> str:
    spec = records.read_job(at(out)).spec
    change(out, spec={**spec, "output": {**spec["output"], "compression": "lz4"}})
    return "made by a newer batchgen: its job has [output] compression, which this one"


def unknown_table(out: Path) -> str:
    change(out, spec={**records.read_job(at(out)).spec, "tomorrow": {}})
    return "made by a newer batchgen: its job has a table [tomorrow], which this one"


@every_command
@pytest.mark.parametrize("newer", [newer_format, unknown_key, unknown_table])
def test_a_newer_folder_is_refused_in_one_line(job, batchgen, name, newer):
    out = job / "grown"
    told = newer(out)
    before = files(out)
    result = batchgen(*COMMANDS[name](job, out))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert result.stderr.startswith(f"batchgen: {out}: {told}")
    assert files(out) == before


def of_no_job(path: Path) -> None:
    path.write_bytes(json.dumps({"digest": records.fingerprint({})}).encode())


def no_json(path: Path) -> None:
    path.write_bytes(b"\xff\x00{")


def a_list(path: Path) -> None:
    path.write_bytes(b"[" * 5000)


def other_types(path: Path) -> None:
    table = {name: 7 for name in ("fingerprint", "results", "spec", "versions", "plan", "format", "files", "shards")}
    path.write_bytes(json.dumps({**table, "digest": records.fingerprint(table)}).encode())


@every_command
@pytest.mark.parametrize("how", [of_no_job, no_json, a_list, other_types])
@pytest.mark.parametrize("what", ["_job.json", "what it grew by"])
def test_a_damaged_record_is_one_line(job, batchgen, name, how, what):
    out = job / "grown"
    next_night = out / "_state" / "grown" / f"{records.read_job(at(out)).fingerprint}.json"
    path = out / "_job.json" if what == "_job.json" else next_night
    how(path)
    result = batchgen(*COMMANDS[name](job, out))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    if (what, how) != ("_job.json", other_types):  # which says that it is of format 7
        assert result.stderr.startswith(f"batchgen: {path}: damaged")


# --- copies


def test_verify_judges_the_folder_it_is_given_and_touches_no_other(job, batchgen):
    out, copy = job / "grown", job / "copy"
    shutil.copytree(out, copy)
    path = next(out.glob("part-*"))
    path.write_bytes(path.read_bytes()[:-9] + bytes(9))
    before = files(out)
    assert batchgen("verify", copy).stdout.startswith("verified: 8 rows")
    assert files(out) == before
    assert not (out / "_state" / "quarantine").exists()
    path.write_bytes((copy / path.name).read_bytes())
    (copy / path.name).write_bytes(path.read_bytes()[:-9] + bytes(9))
    before = files(out)
    result = batchgen("verify", copy, "--quarantine")
    assert result.exit_code == 1
    assert result.stderr.startswith(
        f"batchgen: {copy / path.name}: its content does not fit its checksum; moved to {copy}"
    )
    assert files(out) == before


def test_a_moved_folder_goes_on_where_it_is(job, batchgen, tmp_path):
    moved = tmp_path / "moved"
    os.rename(job / "grown", moved)
    assert batchgen("verify", moved).exit_code == 0
    assert json.loads(batchgen("status", moved, "--json").stdout)["out"] == str(moved)
    (moved / "_SUCCESS").unlink()
    assert f"\n_SUCCESS was missing; wrote {moved}/_SUCCESS\n" in batchgen("verify", moved, "--close").stdout
    flags = run(job, "grown")
    flags[flags.index("--output") + 1] = moved
    result = batchgen(*flags)
    done = f"all done already: 8 rows, 8 responses, 0 rejects in {moved}"
    assert re.fullmatch(
        rf"{done}\n(ended: .*\n)?look: batchgen show {moved}(; at what went wrong: .*)?\n", result.stdout
    )  # known since 0.4.0
    assert records.read_job(at(moved)).spec["output"]["path"] == str(moved)
    assert not (job / "grown").exists()


def test_verify_of_a_copy_whose_input_has_gone_says_so(job, batchgen):
    (job / "night.jsonl").unlink()
    result = batchgen("verify", job / "grown")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith(f"batchgen: {job}/night.jsonl: ")


def test_verify_with_another_model_in_its_place_says_so_and_touches_nothing(job, batchgen, tmp_path):
    shutil.copytree(MODEL, tmp_path / "model")
    put_places(job, str(MODEL), str(tmp_path / "model"))
    assert batchgen("verify", job / "grown").exit_code == 0
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rotary_emb_base": 20000}))
    before = files(job / "grown")
    result = batchgen("verify", job / "grown")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "what the job was made with has changed: model.config.json: " in result.stderr
    assert files(job / "grown") == before


def test_what_is_sealed_opens_as_it_was():
    record = records.JobRecord(fingerprint="f", results={}, spec={}, versions={}, plan=records.Plan([], []))
    assert unsealed(sealed(record), records.JobRecord) == record
