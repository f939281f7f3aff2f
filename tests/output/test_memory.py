"""What earlier translations have is found again, by whichever of them has it best, and by nothing else."""

import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
from faulty import finished_in_shards_of_one
from translated import key_of, segment, translated

from batchgen.errors import JobError
from batchgen.output import layout, memory, record, segments, shard
from batchgen.output.memory import Memory, digest, source_of, sources_of
from batchgen.output.sealed import sealed
from batchgen.output.store import at

OTHER = {"sampling": {"seed": 9}}  # settings of a job that is like none here


def memory_of(*folders: Path, settings: dict = OTHER) -> Memory:
    return Memory(sources_of(map(str, folders)), settings)


@pytest.fixture
def night(tmp_path) -> Path:
    """The output of one night: three shards, one of them without a segment."""
    shards = [[segment("a", "A"), segment("b", "B")], [], [segment("c", "C"), segment("a", "again")]]
    translated(tmp_path / "night", shards)
    return tmp_path / "night"


def segments_path(out: Path, index: int, of: int) -> Path:
    return out / f"_segments/part-{index:05}-of-{of:05}.parquet"


# --- looked up


def test_a_segment_is_found_by_its_key_and_no_other_is(night):
    found = memory_of(night)
    assert found.get(key_of("c")) == segment("c", "C")
    assert found.get(key_of("d")) is None
    assert (key_of("b") in found, key_of("d") in found, len(found)) == (True, False, 3)


def test_many_are_found_at_once_whatever_their_order(night):
    found = memory_of(night).find(map(key_of, "cdab"))
    assert {key: each.answer for key, each in found.items()} == {key_of(text): text.upper() for text in "abc"}


def test_of_one_folder_the_first_shard_counts(night):
    assert memory_of(night).get(key_of("a")).answer == "A"


def test_of_several_folders_the_first_that_is_named_counts(tmp_path, night):
    translated(tmp_path / "other", [[segment("a", "other"), segment("e", "E")]])
    assert memory_of(night, tmp_path / "other").get(key_of("a")).answer == "A"
    assert memory_of(tmp_path / "other", night).get(key_of("a")).answer == "other"
    assert len(memory_of(tmp_path / "other", night)) == 4


def test_an_unfinished_job_is_remembered_as_far_as_it_came(night):
    (night / "part-00000-of-00003.parquet").unlink()
    found = memory_of(night)
    assert (len(found), found.get(key_of("a")).answer) == (2, "again")


def test_a_job_remembers_its_own_finished_shards(night):
    job = record.read_job(at(night))
    found = Memory([source_of(at(night), job, job.plan.shards[1:])], job.settings)
    assert (len(found), found.get(key_of("a")).answer) == (2, "again")


def test_keys_that_end_in_zeros_are_keys_like_any_other(tmp_path):
    keys = ["00" * 16, "01" + "00" * 15, "0100" + "01" * 13 + "00"]
    rows = [msgspec.structs.replace(segment("z", key), key=key) for key in keys]
    translated(tmp_path / "out", [rows])
    found = memory_of(tmp_path / "out")
    assert [found.get(key).answer for key in keys] == keys
    assert found.get("01" + "00" * 14 + "01") is None


def test_no_folders_are_an_empty_memory():
    assert (len(Memory([], {})), Memory([], {}).get(key_of("a"))) == (0, None)


def test_it_takes_20_bytes_for_each_segment_beside_the_row_groups_it_keeps(tmp_path, monkeypatch):
    monkeypatch.setattr(segments, "GROUP_ROWS", 10)
    translated(tmp_path / "out", [[segment(str(number)) for number in range(500)] for _ in range(2)])
    found = memory_of(tmp_path / "out")
    held = [value for value in vars(found).values() if isinstance(value, np.ndarray)]
    assert sum(array.nbytes for array in held) == 20 * 500
    assert found.find(key_of(str(number)) for number in range(500)).keys() == {key_of(str(n)) for n in range(500)}
    assert found._read.cache_info().currsize == memory.GROUPS < 50


# --- failing ones


FAILING = segment("a", "source kept", ["numbers"], tries=4)


def settings_of(out: Path) -> dict:
    return record.read_job(at(out)).settings


def test_one_that_failed_is_used_where_the_job_would_make_it_the_same_way(tmp_path):
    translated(tmp_path / "out", [[FAILING]])
    assert memory_of(tmp_path / "out", settings=settings_of(tmp_path / "out")).get(FAILING.key) == FAILING


@pytest.mark.parametrize("table", memory.SAME)
def test_one_that_failed_under_other_settings_is_tried_again(tmp_path, table):
    translated(tmp_path / "out", [[FAILING, segment("b")]])
    settings = settings_of(tmp_path / "out")
    settings[table] = {**settings.get(table, {}), "new": 1}
    found = memory_of(tmp_path / "out", settings=settings)
    assert (FAILING.key in found, key_of("b") in found) == (False, True)


