"""What draws an engine's tokens: known by its config, and checked by what its seeds give."""

import itertools
import os
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import MODEL, demo_records, untimed
from processes import hook, said
from vllm.v1.sample.ops import topk_topp_sampler

from batchgen.engine import noise
from batchgen.engine.installed import ANY_VERSION, V2_RUNNER, check_device, versions, warn_of_runner
from batchgen.engine.noise import FIRST, LAST
from batchgen.engine.seeded import uniform
from batchgen.engine.vllm import _config
from batchgen.errors import JobError
from batchgen.job.sampler import ON_CPU, Sampler
from batchgen.job.sampling import Sampling
from batchgen.model.model import load_model

RELEASE = tuple(map(int, versions()["vllm"].split(".")[:2]))
V2 = Sampler("V2", "murmur3" if RELEASE >= (0, 31) else "Philox")


def checked(engine) -> tuple[Sampler, list[str]]:
    return noise.checked(engine._engine, engine.sampler, engine.params, 3, 1024)


def test_on_a_cpu_the_v1_runner_draws_by_our_noise(engine):
    assert engine.sampler == ON_CPU == Sampler("V1", "SplitMix64")


@pytest.mark.parametrize(("use_v2", "found"), [(False, ON_CPU), (True, V2)])
def test_the_runner_is_that_of_the_engines_config_and_the_noise_of_v2_that_of_this_vllm(use_v2, found):
    assert noise.of_engine(SimpleNamespace(use_v2_model_runner=use_v2)) == found


@pytest.mark.parametrize(("table", "lowest", "highest"), [(FIRST, 0, 2**-49), (LAST, 1 - 2**-49, 1)])
def test_the_seeds_of_the_check_draw_the_smallest_and_the_largest_numbers(table, lowest, highest):
    for position, seeds in enumerate(table):
        chances = uniform(np.array(seeds, np.uint64), np.full(len(seeds), position, np.uint64))
        assert ((lowest <= chances) & (chances < highest)).all()
    assert len(set(itertools.chain(*FIRST, *LAST))) == 16


def test_an_engine_that_draws_as_it_should_passes_as_often_as_it_is_asked_and_does_the_same_as_before(engine):
    def answer() -> list[int]:
        engine.add("a", [5, 300], Sampling(max_tokens=8, ignore_eos=True), 7)
        while not (found := engine.step()):
            continue
        return found[0].token_ids

    before = answer()
    assert checked(engine) == checked(engine) == (ON_CPU, [])
    assert answer() == before


def test_a_model_that_is_certain_of_a_token_passes_too():
    certain = {seed: [9, 9] for table in (FIRST, LAST) for seeds in table for seed in seeds}
    assert noise.is_ours(certain, 5, 9)
    once = certain | {FIRST[0][0]: [5, 9]}
    assert not noise.is_ours(once, 5, 9)


def by_vllm(probs, generators, *_):
    """As vLLM itself draws: exponential noise from each generator."""
    waits = torch.empty_like(probs).exponential_()
    for row, generator in generators.items():
        waits[row].exponential_(generator=generator)
    return probs.div(waits).argmax(-1)


def without_positions(probs, generators, *_):
    """Ours, but that every token is drawn as the first one."""
    seeds = np.array([generator.initial_seed() for generator in generators.values()], np.uint64)
    chances = torch.from_numpy(uniform(seeds, np.zeros(len(seeds), np.uint64)))
    return (probs.double().cumsum(-1) > chances.unsqueeze(1)).int().argmax(-1)


@pytest.mark.parametrize("draw", [by_vllm, without_positions])
def test_an_engine_that_draws_otherwise_is_refused_in_one_line_that_says_what_to_do(engine, monkeypatch, draw):
    monkeypatch.setattr(topk_topp_sampler, "random_sample", draw)
    with pytest.raises(JobError) as refused:
        checked(engine)
    assert str(refused.value).startswith(f"vLLM {versions()['vllm']} does not draw tokens by batchgen's own noise")
    assert "install vllm>=" in str(refused.value) and "\n" not in str(refused.value)


def test_with_any_version_it_goes_on_with_a_warning_and_claims_no_noise(engine, monkeypatch):
    monkeypatch.setattr(topk_topp_sampler, "random_sample", by_vllm)
    monkeypatch.setenv(ANY_VERSION, "1")
    sampler, [warning] = checked(engine)
    assert sampler == Sampler("V1", "unknown")
    assert warning.endswith("; going on, as --engine-any-version says")


# A worker whose vLLM samples as it comes.
STOCK = """
if "batchgen.runner.process" in sys.orig_argv:
    import batchgen.engine.vllm as ours
    install = ours.install_into_vllm
    def all_but_the_draw():
        from vllm.v1.sample.ops import topk_topp_sampler as theirs
        kept = theirs.random_sample, theirs.TopKTopPSampler.forward_cpu
        install()
        theirs.random_sample, theirs.TopKTopPSampler.forward_cpu = kept
    ours.install_into_vllm = all_but_the_draw
def patch(engine):
    pass
"""


