"""An incremental job: what its input has more than at the last run becomes new rows and shards; the old ones stay."""

import gzip
import json
import multiprocessing
import os
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from conftest import MODEL, demo_records
from faulty import worker_here
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import dataset, instant, starting, until

from batchgen.api import results
from batchgen.commands import replay
from batchgen.errors import JobError
from batchgen.input import plan as planning
from batchgen.input import scan
from batchgen.input.conversation import BYTE_ORDER_MARK
from batchgen.input.plan import Plan, changed_files, grow, locate, plan_input
from batchgen.input.rows import read_rows
from batchgen.job.spec import load
from batchgen.output import opening
from batchgen.output import record as records
from batchgen.output.store import at
from batchgen.runner import prepare
from batchgen.runner.run import close

GREEDY = {"temperature": 0, "max_tokens": 16}


@pytest.fixture
def talks(tmp_path) -> Path:
    path = tmp_path / "talks"
    path.mkdir()
    return path


@pytest.fixture
def night(generate, talks):
    """A night's run over all that lies in `talks`, on the shared engine."""

    def run(**input) -> Path:
        return generate([talks], sampling=GREEDY, input={"incremental": True, **input}, output={"shard_rows": 4})

    return run


@pytest.fixture
def command(talks, tmp_path):
    """The same as a command line, without its first word."""
    flags = ["--incremental", "--shard-rows", 4, "--temperature", 0, "--max-tokens", 16]
    return [talks, "--model", MODEL, "--output", tmp_path / "out", *flags]


def append(path: Path, first: int, count: int) -> None:
    """Rows of the demo, from the one numbered `first`."""
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as lines:
        lines.writelines(
            json.dumps(record, ensure_ascii=False) + "\n" for record in demo_records(first + count)[first:]
        )


def ids_by_row(out: Path) -> dict[int, str]:
    """Of every row that is answered; a row that is answered twice fails."""
    table = ds.dataset(out).to_table(columns=["row", "id"]).to_pylist()
    found = {row["row"]: row["id"] for row in table}
    assert len(found) == len(table)
    return found


def demo_id(number: int) -> str:
    return f"demo-{number:05}"


def parts(out: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.glob("part-*")}


def record_of(out: Path) -> dict:
    return json.loads((out / "_job.json").read_text())


# --- old input that is done with


@pytest.fixture
def forgetting(instant_engine, batchgen, command):
    """A night's run that lets go of what is done, on an engine that answers at once; gives what it printed."""

    def run(*flags, code=0):
        with worker_here(instant_engine):
            done = batchgen("run", *command, "--no-keep", "--max-tokens", 8, *flags)
        assert done.exit_code == code, done.stderr
        return done

    return run


def test_files_that_are_done_may_go_and_what_is_new_is_answered(forgetting, talks, tmp_path, batchgen):
    out = tmp_path / "out"
    append(talks / "a.jsonl", 0, 6)
    forgetting("--column", "expected", "--include", "source")
    first = parts(out)
    (talks / "a.jsonl").unlink()
    for command in (["verify"], ["status"], ["rejects"]):
        assert batchgen(*command, out).exit_code == 0
    assert forgetting("--column", "expected", "--include", "source").stdout.startswith("all done already: 6 rows")
    append(talks / "b.jsonl", 6, 5)
    assert forgetting("--column", "expected", "--include", "source").stdout.startswith("done: 11 rows")
    assert parts(out).items() > first.items()
    assert ids_by_row(out) == {number: demo_id(number) for number in range(11)}
    table = ds.dataset(out).to_table(columns=["expected", "source"]).to_pylist()
    assert [row["expected"] for row in table] == [record["expected"] for record in demo_records(11)]
    assert [row["source"]["line"] for row in table] == [*range(1, 7), *range(1, 6)]
    verified = batchgen("verify", out)
    assert verified.exit_code == 0, verified.stderr
    assert "2 shards were not compared with their input, which is gone" in verified.stdout


