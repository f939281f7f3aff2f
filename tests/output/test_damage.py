"""Whatever a file of a job has turned into is noticed when it is read; whatever the input is, the accounting closes."""

import json
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from conftest import MODEL, demo_records
from faulty import dataset, finished_in_shards_of_one, killed_at_commit, run_here, spec_of
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from processes import said

from batchgen.errors import JobError
from batchgen.input import shapes
from batchgen.input.conversation import Row
from batchgen.input.file_formats import detect
from batchgen.input.plan import Shard
from batchgen.job.sampling import Sampling
from batchgen.output import layout, shard
from batchgen.output.record import JobRecord
from batchgen.output.sealed import unsealed
from batchgen.output.store import at

ROWS = [*demo_records(2), {"text": ""}, *demo_records(3), "no", *demo_records(1)]
SHARDS = [Shard(index, 3, 0, 0, 0, 0) for index in range(3)]


def shard_path(out: Path, planned: Shard) -> Path:
    return out / layout.part(planned)


def rejects_path(out: Path, planned: Shard) -> Path:
    return out / layout.rejects(planned)


def checksum_path(out: Path, planned: Shard) -> Path:
    return out / layout.checksums(planned)


def cut_off(content: bytes) -> bytes:
    return content[: len(content) // 2]


def emptied(content: bytes) -> bytes:
    return b""


def zero_filled(content: bytes) -> bytes:
    return bytes(len(content))


def one_bit_flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def damage(path: Path, how) -> None:
    path.write_bytes(how(path.read_bytes()))


any_damage = pytest.mark.parametrize("how", [cut_off, emptied, zero_filled, one_bit_flipped])


class Done:
    """A finished job of three shards, two of them with a reject, and the command in this process."""

    def __init__(self, engine, out: Path, source: Path, batchgen, capfd):
        self.out = out
        self.source = source
        self._engine, self._batchgen, self._capfd = engine, batchgen, capfd
        self.run_again()
        self.good = dataset(out)

    def run_again(self) -> list[str]:
        """Gives what it says on stderr."""
        self._capfd.readouterr()
        run_here(self._engine, spec_of(self.source, self.out))
        return said(self._capfd.readouterr().err)

    def command(self, name: str):
        """`batchgen run` or `batchgen verify`, where no engine is to start."""
        flags = [self.source, "--model", MODEL, "--output", self.out, "--shard-rows", "3", "--max-tokens", "4"]
        return self._batchgen("run", *flags) if name == "run" else self._batchgen("verify", self.out, "--quarantine")

    def is_set_aside_by_verify_and_made_again(self, path: Path) -> None:
        result = self.command("verify")
        assert (result.exit_code, result.stderr.count("\n")) == (1, 2)
        assert result.stderr.startswith(f"batchgen: {path}: ")
        assert "run the job again to make it again" in result.stderr
        self.is_in_quarantine(path)
        self.run_again()
        self.is_as_it_was()

    def is_set_aside_by_the_next_run_and_made_again(self, path: Path) -> None:
        [warning] = self.run_again()
        assert warning.startswith(f"batchgen: warning: {path}: ")
        assert "; moved to " in warning
        self.is_in_quarantine(path)
        self.is_as_it_was()

    def names_and_leaves(self, path: Path, command: str) -> None:
        """What another job has made is not ours to move."""
        before = path.read_bytes()
        result = self.command(command)
        assert (result.exit_code, result.stderr.count("\n")) == ((2, 1) if command == "run" else (1, 2))
        assert result.stderr.startswith(f"batchgen: {path}: is a shard of another job; move it away")
        assert path.read_bytes() == before
        assert not (self.out / "_state" / "quarantine").exists()
        path.unlink()
        self.run_again()
        self.is_as_it_was()

    def is_in_quarantine(self, path: Path) -> None:
        [aside] = (self.out / "_state" / "quarantine").iterdir()
        assert aside.name.startswith(path.name)

    def is_as_it_was(self) -> None:
        assert dataset(self.out) == self.good
        assert self.command("verify").exit_code == 0


@pytest.fixture
def done(instant_engine, tmp_path, write_rows, batchgen, capfd):
    return Done(instant_engine, tmp_path / "out", write_rows(ROWS), batchgen, capfd)


# --- damaged files


@pytest.mark.parametrize("how", [cut_off, emptied])
def test_a_shard_of_another_size_is_set_aside_by_the_next_run_and_made_again(done, how):
    damage(shard_path(done.out, SHARDS[0]), how)
    done.is_set_aside_by_the_next_run_and_made_again(shard_path(done.out, SHARDS[0]))


@any_damage
def test_a_shard_of_another_content_is_set_aside_by_verify_and_made_again(done, how):
    damage(shard_path(done.out, SHARDS[0]), how)
    done.is_set_aside_by_verify_and_made_again(shard_path(done.out, SHARDS[0]))


@any_damage
def test_a_shard_whose_rejects_are_damaged_is_set_aside_by_verify_and_made_again(done, how):
    damage(rejects_path(done.out, SHARDS[2]), how)
    done.is_set_aside_by_verify_and_made_again(shard_path(done.out, SHARDS[2]))


def test_a_shard_whose_rejects_are_gone_is_set_aside_by_the_next_run_and_made_again(done):
    rejects_path(done.out, SHARDS[2]).unlink()
    done.is_set_aside_by_the_next_run_and_made_again(shard_path(done.out, SHARDS[2]))


@any_damage
def test_a_shard_whose_checksums_are_damaged_is_set_aside_by_the_next_run_and_made_again(done, how):
    damage(checksum_path(done.out, SHARDS[1]), how)
    done.is_set_aside_by_the_next_run_and_made_again(shard_path(done.out, SHARDS[1]))


def test_a_shard_whose_checksums_are_gone_is_set_aside_by_the_next_run_and_made_again(done):
    checksum_path(done.out, SHARDS[1]).unlink()
    done.is_set_aside_by_the_next_run_and_made_again(shard_path(done.out, SHARDS[1]))


@any_damage
@pytest.mark.parametrize("command", ["run", "verify"])
def test_a_damaged_job_record_is_one_line_and_exit_2(done, how, command):
    damage(done.out / "_job.json", how)
    result = done.command(command)
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith(f"batchgen: {done.out}/_job.json: damaged")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("_job.json", JobRecord), ("_state/checksums/part-00000-of-00003.json", shard.Checksums)],
)
def test_a_flipped_bit_anywhere_in_a_record_is_noticed(done, name, kind):
    content = (done.out / name).read_bytes()
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError):
            unsealed(bytes(flipped), kind)


