"""Models of other kinds: their own Hugging Face tokenizer and chat template. A small Llama stands for all of them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from conftest import MODEL
from llama import TEMPLATE, llama  # noqa: F401
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from batchgen.errors import JobError
from batchgen.input.rows import read_rows
from batchgen.job.spec import load
from batchgen.model.hf_tokenizer import HfTokenizer
from batchgen.model.model import load_model
from batchgen.output import record as records
from batchgen.output.store import at
from batchgen.runner.prepare import prepare

ROWS = [
    {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Monday?"}]},
    {
        "conversation": [
            {"speaker": "ユーザー", "text": "a"},
            {"speaker": "システム", "text": "b"},
            {"speaker": "ユーザー", "text": "月曜"},
        ]
    },
    {"text": "Friday"},
]


def prompts(llama, tmp_path, write_rows, **tables) -> list[str]:  # noqa: F811
    tables = {"input": {"path": [str(write_rows(ROWS))]}, "output": {"path": str(tmp_path / "out")}, **tables}
    job = prepare(load(None, {"model": {"path": str(llama)}, **tables}))
    return [job.task.prepare_row(row).prompt for row in read_rows(job.plan, job.plan.shards[0], ())]


CHOICES = ["はい", "no way"]


@pytest.fixture(scope="module")
def answered(llama, tmp_path_factory) -> list[dict]:  # noqa: F811
    """What a run of vLLM makes of the rows, and of the same where there are but two answers to choose from."""
    folder = tmp_path_factory.mktemp("answered")
    chosen = [{**row, "sampling": {"structured_outputs": {"choice": CHOICES}}} for row in ROWS]
    (folder / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS + chosen))
    command = [Path(sys.executable).with_name("batchgen"), "run", folder / "in.jsonl", "--model", llama]
    command += ["--output", folder / "out", "--temperature", 0, "--max-tokens", 20]
    command += ["--include", "prompt", "--include", "prompt_token_ids", "--include", "response_token_ids"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return pq.read_table(folder / "out" / "part-00000-of-00001.parquet").to_pylist()


def test_a_llama_answers_as_transformers_does_by_its_own_template(llama, answered):  # noqa: F811
    rows = answered[: len(ROWS)]
    assert [row["prompt"] for row in rows] == [
        "<|system|>Be brief.<|end|><|user|>Monday?<|end|><|assistant|>",
        "<|user|>a<|end|><|assistant|>b<|end|><|user|>月曜<|end|><|assistant|>",
        "<|user|>Friday<|end|><|assistant|>",
    ]
    assert [turn["speaker"] for turn in rows[0]["conversation"]] == ["system", "ユーザー"]
    tokenizer = AutoTokenizer.from_pretrained(llama)
    network = LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32)
    for row in rows:
        assert row["prompt_token_ids"] == tokenizer.encode(row["prompt"], add_special_tokens=False)
        assert row["sampling"]["repetition_penalty"] == 1.05  # as generation_config.json says
        prompt = torch.tensor([row["prompt_token_ids"]])
        whole = network.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=20)
        ids = whole[0, prompt.shape[1] :].tolist()
        assert row["response_token_ids"] == ids
        assert row["response"] == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_any_of_the_ids_that_end_a_text_ends_a_response(llama):  # noqa: F811
    assert load_model(str(llama)).tokenizer.eos_ids == [1, 5]


def test_the_jobs_system_message_is_for_rows_that_have_none(llama, tmp_path, write_rows):  # noqa: F811
    found = prompts(llama, tmp_path, write_rows, prompt={"system": "In Japanese."})
    assert [prompt.startswith("<|system|>In Japanese.<|end|>") for prompt in found] == [False, True, True]


def test_a_system_message_stands_ahead_of_the_prefix(llama, tmp_path, write_rows):  # noqa: F811
    prefix = [{"speaker": "ユーザー", "text": "x"}, {"speaker": "システム", "text": "y"}]
    found = prompts(llama, tmp_path, write_rows, prompt={"prefix": prefix})
    assert found[0].startswith("<|system|>Be brief.<|end|><|user|>x<|end|><|assistant|>y<|end|><|user|>Monday?")


def test_such_a_model_takes_raw_text_too_but_no_format_of_the_series(llama, tmp_path, write_rows):  # noqa: F811
    raw = {"prompt": {"format": "raw"}, "input": {"path": [str(write_rows([{"text": "Friday"}], "raw.jsonl"))]}}
    job = prepare(load(None, {"model": {"path": str(llama)}, "output": {"path": str(tmp_path / "raw")}, **raw}))
    assert job.task.format == "raw"
    with pytest.raises(
        JobError, match=r"has no spiece\.model, so \[prompt\] format is raw or chat-template, not speaker"
    ):
        prompts(llama, tmp_path, write_rows, prompt={"format": "speaker"})


def test_a_model_of_the_series_has_no_chat_template(tmp_path, write_rows):
    with pytest.raises(JobError, match=r"no chat template|finds no tokenizer"):
        prompts(MODEL, tmp_path, write_rows, prompt={"format": "chat-template"})


def test_inspect_shows_such_a_model(llama, batchgen):  # noqa: F811
    shown = batchgen("inspect", llama).stdout
    assert "a llama model, none of the series" in shown
    assert "chat-template: as the template of the model's tokenizer has it" in shown
    assert "repetition_penalty 1.05" in shown


def test_without_a_tokenizer_there_is_one_clear_line(llama, batchgen, tmp_path):  # noqa: F811
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text((llama / "config.json").read_text())
    shown = batchgen("inspect", tmp_path / "model")
    assert (shown.exit_code, shown.stderr.count("\n")) == (2, 1)
    assert "has no spiece.model, and transformers finds no tokenizer" in shown.stderr


def test_structured_outputs_work_with_such_a_tokenizer(answered):
    chosen = answered[len(ROWS) :]
    assert len(chosen) == len(ROWS)
    assert {row["response"] for row in chosen} <= set(CHOICES)


@pytest.mark.parametrize(
    ("name", "wish"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "evil.Config"}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]}}),
        ("config.json", {"speculators_config": {"verifier": {"name_or_path": "somebody/else"}}}),
    ],
)
def test_a_model_that_brings_code_or_names_other_weights_is_refused(llama, batchgen, tmp_path, name, wish):  # noqa: F811
    model = shutil.copytree(llama, tmp_path / "model")
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (model / name).write_text(json.dumps(json.loads((model / name).read_text()) | wish))
    shown = batchgen("inspect", model)
    assert (shown.exit_code, shown.stderr.count("\n")) == (2, 1)
    assert f"{name}: {next(iter(wish))} asks for" in shown.stderr
    assert not (tmp_path / "ran").exists()


def test_a_long_text_is_rejected_before_it_is_encoded(llama):  # noqa: F811
    tokenizer = load_model(str(llama)).tokenizer
    for text in ("Monday is fine. " * 50_000, "月曜" * 400_000, "\n\n- " * 200_000, "a" * 800_000):
        assert tokenizer.exceeds(text, 100)
        count = len(tokenizer.encode(text[:100_000]))
        assert not tokenizer.exceeds(text[:100_000], count)
    assert not tokenizer.exceeds(" " * 1_000_000, 10)  # blanks are left out of the count: it may be one token


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram", "BPE without bytes", "blanks and letters are removed"])
def test_a_tokenizer_that_may_take_any_length_for_one_token_is_asked_itself(kind):
    model = {
        "WordPiece": lambda: models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"),
        "Unigram": lambda: models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0),
        "BPE without bytes": lambda: models.BPE({"<unk>": 0, "a": 1}, [], unk_token="<unk>", fuse_unk=True),
        "blanks and letters are removed": lambda: models.BPE({"<unk>": 0, "a": 1}, [], unk_token="<unk>"),
    }[kind]()
    theirs = Tokenizer(model)
    if "removed" in kind:
        theirs.pre_tokenizer = pre_tokenizers.Split("b", "removed")
    tokenizer = HfTokenizer(PreTrainedTokenizerFast(tokenizer_object=theirs), [0])
    text = "b" * 1_000_000
    assert len(tokenizer.encode(text)) <= 1
    assert not tokenizer.exceeds(text, 1)


def test_the_template_may_leave_out_a_long_text(llama, tmp_path, write_rows):  # noqa: F811
    folder = shutil.copytree(llama, tmp_path / "short")
    (folder / "chat_template.jinja").write_text("{{ messages[-1].content[:10] }}")
    row = {"text": "Monday is fine. " * 50_000}
    job = prepare(
        load(
            None,
            {
                "input": {"path": [str(write_rows([row]))]},
                "model": {"path": str(folder)},
                "output": {"path": str(tmp_path / "out")},
            },
        )
    )
    assert [job.task.prepare_row(row).prompt for row in read_rows(job.plan, job.plan.shards[0], ())] == ["Monday is "]


def test_a_folder_of_format_2_goes_on_with_control_tokens_in_texts_as_tokens(llama, tmp_path, write_rows):  # noqa: F811
    out = tmp_path / "out"
    tables = {"input": {"path": [str(write_rows([{"text": "a<|end|>b"}]))]}, "output": {"path": str(out)}}
    spec = load(None, {"model": {"path": str(llama)}, **tables})

    def ids() -> list[int]:
        job = prepare(spec)
        [row] = read_rows(job.plan, job.plan.shards[0], ())
        return job.task.prepare_row(row).prompt_token_ids

    end = 1
    assert ids().count(end) == 1  # the template's
    at(out).prepare(shared=False)
    record = prepare(spec).record
    record.format = 2
    (out / "_job.json").write_bytes(records.written(record))
    assert ids().count(end) == 2
    (out / "_job.json").write_bytes(records.written(prepare(spec).record))
    assert records.read_job(at(out)).format == 2