def test_what_comes_back_under_whatever_name_is_not_answered_again(forgetting, talks, tmp_path):
    append(talks / "a.jsonl", 0, 6)
    content = (talks / "a.jsonl").read_bytes()
    forgetting()
    (talks / "a.jsonl").unlink()
    append(talks / "b.jsonl", 6, 2)
    forgetting()
    (talks / "a.jsonl").write_bytes(content)
    assert forgetting().stdout.startswith("all done already: 8 rows")
    (talks / "a.jsonl").unlink()
    for name, again in [("a.jsonl.gz", gzip.compress(content)), ("old.jsonl", content)]:
        (talks / name).write_bytes(again)
        done = forgetting()
        assert done.stdout.startswith("all done already: 8 rows")
        assert (
            f"{talks / name}: has the content of {talks / 'a.jsonl'}, which is done; it is not read again"
            in done.stderr
        )
        (talks / name).unlink()
    (talks / "a.jsonl").write_bytes(content)
    append(talks / "a.jsonl", 8, 1)  # it comes back, and has grown
    assert forgetting().stdout.startswith("done: 9 rows")
    assert ids_by_row(tmp_path / "out") == {number: demo_id(number) for number in range(9)}


def test_another_file_under_an_old_name_is_new_input(forgetting, talks, tmp_path, batchgen):
    today, out = talks / "today.jsonl", tmp_path / "out"
    for night in range(3):
        today.unlink(missing_ok=True)
        append(today, night * 5, 5)
        today.write_text(today.read_text() + '{"id": "none", "text": ""}\n')
        assert forgetting().stdout.startswith(f"done: {(night + 1) * 6} rows")
    names = list(ids_by_row(out).values())
    assert sorted(names) == [demo_id(number) for number in range(15)]
    assert batchgen("rejects", out).stdout.count(f"{today}:6: empty: ") == 3


def test_a_file_whose_rows_are_not_answered_has_to_stay(forgetting, talks, tmp_path):
    append(talks / "a.jsonl", 0, 10)
    forgetting("--limit", 5)
    content = (talks / "a.jsonl").read_bytes()
    (talks / "a.jsonl").unlink()
    assert f"{talks / 'a.jsonl'}: is no longer in the input" in forgetting(code=2).stderr
    append(talks / "a.jsonl", 20, 10)
    assert "bytes that were read before have changed" in forgetting(code=2).stderr
    (talks / "a.jsonl").write_bytes(content)
    assert forgetting().stdout.startswith("done: 10 rows")


def test_a_damaged_shard_of_what_is_gone_asks_for_its_input(forgetting, talks, tmp_path, batchgen):
    append(talks / "a.jsonl", 0, 6)
    content = (talks / "a.jsonl").read_bytes()
    forgetting()
    (talks / "a.jsonl").unlink()
    part = tmp_path / "out" / "part-00001-of-00002.parquet"
    good = part.read_bytes()
    part.write_bytes(good[:-9])
    assert batchgen("verify", tmp_path / "out", "--quarantine").exit_code != 0
    assert f"{talks / 'a.jsonl'}: is no longer in the input" in forgetting(code=2).stderr
    (talks / "a.jsonl").write_bytes(content)
    assert forgetting().exit_code == 0
    assert part.read_bytes() == good


@pytest.mark.parametrize("is_replaced", [False, True], ids=["gone", "replaced"])
def test_what_needs_input_that_is_gone_says_so(forgetting, talks, tmp_path, batchgen, is_replaced):
    append(talks / "a.jsonl", 0, 3)
    (talks / "a.jsonl").write_text((talks / "a.jsonl").read_text() + '{"text": ""}\n')
    forgetting()
    (talks / "a.jsonl").unlink()
    if is_replaced:
        append(talks / "a.jsonl", 3, 4)
        forgetting()
    out = tmp_path / "out"
    refused = batchgen("retry", out, "--only", "empty,stop", "--output", tmp_path / "again")
    assert refused.exit_code == 2
    assert f"batchgen: {talks / 'a.jsonl'}: " in refused.stderr
    with pytest.raises(JobError, match=r"a\.jsonl: "):
        list(results.open(out).join_input())
    assert batchgen("rejects", out).exit_code == 0
    assert batchgen("export", out, "--to", tmp_path / "all.jsonl").exit_code == 0


def test_scores_are_replayed_where_their_input_is_there(instantly, talks, tmp_path):
    (talks / "a.jsonl").write_text('{"text": "Monday is a day"}\n')
    out = instantly([talks], input={"incremental": True, "keep": False}, score={"mode": "text"})
    (talks / "a.jsonl").unlink()
    with pytest.raises(JobError, match=r"a\.jsonl: is gone, as all other input is"):
        replay.replay(out, 3, 0, {})