@any_damage
def test_a_damaged_success_file_is_made_again_without_an_engine(done, how):
    damage(done.out / "_SUCCESS", how)
    result = done.command("run")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("all done already: 8 rows, 6 responses, 2 rejects")
    done.is_as_it_was()


@pytest.mark.parametrize("how", [cut_off, zero_filled, one_bit_flipped])
def test_a_damaged_journal_is_set_aside_and_what_it_lost_is_made_again(engine, tmp_path, write_rows, capfd, how):
    rows = [{"text": "Monday", "sampling": {"ignore_eos": True, "max_tokens": number}} for number in range(1, 6)]
    source = write_rows(rows)
    run_here(engine, spec_of(source, tmp_path / "undisturbed"))
    journal = killed_at_commit(engine, spec_of(source, tmp_path / "out"))
    damage(journal, how)
    capfd.readouterr()
    run_here(engine, spec_of(source, tmp_path / "out"))
    assert f"batchgen: warning: {journal}: " in capfd.readouterr().err
    assert [path.stem for path in journal.parent.parent.glob("quarantine/*")] == [journal.name]
    assert dataset(tmp_path / "out") == dataset(tmp_path / "undisturbed")


# --- accounting


@pytest.mark.parametrize("command", ["run", "verify"])
def test_a_shard_of_another_job_is_named_and_left_where_it_is(done, instant_engine, write_rows, tmp_path, command):
    other = write_rows(demo_records(8)[::-1], "other.jsonl")
    run_here(instant_engine, spec_of(other, tmp_path / "other"))
    shutil.copy(shard_path(tmp_path / "other", SHARDS[1]), done.out)
    done.names_and_leaves(shard_path(done.out, SHARDS[1]), command)


