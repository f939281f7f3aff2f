"""LoRA adapters: what of their files is accepted, how rows ask for them, and that they are part of what a job is."""

import json
import shutil

import pyarrow.dataset as ds
import pytest
from adapters import OF_DEMO, write_adapter
from conftest import MODEL, demo_records

from batchgen.job.spec import DEFAULT_ADAPTER, load


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two adapters. The engine of these tests does not look at their weights."""
    folder = tmp_path_factory.mktemp("adapters")
    return {"ja": write_adapter(folder / "ja", 1, OF_DEMO), "en": write_adapter(folder / "en", 2, OF_DEMO, rank=6)}


def named(adapters) -> dict:
    return {"path": str(MODEL), "adapter": {name: str(folder) for name, folder in adapters.items()}}


def rows(out, *columns) -> list[dict]:
    return ds.dataset(out).to_table(["row", *columns]).to_pylist()


# --- how they are given


def test_a_job_file_names_adapters_by_a_path_a_list_or_a_table_relative_to_itself(tmp_path):
    folder = str(tmp_path / "a")
    head = '[input]\npath = "in"\n[output]\npath = "out"\n[model]\npath = "m"\n'
    for text, expected in {
        'adapter = "a"': {DEFAULT_ADAPTER: folder},
        'adapter = ["ja=a", "./x=y"]': {"ja": folder, DEFAULT_ADAPTER: str(tmp_path / "x=y")},
        'adapter = {ja = "a"}': {"ja": folder},
        '[model.adapter]\nja = "a"': {"ja": folder},
    }.items():
        (tmp_path / "job.toml").write_text(head + text)
        assert load(str(tmp_path / "job.toml"), {}).model.adapter == expected, text


def test_flags_name_adapters_one_by_one_instead_of_those_of_the_file(batchgen, write_rows, made, tmp_path):
    source = write_rows([{"text": "a", "lang": "en"}])
    flags = [part for name, folder in made.items() for part in ("--adapter", f"{name}={folder}")]
    command = ["plan", source, "--model", MODEL, "--output", tmp_path / "out", "--adapter-column", "lang"]
    assert "adapters       en 1, ja 0, the model alone 0\n" in batchgen(*command, *flags).stdout


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--adapter", "a", "--adapter", "b"], "two are named default; give each a name of its own"),
        (["--adapter-column", "lang"], "[input] adapter: the job has no adapters; name them in [model] adapter"),
        (["--adapter", "nowhere"], "/nowhere: no such folder"),
        (["--engine", "enable_lora=true"], "[engine] enable_lora: batchgen sets this itself"),
    ],
)
def test_what_cannot_be_an_adapter_is_one_line(batchgen, write_rows, tmp_path, flags, line):
    ended = batchgen("plan", write_rows([{"text": "a"}]), "--model", MODEL, "--output", tmp_path / "out", *flags)
    assert (ended.exit_code, ended.stderr.count("\n")) == (2, 1)
    assert line in ended.stderr


def test_a_name_is_one_that_every_place_can_hold():
    with pytest.raises(Exception, match=r"\[model\].*adapter: '\.\./x' cannot be a name"):
        load(
            None, {"input": {"path": ["a"]}, "output": {"path": "b"}, "model": {"path": "c", "adapter": {"../x": "d"}}}
        )


# --- what of their files is accepted


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"peft_type": "IA3"}, "peft_type: "),
        ({"r": 513}, "r: expected int <= 512"),
        ({"bias": "all"}, "bias: "),
        ({"use_dora": True}, "use_dora goes beyond plain LoRA"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern goes beyond plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save goes beyond plain LoRA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa changes the base model"),
        ({"auto_map": {"x": "evil.py"}}, "auto_map asks for Python code of its own"),
    ],
)
def test_a_config_that_vllm_would_not_follow_is_one_line(instantly, write_rows, tmp_path, wrong, line):
    folder = write_adapter(tmp_path / "a", 1, OF_DEMO, **wrong)
    with pytest.raises(Exception, match=f"^{folder}/adapter_config.json: {line}"):
        instantly([write_rows(demo_records(1))], model=named({"a": folder}))


def test_weights_that_may_hold_code_are_refused(instantly, write_rows, tmp_path):
    folder = write_adapter(tmp_path / "a", 1, OF_DEMO)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(Exception, match=r"no such file; adapter_model.bin may hold code: save it as safetensors"):
        instantly([write_rows(demo_records(1))], model=named({"a": folder}))


def test_an_adapter_of_another_model_is_one_line(instantly, write_rows, tmp_path):
    """vLLM would leave out what it does not find, and take a small matrix for a part of a large one."""
    source = write_rows(demo_records(1))
    folder = write_adapter(tmp_path / "of another", 1)
    with pytest.raises(
        Exception, match=r"^\[model\] adapter a: .*: changes nothing that the model has; it belongs to "
    ):
        instantly([source], model=named({"a": folder}))
    narrow = {name: (ins - 8, outs) for name, (ins, outs) in OF_DEMO.items()}
    folder = write_adapter(tmp_path / "narrow", 1, narrow)
    with pytest.raises(
        Exception, match=r"layers\.0\.attention\.query_key_value is 128 wide in the model and 120 in the "
    ):
        instantly([source], model=named({"a": folder}))


def test_weights_that_are_no_safetensors_are_one_line(instantly, write_rows, tmp_path):
    folder = write_adapter(tmp_path / "a", 1, OF_DEMO)
    (folder / "adapter_model.safetensors").write_bytes(b"PK")
    with pytest.raises(Exception, match=r"adapter_model.safetensors: cannot be read as safetensors: "):
        instantly([write_rows(demo_records(1))], model=named({"a": folder}))


# --- which one answers a row


def test_a_row_is_answered_by_the_adapter_that_its_column_names_or_rejected_by_name(instantly, write_rows, made):
    asked = ["ja", "en", None, "", "fr", 7]
    source = write_rows([{"id": str(i), "text": "a", "lang": name} for i, name in enumerate(asked)])
    out = instantly([source], model=named(made), input={"adapter": "lang"})
    assert [row["adapter"] for row in rows(out, "adapter")] == ["ja", "en", None, None]
    [first, second] = map(json.loads, next(out.glob("_rejects/*")).read_text().splitlines())
    assert (first["row"], first["reason"], first["detail"]) == (
        *(4, "unknown_adapter"),
        "lang is 'fr', and the job has en, ja",
    )
    assert (second["row"], second["reason"]) == (5, "unknown_adapter")


def test_rows_that_name_none_are_answered_by_the_default_one(instantly, write_rows, made):
    adapters = {DEFAULT_ADAPTER: made["ja"], "en": made["en"]}
    source = write_rows([{"text": "a", "lang": "en"}, {"text": "b"}])
    out = instantly([source], model=named(adapters), input={"adapter": "lang"})
    assert [row["adapter"] for row in rows(out, "adapter")] == ["en", DEFAULT_ADAPTER]
    alone = instantly([source], "alone", model={"path": str(MODEL), "adapter": str(made["ja"])})
    assert [row["adapter"] for row in rows(alone, "adapter")] == [DEFAULT_ADAPTER] * 2


def test_a_job_without_adapters_has_no_such_column(instantly, write_rows):
    assert "adapter" not in ds.dataset(instantly([write_rows(demo_records(2))])).schema.names


def test_a_column_that_no_row_has_is_one_line(instantly, write_rows, made):
    with pytest.raises(Exception, match=r"^\[input\] adapter \(--adapter-column\): no row has a column lang"):
        instantly([write_rows(demo_records(2))], model=named(made), input={"adapter": "lang"})


# --- part of the job


def test_adapters_may_move_and_another_one_is_drift(instantly, batchgen, write_rows, made, tmp_path, monkeypatch):
    source = write_rows([{"text": "a", "lang": "ja"}])
    out = instantly([source], model=named(made), input={"adapter": "lang"})
    moved = {name: shutil.copytree(folder, tmp_path / f"moved {name}") for name, folder in made.items()}
    command = ["run", source, "--model", MODEL, "--output", out, "--adapter-column", "lang"]

    def run(adapters):
        return batchgen(*command, *(part for name in adapters for part in ("--adapter", f"{name}={adapters[name]}")))

    assert run(moved).exit_code == 0
    other = run({"ja": made["en"], "en": made["en"]})
    assert other.exit_code == 2
    assert "  model.adapters/ja/adapter_model.safetensors: " in other.stderr
    assert "  model.adapters/en" not in other.stderr
    without = run({"ja": made["ja"]})
    assert (without.exit_code, without.stderr.count("-> (none)")) == (2, 2)


def test_a_finished_job_verifies_and_is_exported_with_its_adapters(instantly, batchgen, write_rows, made, tmp_path):
    rows = [{"text": "a", "lang": "ja"}, {"text": "b"}, {"text": "c", "lang": "fr"}]
    out = instantly([write_rows(rows)], model=named(made), input={"adapter": "lang"})
    checked = batchgen("verify", out)
    assert checked.exit_code == 0, checked.stderr
    lines = tmp_path / "batch.jsonl"
    assert batchgen("export", out, "--to", lines, "--format", "openai-batch").exit_code == 0
    exported = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [line["response"] and line["response"]["body"]["model"] for line in exported] == ["model:ja", "model", None]
    assert batchgen("export", out, "--to", tmp_path / "hf", "--format", "hf").exit_code == 0
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "MD5 of adapters/ja/adapter_model.safetensors" in card and "the adapter that answered" in card