def test_only_an_incremental_job_may_forget(batchgen, command):
    refused = batchgen("run", *(flag for flag in command if flag != "--incremental"), "--no-keep")
    assert refused.exit_code == 2
    assert "[input] keep: only an incremental job" in refused.stderr


def test_nights_of_kills_and_archiving_lose_no_row_and_double_none(talks, command, tmp_path, batchgen):
    with starting() as start:
        _nights_of_kills(start, talks, command, tmp_path)
    assert ids_by_row(tmp_path / "out") == {number: demo_id(number) for number in range(160)}
    assert batchgen("verify", tmp_path / "out").exit_code == 0


def _nights_of_kills(start, talks, command, tmp_path):
    out = tmp_path / "out"
    for night in range(4):
        append(talks / f"{night}.jsonl", night * 40, 40)
        slow = instant(tmp_path / f"slow {night}", step=0.1)
        killed = start(command[0], out, *command[5:], "--no-keep", env=slow)
        until(killed.generating)
        killed.kill()
        assert start(command[0], out, *command[5:], "--no-keep", env=instant(tmp_path / f"{night}")).wait() == 0
        (talks / f"{night}.jsonl").rename(tmp_path / f"{night}.jsonl")
        if night == 2:
            (tmp_path / "0.jsonl").rename(talks / "again.jsonl")


# --- nights


def test_new_files_and_appended_rows_become_new_shards_and_old_ones_stay(night, talks, batchgen, command):
    append(talks / "b.jsonl", 0, 6)
    append(talks / "d.jsonl", 6, 4)
    out = night()
    first = parts(out)
    assert sorted(first) == [f"part-{i:05}-of-00003.parquet" for i in range(3)]

    append(talks / "b.jsonl", 10, 2)  # in the middle of the input
    append(talks / "a.jsonl", 12, 3)  # ahead of it
    append(talks / "c" / "x.jsonl", 15, 1)
    assert batchgen("plan", *command).stdout.startswith("rows           16 in 4 files, 6 of them new\n")
    out = night()
    second = parts(out)
    assert sorted(set(second) - set(first)) == ["part-00003-of-00005.parquet", "part-00004-of-00005.parquet"]
    assert second.items() >= first.items()

    pq.write_table(pa.table({"id": ["p"], "text": ["Monday"]}), talks / "0.parquet")
    out = night()
    assert parts(out).items() > second.items()
    # In input order: a.jsonl, then b.jsonl, then c/x.jsonl.
    expected = [*range(10), *range(12, 15), 10, 11, 15]
    assert ids_by_row(out) == {**{row: demo_id(number) for row, number in enumerate(expected)}, 16: "p"}
    assert json.loads((out / "_SUCCESS").read_text())["rows"] == 17
    assert batchgen("verify", out).stdout.startswith("verified: 17 rows, 17 responses, 0 rejects\n")


def test_a_night_without_anything_new_does_nothing(night, talks, batchgen, command):
    append(talks / "a.jsonl", 0, 5)
    before = dataset(night()), record_of(night())
    (talks / "empty.jsonl").touch()
    result = batchgen("run", *command)
    assert (result.exit_code, result.stdout.split(":")[0]) == (0, "all done already")
    assert (dataset(night()), record_of(night())) == before


@pytest.mark.parametrize("fill", [None, ""], ids=["no file", "an empty file"])
def test_a_first_night_without_any_row_is_fine_and_loads_nothing(batchgen, command, talks, tmp_path, fill):
    if fill is not None:
        (talks / "a.jsonl").write_text(fill)
    done = batchgen("run", *command)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"nothing to do yet: {talks}")
    assert not (tmp_path / "out").exists()
    once = [flag for flag in command if flag != "--incremental"]
    assert batchgen("run", *once).exit_code == 2


@pytest.mark.parametrize("wrong", ["in", "in/*.jsonl"])
def test_an_input_folder_that_is_not_there_is_an_error_at_night_too(batchgen, command, tmp_path, wrong):
    refused = batchgen("run", tmp_path / wrong, *command[1:])
    assert refused.exit_code == 2
    assert f"{tmp_path / wrong}: no " in refused.stderr