def test_which_fields_were_translated_and_what_was_remembered_then_does_not_matter(tmp_path):
    translated(tmp_path / "out", [[FAILING]], {"fields": ["a"], "memory": ["x"]})
    settings = settings_of(tmp_path / "out")
    settings["translate"] = {**settings["translate"], "fields": ["b"], "memory": []}
    assert FAILING.key in memory_of(tmp_path / "out", settings=settings)


def test_one_that_passed_comes_before_one_that_failed_whichever_folder_is_named_first(tmp_path):
    translated(tmp_path / "failed", [[FAILING]])
    translated(tmp_path / "passed", [[segment("a", "A")]])
    settings = settings_of(tmp_path / "failed")
    found = memory_of(tmp_path / "failed", tmp_path / "passed", settings=settings)
    assert found.get(FAILING.key).answer == "A"


# --- the fingerprint


def test_the_digest_is_that_of_what_the_folders_hold_wherever_they_are(tmp_path, night):
    before = digest(sources_of([str(night)]))
    shutil.copytree(night, tmp_path / "copy")
    assert digest(sources_of([str(tmp_path / "copy")])) == before
    (tmp_path / "copy/part-00000-of-00003.parquet").unlink()
    assert digest(sources_of([str(tmp_path / "copy")])) != before


def test_the_digest_is_another_where_an_answer_is_or_the_order(tmp_path):
    translated(tmp_path / "one", [[segment("a", "A")]])
    translated(tmp_path / "other", [[segment("a", "B")]])
    folders = [str(tmp_path / "one"), str(tmp_path / "other")]
    of = [digest(sources_of(each)) for each in ([], folders[:1], folders[1:], folders, folders[::-1])]
    assert len(set(of)) == 5


def test_the_digest_reads_checksums_alone(night):
    before = digest(sources_of([str(night)]))
    segments_path(night, 0, 3).unlink()
    assert digest(sources_of([str(night)])) == before


# --- no memory


def refused(*folders: Path) -> str:
    with pytest.raises(JobError) as told:
        memory_of(*folders)
    [line] = told.value.lines
    assert "\n" not in line
    return line


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "file").touch()
    assert refused(tmp_path / "x") == f"{tmp_path}/x: no batchgen output folder (it has no _job.json)"
    assert refused(tmp_path / "none").endswith("no batchgen output folder (it has no _job.json)")


def test_the_output_of_a_job_that_translates_nothing_is_refused(tmp_path, write_rows):
    finished_in_shards_of_one(write_rows([{"text": "a"}]), tmp_path / "out")
    assert refused(tmp_path / "out").startswith(f"{tmp_path}/out: is no translation")


def damaged_checksums(out: Path) -> Path:
    path = out / "_state/checksums/part-00000-of-00003.json"
    path.write_bytes(path.read_bytes().replace(b'"size":', b'"size":1'))
    return out / "part-00000-of-00003.parquet"


def shard_of_another_job(out: Path) -> Path:
    job = record.read_job(at(out))
    sums = shard.read_checksums(at(out), job.plan.shards[0])
    at(out).write(layout.checksums(job.plan.shards[0]), sealed(msgspec.structs.replace(sums, fingerprint="0" * 32)))
    return out / "part-00000-of-00003.parquet"


def segments_gone(out: Path) -> Path:
    segments_path(out, 0, 3).unlink()
    return segments_path(out, 0, 3)


def segments_changed(out: Path) -> Path:
    segments_path(out, 0, 3).write_bytes(segments_path(out, 2, 3).read_bytes())
    return segments_path(out, 0, 3)


def a_link(out: Path) -> Path:
    segments_path(out, 0, 3).rename(out.parent / "beside")
    segments_path(out, 0, 3).symlink_to(out.parent / "beside")
    return segments_path(out, 0, 3)


def no_segments_with_checksums_of_their_own(out: Path) -> Path:
    job = record.read_job(at(out))
    segments_path(out, 0, 3).write_bytes(b"PAR1")
    sums = shard.read_checksums(at(out), job.plan.shards[0])
    sums.segments = shard.digest_in(at(out), layout.segments(job.plan.shards[0]))
    at(out).write(layout.checksums(job.plan.shards[0]), sealed(sums))
    return segments_path(out, 0, 3)


HOW = [
    damaged_checksums,
    shard_of_another_job,
    segments_gone,
    segments_changed,
    a_link,
    no_segments_with_checksums_of_their_own,
]


@pytest.mark.parametrize("how", HOW, ids=lambda how: how.__name__)
def test_what_is_damaged_or_somebody_elses_is_one_line_that_names_it(night, how):
    path = how(night)
    assert refused(night).startswith(f"{path}: ")


def test_a_file_that_is_swapped_after_it_was_read_is_one_line(night):
    found = memory_of(night)
    segments_path(night, 0, 3).write_bytes(segments.as_parquet([segment("x", "X"), segment("y", "Y")], {}))
    with pytest.raises(JobError, match="is not what the checksums of its shard say"):
        found.get(key_of("b"))


def test_a_file_that_goes_after_it_was_read_is_one_line(night):
    found = memory_of(night)
    segments_path(night, 0, 3).unlink()
    with pytest.raises(JobError, match="is gone"):
        found.get(key_of("b"))
