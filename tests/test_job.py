"""The job file and its flags: typed, with the nearest valid key in every error."""

import pytest

from batchgen.cli import cli, flag_name
from batchgen.errors import JobError
from batchgen.job import TABLES, differences, load

JOB = """
[input]
path = ["a.jsonl", "s3://bucket/b.parquet"]
[model]
path = "/models/sft"
[sampling]
temperature = 0.7
[engine]
max_num_seqs = 128
[output]
path = "out"
"""


@pytest.fixture
def job_file(tmp_path):
    def write(text):
        (tmp_path / "job.toml").write_text(text)
        return str(tmp_path / "job.toml")

    return write


def test_paths_in_a_job_file_start_at_its_folder(job_file, tmp_path):
    spec = load(job_file(JOB), {})
    assert spec.input.path == [str(tmp_path / "a.jsonl"), "s3://bucket/b.parquet"]
    assert spec.model.path == "/models/sft"
    assert spec.output.path == str(tmp_path / "out")


def test_a_flag_beats_the_file_and_the_rest_stays(job_file):
    spec = load(job_file(JOB), {"sampling": {"temperature": 0.0}, "engine": {"dtype": "float32"}})
    assert spec.sampling.temperature == 0
    assert spec.engine == {"max_num_seqs": 128, "dtype": "float32"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[smapling]\n", "unknown table [smapling]; did you mean sampling?"),
        ("[sampling]\ntemprature = 1\n", "[sampling] temprature: unknown key; did you mean temperature?"),
        ("[output]\nshards = 1\n", "[output] shards: unknown key; did you mean shard_rows?"),
        ("[prompt]\nx = 1\n", "[prompt] x: unknown key; valid are format"),
        ("input = 1\n", "input must be a table: [input]"),
        ("[sampling\n", "not valid TOML"),
        (JOB.replace("0.7", '"hot"'), "[sampling] temperature: expected float, got str"),
        (JOB.replace("0.7", "-1.0"), "[sampling] temperature: expected float >= 0.0"),
        (JOB.replace("0.7", "nan"), "[sampling]"),
        (JOB.replace('path = "out"', ""), "[output] path is missing: name it there or give --output"),
        (JOB.replace('"out"', "7"), "[output] path: expected str, got int"),
        (JOB + "shard_rows = 0\n", "[output] shard_rows: expected int >= 1"),
        (JOB + 'include = ["logits"]\n', "[output] include[0]: invalid enum value 'logits'"),
    ],
)
def test_a_wrong_job_file_is_named_with_the_key(job_file, text, message):
    with pytest.raises(JobError) as caught:
        load(job_file(text), {})
    assert "job.toml: " in str(caught.value)
    assert message in str(caught.value)


def test_no_such_job_file(tmp_path):
    with pytest.raises(JobError, match="no such job file"):
        load(str(tmp_path / "none.toml"), {})


def test_every_key_of_the_job_file_has_a_flag():
    flags = {name for option in cli.commands["run"].params for name in option.opts}
    for table, struct in TABLES.items():
        for key in struct.__struct_fields__:
            assert (table, key) == ("input", "path") or flag_name(table, key) in flags


def test_no_two_keys_share_a_flag():
    names = [flag_name(table, key) for table, struct in TABLES.items() for key in struct.__struct_fields__]
    assert len(names) == len(set(names))


def test_flags_reach_the_spec(batchgen, tmp_path):
    result = batchgen("run", "x.jsonl", "--model", "m", "--output", tmp_path / "o", "--engine", "max_num_seqs")
    assert (result.exit_code, "write KEY=VALUE" in result.stderr) == (2, True)


def test_differences_name_every_field_old_and_new():
    old = {"a": {"b": 1, "c": [1, 2]}, "d": [{"e": 1}, {"e": 2}], "gone": True}
    new = {"a": {"b": 2, "c": [1, 2]}, "d": [{"e": 1}], "new": {}}
    assert differences(old, new) == [
        "a.b: 1 -> 2",
        "d[1].e: 2 -> (none)",
        "gone: true -> (none)",
        "new: (none) -> {}",
    ]