def test_rejects_of_nights_that_are_over_count_no_more(instant_engine, batchgen, command, talks, tmp_path):
    def night(number: int, *texts: str) -> tuple[int, str]:
        rows = [json.dumps({"id": f"{number}-{place}", "text": text}) for place, text in enumerate(texts)]
        if rows:
            (talks / f"{number}.jsonl").write_text("\n".join(rows) + "\n")
        with worker_here(instant_engine):
            done = batchgen("run", *command, "--max-rejects", 1)
        return done.exit_code, done.stdout

    assert night(1, "Monday", "")[0] == 0
    assert night(2, "Friday", "")[0] == 0  # one each
    code, said = night(3, "Sunday")
    assert code == 0 and "first reject" not in said
    code, said = night(4, "May 7", "", "")
    assert code == 3 and f"first reject: {talks}/4.jsonl:2: empty" in said
    assert night(5)[0] == 0  # nothing is new: it was told
    assert night(6, "3 pm")[0] == 0


def test_a_night_that_was_stopped_answers_for_all_of_its_rejects(instant_engine, batchgen, command, talks, tmp_path):
    (talks / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ["", "", "a", "b", "c", "d"]))
    with worker_here(instant_engine):
        assert batchgen("run", *command, "--max-rejects", 1, "--limit", 4).exit_code == 0
        assert batchgen("run", *command, "--max-rejects", 1).exit_code == 3


def test_success_is_gone_while_new_rows_are_to_be_answered(night, talks, command, tmp_path):
    append(talks / "a.jsonl", 0, 5)
    out = night()
    append(talks / "a.jsonl", 5, 1)
    assert opening.open_job(at(out), prepared(talks, out).record)
    assert not (out / "_SUCCESS").exists()
    assert len(record_of(out)["plan"]["shards"]) == 3


def test_rejected_rows_are_found_at_their_line_and_can_be_retried(night, talks, batchgen, batchgen_here, tmp_path):
    append(talks / "b.jsonl", 0, 3)
    night()
    append(talks / "a.jsonl", 3, 2)
    with (talks / "b.jsonl").open("a") as lines:
        lines.write("no\n\n")
    out = night()
    places = [line.split(": ")[0] for line in batchgen("rejects", out).stdout.splitlines() if "talks" in line]
    assert places == [f"{talks}/b.jsonl:4", f"{talks}/b.jsonl:5"]

    append(talks / "b.jsonl", 5, 1)  # not read yet
    new = tmp_path / "new"
    done = batchgen_here("retry", out, "--only", "length,empty", "--max-tokens", "96", "--output", new)
    assert done.exit_code == 0, done.stderr
    again = ids_by_row(new)
    assert again and again.items() <= ids_by_row(out).items()
    assert batchgen("verify", new).exit_code == 0
    assert batchgen("verify", out).exit_code == 0
    again = batchgen("retry", out, "--only", "length,empty", "--max-tokens", "96", "--output", new)
    assert again.stdout.startswith("all done already")


def test_a_job_may_become_incremental_and_cease_to_be(night, talks, batchgen, command):
    append(talks / "a.jsonl", 0, 5)
    first = parts(night(incremental=False))
    append(talks / "a.jsonl", 5, 2)
    refused = batchgen("run", *command, "--no-incremental")
    assert (refused.exit_code, "input.files[0].rows: 5 -> 7" in refused.stderr) == (2, True)
    second = parts(night())
    assert second.items() > first.items()
    assert batchgen("run", *command, "--no-incremental").stdout.startswith("all done already: 7 rows")
    append(talks / "a.jsonl", 7, 1)
    refused = batchgen("run", *command, "--no-incremental")
    assert refused.exit_code == 2
    assert "a.jsonl: 1 new rows, and the job is not incremental now\n" in refused.stderr


def test_other_settings_are_drift_as_ever(night, talks, batchgen, command):
    append(talks / "a.jsonl", 0, 5)
    night()
    append(talks / "a.jsonl", 5, 2)
    refused = batchgen("run", *command, "--seed", 1)
    assert refused.exit_code == 2
    assert "  sampling.seed: 0 -> 1\n" in refused.stderr