@pytest.mark.parametrize("command", ["run", "verify"])
@pytest.mark.parametrize("changed", [{"seed": 1}, {"temperature": 0.5}], ids=str)
def test_a_shard_of_another_job_is_noticed_even_with_its_checksums_and_the_same_rows(
    done, instant_engine, tmp_path, changed, command
):
    run_here(instant_engine, spec_of(done.source, tmp_path / "other", **changed))
    for place in (shard_path, checksum_path):
        shutil.copy(place(tmp_path / "other", SHARDS[0]), place(done.out, SHARDS[0]))
    done.names_and_leaves(shard_path(done.out, SHARDS[0]), command)


@pytest.mark.parametrize("command", ["run", "verify"])
def test_a_file_with_a_shards_name_that_the_plan_does_not_know_is_named(done, command):
    path = done.out / "part-00000-of-00001.parquet"
    shutil.copy(shard_path(done.out, SHARDS[0]), path)
    result = done.command(command)
    assert (result.exit_code, result.stderr.splitlines()[0]) == (
        (2, f"batchgen: {path}: is no shard of this job; move it away, or name another output folder")
        if command == "run"
        else (1, f"batchgen: {path}: is no shard of this job; move it away")
    )
    path.unlink()
    done.is_as_it_was()


def test_a_shard_in_the_place_of_another_is_noticed(done):
    for place in (shard_path, checksum_path, rejects_path):
        shutil.copy(place(done.out, SHARDS[2]), place(done.out, SHARDS[0]))
    result = done.command("verify")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 2)


@pytest.mark.slow
def test_a_job_of_10_000_finished_shards_opens_within_5_seconds(tmp_path, write_rows, batchgen_process):
    path = write_rows([{"text": f"{number}"} for number in range(10_000)])
    job = finished_in_shards_of_one(path, tmp_path / "out")
    command = ["run", path, "--model", MODEL, "--output", job.out, "--shard-rows", "1", "--max-tokens", "4"]
    for _ in range(2):  # the first writes _SUCCESS
        begin = time.monotonic()
        done = batchgen_process(*command)
        seconds = time.monotonic() - begin
        assert done.stdout.startswith("all done already: 10,000 rows, 10,000 responses, 0 rejects"), done.stderr
        print(f"10,000 finished shards: opened in {seconds:.1f} s")
        assert seconds < 5


# --- bad rows


def bad_row(some: random.Random) -> tuple[bytes, str]:
    """A line that cannot be answered, and the reason."""
    good = {"id": f"{some.random()}", "text": "".join(some.choices("日本語 text", k=some.randrange(1, 30))) + "."}
    word, number = f"{some.random()}", some.randrange(1, 10**6)

    def line(**record) -> bytes:
        return json.dumps(good | record, ensure_ascii=False).encode()

    whole = line()
    return some.choice(
        [
            (whole[: some.randrange(1, len(good["id"]))], "invalid_json"),
            (whole + word.encode(), "invalid_json"),
            (whole.replace(b'"text"', b"text"), "invalid_json"),
            (whole[:-2] + bytes([some.randrange(0x80, 0xC0)]) + whole[-2:], "invalid_utf8"),
            (whole.replace(b', "text', b'\xff, "text'), "invalid_utf8"),
            (str(number).encode(), "bad_shape"),
            (json.dumps([good]).encode(), "bad_shape"),
            (line(text=number), "bad_shape"),
            (line(text={word: number}), "bad_shape"),
            (json.dumps({word: "text"}).encode(), "bad_shape"),
            (line(conversation=[{"speaker": word, "text": "x"}]), "unknown_speaker"),
            (b" " * some.randrange(10), "empty"),
            (line(text=some.choice([" ", "\n\t", "\u3000"]) * some.randrange(9)), "empty"),
            (json.dumps({"conversation": []}).encode(), "empty"),
            (line(sampling={"temperature": -number}), "bad_sampling"),
            (line(sampling={"temprature": number}), "bad_sampling"),
            (line(sampling={"stop_token_ids": [number + 10**6]}), "bad_sampling"),
            (line(seed=-number), "bad_sampling"),
            (line(text=f"{word} " * some.randrange(1000, 2000)), "too_long"),
        ]
    )