@pytest.mark.slow
def test_a_run_with_a_vllm_that_samples_otherwise_ends_in_one_line_and_goes_on_if_it_is_told_to(
    start, write_rows, tmp_path
):
    source, environment = write_rows(demo_records(5)), hook(tmp_path / "hook", STOCK)
    refused = start(source, tmp_path / "out", env=environment)
    assert refused.wait() == 2
    [line] = said(refused.stderr)
    assert line.startswith(f"batchgen: vLLM {versions()['vllm']} does not draw tokens by batchgen's own noise")
    goes_on = start(source, tmp_path / "out", "--engine-any-version", env=environment)
    assert goes_on.wait() == 0, goes_on.stderr
    [line] = said(goes_on.stderr)
    assert line.startswith(f"batchgen: warning: vLLM {versions()['vllm']} does not draw")
    [part] = (tmp_path / "out").glob("part-*")
    facts = pq.read_metadata(part).metadata
    assert (facts[b"batchgen.runner"], facts[b"batchgen.noise"]) == (b"V1", b"unknown")


class OnV2:
    """Stands for vLLM's LLMEngine on the V2 runner, which needs a GPU: a request's tokens are of its seed, or not."""

    def __init__(self, by_seed: bool):
        self._by_seed, self._asked, self._number = by_seed, [], itertools.count()

    def add_request(self, name, prompt, params):
        self._asked.append((name, params))

    def step(self):
        done, self._asked = self._asked, []
        for name, (seed, allowed) in done:
            tokens = [allowed[(seed if self._by_seed else next(self._number)) % len(allowed)]] * 2
            yield SimpleNamespace(request_id=name, outputs=[SimpleNamespace(token_ids=tokens)])


def test_on_v2_the_same_seed_has_to_give_the_same_tokens_twice():
    def params(sampling, seed):
        return seed, sampling.allowed_token_ids

    assert noise.checked(OnV2(by_seed=True), V2, params, 3, 1024) == (V2, [])
    with pytest.raises(JobError, match=r"draws other tokens by the same seed, so no response could be made again; "):
        noise.checked(OnV2(by_seed=False), V2, params, 3, 1024)


@pytest.mark.parametrize(("ids", "context"), [(2, 2), (3, 3)])
def test_the_smallest_vocabulary_and_context_have_room_for_the_check(ids, context):
    first, last = ids // 3, 2 * ids // 3
    assert first < last < ids
    length = min(2, context - 1)
    tokens = {seed: [token] * length for table, token in ((FIRST, first), (LAST, last)) for seed in sum(table, ())}
    assert noise.is_ours(tokens, first, last)
    assert not noise.is_ours(tokens, last, first)


# --- on a CPU the runner is V1, whatever was asked for


def test_the_v2_runner_is_not_taken_on_a_cpu_though_the_user_asks_for_it(monkeypatch):
    monkeypatch.setenv(V2_RUNNER, "1")
    model = load_model(str(MODEL))
    assert not _config(model, {"dtype": "float32"}, model.context, True).use_v2_model_runner
    assert os.environ[V2_RUNNER] == "0"  # for the processes that vLLM starts, too


@pytest.mark.parametrize(("value", "is_told"), [("1", True), ("true", True), ("0", False), ("", False)])
def test_that_it_is_not_taken_is_told(monkeypatch, capsys, value, is_told):
    monkeypatch.setenv(V2_RUNNER, value)
    warn_of_runner()
    said = (
        f"batchgen: warning: {V2_RUNNER} is not obeyed on a CPU: there seeds are promised for vLLM's V1 runner alone\n"
    )
    assert untimed(capsys.readouterr().err) == (said if is_told else "")


@pytest.mark.slow
def test_a_job_of_a_user_who_asks_for_v2_is_that_of_any_other(start, generate, write_rows, tmp_path):
    source = write_rows(demo_records(5))
    run = start(source, tmp_path / "out", env={**os.environ, V2_RUNNER: "1"})
    assert run.wait() == 0, run.stderr
    assert [line for line in said(run.stderr) if V2_RUNNER in line]
    [part] = (tmp_path / "out").glob("part-*")
    assert part.read_bytes() == next(generate([source], "expected").glob("part-*")).read_bytes()


def test_a_pipeline_on_a_cpu_is_refused_before_anything_starts(batchgen, write_rows, tmp_path):
    flags = ["--model", MODEL, "--output", tmp_path / "out", "--engine"]
    ended = batchgen("run", write_rows(demo_records(1)), *flags, "pipeline_parallel_size=2")
    assert ended.exit_code == 2
    assert ended.stderr == (
        "batchgen: [engine] pipeline_parallel_size: on a CPU vLLM dies at the first step of a pipeline; leave it out\n"
    )
    check_device({"pipeline_parallel_size": 1})