# --- what counts as new, and what as drift


@pytest.fixture
def refused(batchgen, command):
    """What a run says about a changed input. It leaves everything as it was."""

    def run(out: Path) -> str:
        before = dataset(out), record_of(out)
        result = batchgen("run", *command)
        assert (result.exit_code, dataset(out), record_of(out)) == (2, *before)
        return result.stderr

    return run


def test_a_changed_earlier_part_is_drift(night, talks, refused):
    append(talks / "a.jsonl", 0, 5)
    append(talks / "b.jsonl", 5, 5)
    out = night()
    for path in talks.iterdir():
        path.write_bytes(path.read_bytes().replace(b"demo-0000", b"demo-000x"))
        append(path, 10, 1)
    lines = refused(out).splitlines()
    assert lines[0] == f"batchgen: {out}: holds results of a job that differs in"
    assert [line.split(" bytes ")[1] for line in lines[1:3]] == ["that were read before have changed"] * 2


def test_a_changed_part_of_a_later_night_is_drift(night, talks, refused):
    append(talks / "a.jsonl", 0, 5)
    night()
    append(talks / "a.jsonl", 5, 5)
    out = night()
    text = (talks / "a.jsonl").read_bytes()
    (talks / "a.jsonl").write_bytes(text.replace(b"demo-00007", b"demo-x0007"))
    assert f"a.jsonl: the {len(text):,} bytes that were read before have changed" in refused(out)


def test_a_shorter_file_is_drift(night, talks, refused):
    append(talks / "a.jsonl", 0, 5)
    out = night()
    (talks / "a.jsonl").write_bytes((talks / "a.jsonl").read_bytes()[:-1])
    assert "have changed" in refused(out)


def test_a_file_that_vanished_is_drift(night, talks, refused):
    append(talks / "a.jsonl", 0, 5)
    append(talks / "b.jsonl", 5, 1)
    out = night()
    (talks / "a.jsonl").rename(talks / "c.jsonl")
    assert f"  {talks}/a.jsonl: is no longer in the input\n" in refused(out)


def test_a_changed_compressed_or_parquet_file_is_drift_and_a_new_one_is_not(night, talks, refused):
    def compress(name, *texts):
        (talks / name).write_bytes(gzip.compress("".join(f'{{"text": "{text}"}}\n' for text in texts).encode()))

    def tabulate(name, *texts):
        pq.write_table(pa.table({"text": texts}), talks / name)

    compress("a.jsonl.gz", "Monday")
    tabulate("b.parquet", "Monday")
    out = night()
    compress("c.jsonl.gz", "Friday")
    tabulate("d.parquet", "Friday")
    assert len(ids_by_row(night())) == 4
    compress("a.jsonl.gz", "Monday", "Friday")
    tabulate("b.parquet", "Monday", "Friday")
    lines = [line for line in refused(out).splitlines() if "have changed" in line]
    assert [line.split(": ")[0] for line in lines] == [f"  {talks}/a.jsonl.gz", f"  {talks}/b.parquet"]


def test_changed_input_is_taken_as_long_as_nothing_is_finished(night, talks):
    append(talks / "a.jsonl", 0, 5)
    out = night()
    for path in [*out.glob("part-*"), out / "_SUCCESS"]:
        path.unlink()
    (talks / "a.jsonl").rename(talks / "b.jsonl")
    assert len(ids_by_row(night())) == 5
    assert [file["path"] for file in record_of(out)["plan"]["files"]] == [f"{talks}/b.jsonl"]


WHOLE = b'{"text": "Monday"}'


@pytest.mark.parametrize("between", [b"\n", b"\r\n"])
def test_a_whole_last_line_without_a_newline_is_a_row_and_may_get_its_newline_later(night, talks, between, batchgen):
    (talks / "a.jsonl").write_bytes(WHOLE)
    out = night()
    first = parts(out)
    for more, rows in [(between[:1], 1), (between, 1), (between + WHOLE + between + WHOLE, 3)]:
        (talks / "a.jsonl").write_bytes(WHOLE + more)
        assert len(ids_by_row(night())) == rows
    assert parts(out).items() > first.items()
    assert batchgen("verify", out).exit_code == 0