def test_1_000_random_bad_rows_among_10_000_good_ones_are_all_rejected_with_row_and_reason(
    instant_engine, tmp_path, write_rows, batchgen
):
    some = random.Random(20_000)
    bad = {row: bad_row(some) for row in some.sample(range(11_000), 1000)}
    rows = [bad[row][0] if row in bad else {"text": f"{row}"} for row in range(11_000)]
    out = tmp_path / "out"
    run_here(instant_engine, spec_of(write_rows(rows), out, shard_rows=1000, max_tokens=1))
    rejects = [line for index in range(11) for line in shard.read_rejects(at(out), Shard(index, 11, 0, 0, 0, 0))]
    assert [(line["row"], line["reason"]) for line in rejects] == [(row, bad[row][1]) for row in sorted(bad)]
    for line, row in zip(rejects, sorted(bad), strict=True):
        whole = Row(row, bad[row][0]).raw_text()
        cut = f"{whole[:4096]}... ({len(bad[row][0]):,} bytes in all)"  # too long ones are of plain letters
        assert line["raw"] == (whole if len(bad[row][0]) <= 4096 else cut)
    answered = ds.dataset(out).to_table(["row"])["row"].to_pylist()
    assert answered == [row for row in range(11_000) if row not in bad]
    assert batchgen("verify", out).stdout.startswith("verified: 11,000 rows, 10,000 responses, 1,000 rejects\n")
    print(dict(Counter(reason for _, reason in bad.values())))


texts = st.text(max_size=20) | st.sampled_from(["Monday", "ユーザー", "システム", "user", "Human: x\n\nAssistant:"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
sampling = st.dictionaries(st.sampled_from(Sampling.__struct_fields__), values, max_size=2)
turns = st.lists(st.dictionaries(st.sampled_from(["speaker", "text", "role", "content", "from", "value"]), texts))
columns = st.sampled_from(shapes.COLUMNS)
records = st.builds(
    lambda record, more: json.dumps(record | more).encode(),
    st.dictionaries(columns, texts | turns | values, max_size=2),
    st.fixed_dictionaries({}, optional={"id": values, "seed": values, "sampling": sampling | values}),
)
lines = st.lists(st.binary(max_size=40) | records, max_size=6).map(b"\n".join)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines | st.binary(max_size=200))
def test_whatever_bytes_the_input_has_every_line_is_answered_or_rejected(engine, batchgen, data):
    with tempfile.TemporaryDirectory() as scratch:
        path, out = Path(scratch) / "in.jsonl", Path(scratch) / "out"
        path.write_bytes(data)
        if not data:
            with pytest.raises(JobError, match="the input is empty"):
                run_here(engine, spec_of(path, out))
            return
        try:
            kind, _ = detect(str(path))
        except JobError:
            kind = "none"
        assume(kind == "jsonl")  # others are refused as a file, or have records that are no lines
        counts = run_here(engine, spec_of(path, out, max_rejects=data.count(b"\n") + 1)).counts
        assert counts.rows == data.count(b"\n") + (data[-1:] != b"\n")
        assert counts.rows == counts.responses + counts.rejected
        result = batchgen("verify", out)
        assert result.exit_code == 0, result.stderr
