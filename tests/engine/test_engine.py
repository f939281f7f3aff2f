"""What reaches vLLM of a request, what it refuses, and what of a worker's troubles is not the engine's."""

import json
import shutil

import msgspec
import pytest
from conftest import MODEL, demo_records
from parameters import GIVEN
from processes import dataset, hook, instant, said
from vllm.exceptions import VLLMValidationError

from batchgen.engine.vllm import VllmEngine
from batchgen.errors import JobError, Reject
from batchgen.job.sampling import PARAMETERS, Sampling
from batchgen.model.model import load_model

OURS = ["stop", "include_stop_str_in_output"]  # looked for by stop.py


def test_only_stop_texts_are_kept_from_vllm():
    assert [each.name for each in PARAMETERS if not each.goes_to_vllm] == OURS


@pytest.mark.parametrize("name", [each.name for each in PARAMETERS if each.goes_to_vllm])
def test_every_sampling_parameter_reaches_vllm(engine, name):
    default, found = (
        getattr(engine.params(msgspec.convert(given, Sampling), 1), name) for given in ({}, {name: GIVEN[name]})
    )
    assert found != default
    if isinstance(GIVEN[name], dict) and name != "logit_bias":
        assert {key: getattr(found, key) for key in GIVEN[name]} == GIVEN[name]
    else:
        assert found == ([*GIVEN[name], 3] if name == "stop_token_ids" else GIVEN[name])


def test_parameters_of_drawing_mean_nothing_to_vllm_where_nothing_is_drawn(engine):
    params = engine.params(Sampling(temperature=0, top_p=0.5, top_k=7, min_p=0.2), 1)
    assert (params.top_p, params.top_k, params.min_p) == (1.0, 0, 0.0)


def test_a_seed_reaches_vllm_where_something_is_drawn(engine):
    assert engine.params(Sampling(), 77).seed == 77
    assert engine.params(Sampling(temperature=0), 77).seed is None


@pytest.mark.parametrize(
    ("prompt", "sampling"),
    [
        ([5] * 600, Sampling()),
        ([], Sampling()),
        ([5], Sampling(allowed_token_ids=[10**9])),
        ([5], Sampling(bad_words=[" "])),
    ],
)
def test_what_vllm_itself_refuses_is_a_reject_and_the_engine_goes_on(engine, prompt, sampling):
    """Our own checks would have found it: here it gets past them."""
    try:
        engine.add("refused", prompt, sampling, 1)
    except Reject as why:
        assert why.reason == "engine_error" and len(why.detail) > 10
    else:
        pytest.fail(f"vLLM took {sampling}")
    engine.add("taken", [5, 300], Sampling(max_tokens=3, ignore_eos=True), 1)
    found = []
    while not found:
        found = engine.step()
    assert [done.request_id for done in found] == ["taken"]


@pytest.mark.parametrize(
    "error", [VLLMValidationError("not this", parameter="top_k"), TypeError("not this"), KeyError("x")]
)
def test_a_refusal_of_whatever_class_rejects_its_row_at_the_first_try(engine, generate, write_rows, monkeypatch, error):
    add_request, seen = engine._engine.add_request, []

    def refuse_the_third(*arguments, **options):
        seen.append(arguments[0])
        if len(seen) == 3:
            raise error
        return add_request(*arguments, **options)

    monkeypatch.setattr(engine._engine, "add_request", refuse_the_third)
    out = generate([write_rows(demo_records(8))])
    [line] = next(out.glob("_rejects/*")).read_text().splitlines()
    assert json.loads(line)["reason"] == "engine_error"
    assert str(error) in json.loads(line)["detail"]
    assert len(seen) == 8


def test_vllm_is_held_to_the_folder_that_was_checked(tmp_path, monkeypatch):
    """Whatever leads vLLM to another one, as a model's config could."""
    model = shutil.copytree(MODEL, tmp_path / "model")
    monkeypatch.setattr("vllm.config.model.maybe_model_redirect", lambda path: str(MODEL))
    with pytest.raises(JobError, match=f"{model}: by its config vLLM would take the model from {MODEL}"):
        VllmEngine(load_model(str(model)), {"dtype": "float32"}, 512)


def test_settings_of_structured_outputs_that_vllm_does_not_know_are_refused_in_one_line():
    with pytest.raises(JobError, match=r"^\[engine\] vLLM refuses: backend: "):
        VllmEngine(load_model(str(MODEL)), {"structured_outputs_config": {"backend": "none"}}, 512)


def test_a_value_that_vllm_refuses_is_one_line():
    with pytest.raises(JobError, match=r"^\[engine\] vLLM refuses: dtype.*$"):
        VllmEngine(load_model(str(MODEL)), {"dtype": "flot16"}, 512)


def test_a_config_that_only_vllm_finds_wrong_is_refused_in_one_line(tmp_path):
    model = shutil.copytree(MODEL, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"architectures": "x"}))
    with pytest.raises(JobError, match=r"^\[engine\] vLLM refuses: .*architectures.*$"):
        VllmEngine(load_model(str(model)), {}, 512)


def test_a_bug_at_a_commit_ends_the_run_at_once_and_loses_nothing(start, instantly, write_rows, tmp_path):
    """It is not taken for a death of the engine, which would be started again and again."""
    source = write_rows(demo_records(60))
    broken = hook(
        tmp_path / "hook",
        """
def patch(engine):
    import pyarrow
    from batchgen.output import shard
    def commit(*arguments):
        raise pyarrow.ArrowInvalid("Integer value 9007199254740993 not in range")
    shard.commit = commit
""",
        step=0,
    )
    run = start(source, tmp_path / "out", "--temperature", 0, env=broken)
    assert run.wait() == 1
    log = run.out / "_state" / "engine.log"
    assert said(run.stderr) == [
        "batchgen: a bug in batchgen: ArrowInvalid: Integer value 9007199254740993 not in range; "
        f"finished responses are kept; see {log}"
    ]
    assert "Traceback" in log.read_text()
    again = start(source, tmp_path / "out", "--temperature", 0, env=instant(tmp_path / "instant"))
    assert again.wait() == 0, again.stderr
    assert "(60 responses from the journal)" in again.stdout
    assert dataset(tmp_path / "out") == dataset(instantly([source], "expected", sampling={"temperature": 0}))


def test_chunked_prefill_on_a_cpu_is_refused_before_anything_starts(batchgen, write_rows, tmp_path):
    ended = batchgen(
        *("run", write_rows(demo_records(1)), "--model", MODEL, "--output", tmp_path / "out"),
        *("--engine", "enable_chunked_prefill=true"),
    )
    assert ended.exit_code == 2
    assert ended.stderr.startswith("batchgen: [engine] enable_chunked_prefill: ") and ended.stderr.count("\n") == 1


def test_structured_outputs_that_would_go_on_behind_their_end_are_refused(generate, write_rows):
    bad = {"structured_outputs": {"choice": ["a"]}, "ignore_eos": True}
    out = generate([write_rows([{**demo_records(1)[0], "sampling": bad}, *demo_records(1)])])
    [line] = next(out.glob("_rejects/*")).read_text().splitlines()
    assert (json.loads(line)["row"], json.loads(line)["reason"]) == (0, "bad_sampling")