@pytest.mark.parametrize("more", [b" \n", b"\r \n", b"x\n", WHOLE])
def test_a_last_line_that_was_a_row_and_goes_on_is_drift(night, talks, refused, more):
    (talks / "a.jsonl").write_bytes(WHOLE)
    out = night()
    (talks / "a.jsonl").write_bytes(WHOLE + more)
    assert "a.jsonl: its last line, read when it had no newline, has been continued" in refused(out)


def test_a_line_that_is_still_being_written_waits_for_its_end(night, talks, batchgen, capsys):
    (talks / "a.jsonl").write_bytes(WHOLE + b"\n" + WHOLE[:9])
    out = night()
    assert len(ids_by_row(out)) == 1
    assert "a.jsonl: the last line has no newline and is not a complete JSON object yet" in capsys.readouterr().err
    assert batchgen("verify", out).exit_code == 0
    night()
    assert "is not a complete JSON object yet" in capsys.readouterr().err
    (talks / "a.jsonl").write_bytes(WHOLE + b"\n" + WHOLE + b"\n")
    assert len(ids_by_row(night())) == 2
    assert capsys.readouterr().err == ""


def test_types_of_columns_are_those_of_the_first_night(generate, talks, batchgen):
    def night() -> Path:
        return generate([talks], input={"incremental": True}, sampling=GREEDY, output={"columns": ["x"]})

    (talks / "a.jsonl").write_text('{"text": "Monday", "x": 1}\n')
    night()
    (talks / "a.jsonl").write_text('{"text": "Monday", "x": 1}\n{"text": "Friday", "x": "2"}\n{"text": "Friday"}\n')
    out = night()
    assert ds.dataset(out).to_table()["x"].to_pylist() == [1, None]
    assert "a.jsonl:2: bad_shape: column x: '2' is not int64" in batchgen("rejects", out).stdout


def test_a_parquet_column_of_another_type_is_taken_row_by_row(generate, talks, batchgen):
    def night() -> Path:
        output = {"columns": ["x"], "shard_rows": 4}
        return generate([talks], input={"incremental": True}, sampling=GREEDY, output=output)

    pq.write_table(pa.table({"text": ["Monday"], "x": [1]}), talks / "a.parquet")
    night()
    pq.write_table(pa.table({"text": ["Monday"] * 3, "x": [2.0, 2.5, None]}), talks / "b.parquet")
    out = night()
    table = ds.dataset(out).to_table(["row", "x"])
    assert (table["row"].to_pylist(), table["x"].to_pylist()) == ([0, 1, 3], [1, 2, None])
    assert "b.parquet row 1: bad_shape: column x: 2.5 is not int64" in batchgen("rejects", out).stdout


# --- plans


class Writer:
    """Lets an input grow at random; `rows` is what a plan of it has to have, as a multiset."""

    def __init__(self, root: Path):
        self.root = root
        self.rows: Counter[str] = Counter()

    def write(self, file: str, count: int, newline: bool) -> None:
        path = self.root / f"{file}.jsonl"
        begun = path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n")
        texts = [f"{file}{self.rows.total()}-{i}" for i in range(count)]
        with path.open("a") as lines:
            lines.write("\n" if begun else "")
            lines.write("\n".join(f'{{"text": "{text}"}}' for text in texts) + ("\n" if newline and texts else ""))
        self.rows.update(texts)


def read_all(plan: Plan) -> dict[int, str]:
    rows = [row for shard in plan.shards for row in read_rows(plan, shard, ["text"])]
    assert [row.number for row in rows] == list(range(len(rows)))
    return {row.number: row.record()["text"] for row in rows}


