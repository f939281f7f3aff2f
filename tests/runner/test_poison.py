"""Items that kill the engines they get into: each is found and rejected, and all others are answered."""

import json

import pyarrow.dataset as ds
from conftest import demo_records
from processes import Watch

from batchgen.runner.messages import PoisonItems
from batchgen.runner.poison import KILLS_ENGINES, PoisonDetector


def deadly(item: str, deaths: object) -> str:
    """For `more` of Watch: an engine that kills its process in the step with this item in it, and writes down of how
    many."""
    return f"""
        inside = set()
        def add_deadly(name, *arguments):
            inside.add(name)
            watched_add(name, *arguments)
        def step_deadly():
            if {item!r} in inside:
                with open({str(deaths)!r}, "a") as log:
                    print(len(inside), file=log)
                os.kill(os.getpid(), 9)
            responses = watched_step()
            inside.difference_update(done.request_id for done in responses)
            return responses
        engine.add, engine.step = add_deadly, step_deadly
    """


def rejects(out) -> list[tuple[int, str, str]]:
    lines = [line for path in sorted((out / "_rejects").iterdir()) for line in path.read_text().splitlines()]
    return [(row["row"], row["reason"], row["detail"]) for row in map(json.loads, lines)]


def test_an_item_that_kills_the_engine_is_rejected_after_three_deaths_and_all_others_are_answered(
    start, instantly, write_rows, tmp_path
):
    source = write_rows([{**record, "id": f"r{i}"} for i, record in enumerate(demo_records(30))])
    watch = Watch(tmp_path, more=deadly("17-0", tmp_path / "deaths"), step=0)
    run = start(source, tmp_path / "out", env=watch.environment)
    assert run.wait() == 0, run.stderr
    assert run.stderr.count("the engine died (killed by SIGKILL)") == 3
    assert rejects(tmp_path / "out") == [(17, "engine_error", KILLS_ENGINES)]
    columns = ["row", "response"]
    answered = ds.dataset(instantly([source], "expected")).to_table(columns=columns).to_pylist()
    assert ds.dataset(tmp_path / "out").to_table(columns=columns).to_pylist() == [
        answer for answer in answered if answer["row"] != 17
    ]


def test_an_item_is_rejected_after_three_deaths_of_whatever_worker(start, write_rows, tmp_path):
    source = write_rows(demo_records(100))
    watch = Watch(tmp_path, together=2, more=deadly("30-0", tmp_path / "deaths"), step=0.02)
    flags = ["--workers", 2, "--shard-rows", 25, "--engine", "max_num_seqs=8"]
    run = start(source, tmp_path / "out", *flags, env=watch.environment)
    assert run.wait() == 0, run.stderr
    # One more if the other worker took it up before it heard that it is to run alone: that death proves nothing.
    assert run.stderr.count("engine died (killed by SIGKILL)") in (3, 4)
    assert (tmp_path / "deaths").read_text().split()[-1] == "1"  # alone
    assert rejects(tmp_path / "out") == [(30, "engine_error", KILLS_ENGINES)]
    assert "99 responses, 1 rejects" in run.stdout


def test_an_item_is_found_to_be_poison_by_its_third_death_and_only_alone():
    detector = PoisonDetector()
    detector.record_death({"a", "b", "c"})
    assert detector.items.suspected == set()
    detector.record_death({"a", "b", "d"})
    assert detector.items.suspected == {"a", "b"}
    detector.record_death({"a", "b"})  # a worker had not heard yet which to run alone
    assert detector.items == PoisonItems({"a", "b"}, set())
    detector.clear(["b"])
    detector.record_death({"a"})
    assert detector.items == PoisonItems(set(), {"a"})


def test_of_several_poison_items_each_further_one_costs_one_death():
    detector = PoisonDetector()
    for in_engine in ({"a", "b", "c"}, {"a", "b", "c"}, {"a"}, {"b"}, {"c"}):
        detector.record_death(in_engine)
    assert detector.items.poisoned == {"a", "b", "c"}


def test_a_row_that_was_being_prepared_is_the_only_suspect():
    detector = PoisonDetector()
    for _ in range(3):
        detector.record_death({"a", "b"}, row=7)
    assert detector.items == PoisonItems(set(), {"7"})
