"""A folder that a stranger hands over: whatever its records say, a command ends as it should, or soon in one line."""

import json
import random
import shutil
import signal
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path

import msgspec
import pytest
from conftest import MODEL, demo_records
from faulty import run_here, spec_of
from folders.make import PLACES, put_places
from neighbours import instant_engine

from batchgen.commands import export, rejects, status, verify
from batchgen.errors import JobError, Stopped
from batchgen.job.spec import load
from batchgen.output import journal, layout, opening
from batchgen.output import record as records
from batchgen.output.sealed import sealed
from batchgen.output.store import at
from batchgen.runner.prepare import prepare

MADE = Path(__file__).parent.parent / "folders" / "0.2.0"
# What no record holds in its place.
ODD = [
    None,
    True,
    -1,
    0,
    1,
    7.5,
    1e308,
    2**53,
    2**63,
    2**64,
    -(2**63),
    "",
    "x",
    "../../x",
    "a\0b",
    "\u202e",
    "é" * 5000,
]
ODD += [[], {}, [[]], [{}], {"": {}}, {"path": 1}, [1, "a", None], "9" * 5000, "/dev/zero", "file://host/x", "s3://b/x"]


@contextmanager
def within(seconds: float):
    """Raises TimeoutError if it takes longer."""

    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def ends_well(what) -> bool:
    """Whether it did what it should; if not, it said why in one line."""
    try:
        with within(20):
            what()
        return True
    except (JobError, Stopped) as error:
        assert "\n" not in str(error)
        return False


# --- records


def places(value, path=()):
    """The path of every value in a JSON document."""
    yield path
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(part, (*path, key))


def forged(table: dict, some: random.Random) -> dict:
    """With one to three values that do not belong there."""
    table = deepcopy(table)
    for _ in range(some.choice([1, 1, 1, 2, 3])):
        *above, last = some.choice([path for path in places(table) if path])
        value = table
        for key in above:
            value = value[key]
        match some.randrange(5):
            case 0:
                del value[last]
            case 1 if isinstance(value, list):
                value.append(deepcopy(value[last]))
            case _:
                value[last] = deepcopy(some.choice(ODD))
    return table


def made_to_fit(table: dict) -> dict:
    """With results that are those of its plan, and their fingerprint: as good as a stranger can make it."""
    with suppress(KeyError, TypeError, AttributeError, OverflowError):
        facts = [{"digest": file["digest"], "rows": file["rows"]} for file in table["plan"]["files"]]
        table["results"]["input"]["files"] = facts
        table["fingerprint"] = records.fingerprint(table["results"])
    return table


def seal(path: Path, table: dict) -> None:
    with suppress(OverflowError, TypeError):
        table = {**table, "digest": records.fingerprint(table)}
    path.write_text(json.dumps(table))


@pytest.fixture
def out(tmp_path):
    """A finished job that has grown once."""
    made = tmp_path / "made"
    shutil.copytree(MADE, made)
    put_places(made, PLACES[0], str(made))
    put_places(made, PLACES[1], str(MODEL))
    return made / "grown"


def look(out: Path) -> None:
    """What costs milliseconds."""
    record = records.job_of(at(out))
    records.fingerprints(record)
    opening.check_shards(at(out), record)
    opening.held_in(at(out))
    status.metrics(status.look(out))
    list(rejects.rejected(out, []))


def look_closely(out: Path) -> None:
    look(out)
    to = out.parent / "exported"
    for how in (("x.jsonl", "openai-batch"), ("x", "hf"), ("x.parquet", "parquet")):
        to.mkdir(exist_ok=True)
        export.export(out, to / how[0], how[1], "", True, True)
    verify.verify(out)


def prepare_again(out: Path) -> None:
    tables = {"input": {"path": [str(out.parent / "night.jsonl")], "incremental": True}, "model": {"path": str(MODEL)}}
    prepare(load(None, {**tables, "output": {"path": str(out), "columns": ["topic"]}}))


def forge(out: Path, number: int, seed: int, *looks) -> int:
    """Forges a record of the folder so many times; gives how often it was taken."""
    some = random.Random(seed)
    grown = next(out.glob("_state/grown/*"))
    record, more = (json.loads(path.read_bytes()) for path in (out / "_job.json", grown))
    sums = next(out.glob("_state/checksums/*"))
    facts = json.loads(sums.read_bytes())
    taken = 0
    for _ in range(number):
        path, table = some.choice(
            [(out / "_job.json", record), (out / "_job.json", record), (grown, more), (sums, facts)]
        )
        whole = path.read_bytes()
        table = {key: value for key, value in table.items() if key != "digest"}
        table = forged(table, some)
        if path.name == "_job.json" and some.random() < 0.7:
            table = made_to_fit(table)
        seal(path, table)
        try:
            for each in looks:
                taken += ends_well(lambda each=each: each(out))
        except BaseException:
            print(f"{path.name}: {json.dumps(table)[:3000]}")
            raise
        path.write_bytes(whole)
    return taken


# --- what must hold


def test_300_forged_records_end_in_one_line_or_are_taken(out):
    assert 0 < forge(out, 300, 1, look) < 300


@pytest.mark.slow
def test_3000_forged_records_end_every_command_in_one_line_or_are_taken(out):
    assert 0 < forge(out, 3000, 2, look) < 3000
    assert 0 < forge(out, 300, 3, look_closely, prepare_again) < 600


def change(out: Path, **fields) -> None:
    path = out / "_job.json"
    table = json.loads(path.read_bytes()) | fields
    del table["digest"]
    seal(path, table)


@pytest.mark.parametrize("name", ["../../x", "", "X" * 32, "0" * 31, "0" * 32])
def test_a_fingerprint_that_is_not_that_of_its_results_is_refused(out, name):
    change(out, fingerprint=name)
    with pytest.raises(
        JobError, match=r"_job\.json: damaged, or not batchgen's \(its fingerprint is not that of its res"
    ):
        records.read_job(at(out))


def test_a_generation_that_adds_nothing_is_refused_and_not_read_for_ever(out):
    record = records.read_job(at(out))
    path = out / "_state" / "grown" / f"{record.fingerprint}.json"
    path.write_bytes(sealed(records.Plan([], [])))
    with within(20), pytest.raises(JobError, match=r"\.json: damaged \(it does not grow the plan\)"):
        records.read_job(at(out))


def test_a_journal_that_holds_what_no_engine_gives_is_set_aside_and_its_rows_are_answered(tmp_path, write_rows):
    spec = spec_of(write_rows(demo_records(3)), tmp_path / "out", logprobs=1)
    job, out = prepare(spec), tmp_path / "out"
    opening.open_job(job.out, job.record)
    good = [0, 0, [5], "length", [[[5, -1.0]]]]
    for place, odd in ((2, [-1]), (3, "x\x1b[2J"), (4, [[[2**40, 0.0]]])):
        forged_entry = [1, 0, *good[2:]]
        forged_entry[place] = odd
        payloads = [job.record.fingerprint.encode(), *map(msgspec.msgpack.encode, (good, forged_entry))]
        (out / layout.journal(0, f"{place}")).write_bytes(b"".join(map(journal._record, payloads)))
    assert run_here(instant_engine(), spec).counts.responses == 3
    assert len(list(out.glob("_state/quarantine/*"))) == 3
    assert verify.verify(out).problems == []