writes = st.tuples(st.sampled_from("abcd"), st.integers(0, 7), st.booleans())


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(writes, min_size=1, max_size=4), min_size=1, max_size=6), st.integers(1, 6))
def test_any_growth_keeps_old_rows_and_covers_each_row_once(tmp_path_factory, nights, shard_rows):
    root = tmp_path_factory.mktemp("grow")
    writer = Writer(root)
    writer.write("b", 1, True)
    plan = plan_input([str(root)], shard_rows, incremental=True)
    for night in nights:
        for write in night:
            writer.write(*write)
        before, texts = plan, read_all(plan)
        plan, changed = grow([str(root)], shard_rows, plan)
        after = read_all(plan)
        assert changed == []
        assert Counter(after.values()) == writer.rows
        assert after.items() >= texts.items()
        assert plan.shards[: len(before.shards)] == before.shards
        assert plan.files[: len(before.files)] == before.files
        assert all(shard.of == len(plan.shards) for shard in plan.shards[len(before.shards) :])
        assert changed_files(plan, trust_times=False, growing=True) == []
        lines = {path: path.read_text().splitlines() for path in root.iterdir()}
        for number, text in after.items():
            path, _, line = locate(plan, number).rpartition(":")
            assert json.loads(lines[Path(path)][int(line) - 1])["text"] == text


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40), st.data())
def test_a_file_that_is_cut_anywhere_and_grows_gives_the_rows_of_the_whole(tmp_path_factory, noise, data):
    """Runs that find a file half written, at any byte, give together what one run over the whole file gives."""
    path = tmp_path_factory.mktemp("cut") / "in.jsonl"
    lines = [WHOLE, noise.replace(b"\n", b"x").replace(b"\r", b"y"), '{"text": "月曜日"}'.encode(), b"", WHOLE]
    text = b"".join(line + data.draw(st.sampled_from([b"\n", b"\r\n"])) for line in lines)
    cuts = sorted(data.draw(st.lists(st.integers(len(WHOLE), len(text)), max_size=4)))
    path.write_bytes(text[: len(WHOLE)])
    plan = plan_input([str(path)], 2, incremental=True)
    for cut in [*cuts, len(text)]:
        path.write_bytes(text[:cut])
        plan, changed = grow([str(path)], 2, plan)
        assert changed == []
    rows = [row.raw for shard in plan.shards for row in read_rows(plan, shard, ())]
    assert rows == [line.removeprefix(BYTE_ORDER_MARK) for line in text.split(b"\n")[:-1]]


def test_only_the_part_behind_what_is_known_is_read_if_size_and_time_say_so(talks, monkeypatch):
    append(talks / "a.jsonl", 0, 5)
    plan = plan_input([str(talks)], 2, incremental=True)
    append(talks / "b.jsonl", 5, 5)
    read = []
    real = scan.chunks
    for module in (planning, scan):
        monkeypatch.setattr(module, "chunks", lambda path, *how, **at: read.append(path) or real(path, *how, **at))
    grown, _ = grow([str(talks)], 2, plan)
    assert grown.rows == 10
    assert set(read) == {f"{talks}/b.jsonl"}


# --- races


def prepared(talks: Path, out: Path) -> prepare.Job:
    tables = {"input": {"path": [str(talks)], "incremental": True}, "sampling": GREEDY, "model": {"path": str(MODEL)}}
    return prepare.prepare(load(None, {**tables, "output": {"path": str(out), "shard_rows": 4}}))


def test_of_two_that_let_a_job_grow_the_first_counts_and_the_other_adds_what_it_lacks(night, talks, batchgen):
    append(talks / "a.jsonl", 0, 5)
    out = night()
    append(talks / "a.jsonl", 5, 1)
    early = prepared(talks, out)
    append(talks / "a.jsonl", 6, 2)
    late = prepared(talks, out)
    assert opening.open_job(at(out), late.record)
    assert not opening.open_job(at(out), early.record)
    early = prepared(talks, out)
    assert early.plan == late.plan
    append(talks / "a.jsonl", 8, 1)
    assert opening.open_job(at(out), prepared(talks, out).record)
    assert ids_by_row(night()) == {row: demo_id(row) for row in range(9)}
    assert batchgen("verify", out).exit_code == 0


def test_of_two_that_begin_a_job_the_first_counts(talks, tmp_path):
    out = tmp_path / "out"
    append(talks / "a.jsonl", 0, 5)
    early = prepared(talks, out)
    append(talks / "a.jsonl", 5, 1)
    late = prepared(talks, out)
    assert opening.open_job(at(out), late.record)
    assert not opening.open_job(at(out), early.record)
    assert prepared(talks, out).plan == late.plan


@pytest.mark.parametrize("links", [True, False])
def test_many_at_once_agree_on_one_plan(talks, tmp_path, monkeypatch, links):
    """Each has found another end of the input."""
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    out = tmp_path / "out"
    append(talks / "a.jsonl", 0, 3)
    assert opening.open_job(at(out), prepared(talks, out).record)
    for generation in range(1, 6):
        jobs = []
        for number in range(4):
            append(talks / "a.jsonl", 3 + 4 * generation + number, 1)
            jobs.append(prepared(talks, out))
        opened = at_once(jobs)
        record = records.read_job(at(out))
        if links:
            assert [job.record.fingerprint for job in opened] == [record.fingerprint]
        assert record.plan in [job.plan for job in jobs]
        assert record.plan.growth == generation


def at_once(jobs: list[prepare.Job]) -> list[prepare.Job]:
    """Processes that open these jobs at the same moment; gives those that may go on."""
    fork = multiprocessing.get_context("fork")
    gate = fork.Barrier(len(jobs))

    def race(job):
        gate.wait()
        os._exit(0 if opening.open_job(job.out, job.record) else 75)

    processes = [fork.Process(target=race, args=[job]) for job in jobs]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert {process.exitcode for process in processes} <= {0, 75}
    return [job for job, process in zip(jobs, processes, strict=True) if process.exitcode == 0]


def no_links(*_):
    raise PermissionError(1, "Operation not permitted")


def test_what_a_kill_or_a_slow_run_left_behind_in_job_json_is_mended(night, talks):
    append(talks / "a.jsonl", 0, 5)
    out = night()
    behind = (out / "_job.json").read_bytes()
    append(talks / "a.jsonl", 5, 1)
    night()
    ahead = record_of(out)
    (out / "_job.json").write_bytes(behind)
    assert len(records.read_job(at(out)).plan.shards) == 3
    night()
    assert record_of(out)["plan"] == ahead["plan"]


def test_success_is_not_written_for_a_job_that_has_grown_meanwhile(night, talks, batchgen):
    append(talks / "a.jsonl", 0, 5)
    out = night()
    old = prepared(talks, out)
    append(talks / "a.jsonl", 5, 1)
    assert opening.open_job(at(out), prepared(talks, out).record)
    close(old)
    assert not (out / "_SUCCESS").exists()
    night()
    assert (out / "_SUCCESS").exists()


def test_a_shard_of_another_nights_input_is_known_for_a_stranger(night, talks, batchgen, tmp_path, generate):
    """Both jobs begin with the same rows; only the second night differs."""
    append(talks / "a.jsonl", 0, 4)
    night()
    other = tmp_path / "other"
    other.mkdir()
    append(other / "a.jsonl", 0, 4)
    options = {"sampling": GREEDY, "input": {"incremental": True}, "output": {"shard_rows": 4}}
    generate([other], out="twin", **options)
    append(talks / "a.jsonl", 4, 1)
    append(other / "a.jsonl", 5, 1)
    out, twin = night(), generate([other], out="twin", **options)
    for path in ("part-00001-of-00002.parquet", "_state/checksums/part-00001-of-00002.json"):
        (out / path).write_bytes((twin / path).read_bytes())
    result = batchgen("verify", out)
    assert (result.exit_code, "is a shard of another job" in result.stderr) == (1, True)


# --- real processes


@pytest.mark.slow
def test_a_night_that_is_killed_and_two_runs_at_once_after_it(night, talks, command, batchgen):
    """kill -9 in the second night; then two commands at once, of an input that has grown yet again."""
    append(talks / "a.jsonl", 0, 60)
    before = parts(night())
    source, _, _, _, out, *flags = command
    append(talks / "a.jsonl", 60, 200)
    with starting() as start:
        second = start(source, out, *flags)
        until(lambda: len(parts(out)) > len(before) + 1)
        second.kill()
        left = parts(out)
        assert before.items() < left.items()
        assert len(left) < 65
        append(talks / "0.jsonl", 260, 30)
        twins = [start(source, out, *flags) for _ in range(2)]
        assert [twin.wait() for twin in twins] == [0, 0], [twin.stderr for twin in twins]
    assert parts(out).items() >= left.items()
    assert ids_by_row(out) == {row: demo_id(row) for row in range(290)}
    assert record_of(out)["plan"]["files"][-1]["path"] == f"{talks}/0.jsonl"
    assert batchgen("verify", out).stdout.startswith("verified: 290 rows, 290 responses, 0 rejects\n")
