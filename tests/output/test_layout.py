"""Names in an output folder: as other programs and older versions know them, and spelled in one room alone."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import batchgen
from batchgen.input.plan import Plan, Shard, plan_input
from batchgen.output import layout

ROOT = Path(batchgen.__file__).parent
SHARD = Shard(7, 40, 0, 0, 0, 0)
A_NAME = re.compile(
    r"(?<![a-z])_(state|rejects|segments|SUCCESS)\b|_job\.json|\.huggingface|\bpart-|\.journal|engine.*\.log"
)
# What may spell a name all the same: texts for people, and the input room, which stands below this one and passes over
# output folders.
ELSEWHERE = {
    "cli.py": {"_state", "_SUCCESS"},
    "show.py": {"_SUCCESS"},
    "input/files.py": {"_state", "_job.json", "part-"},
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (layout.part(SHARD), "part-00007-of-00040.parquet"),
        (layout.rejects(SHARD), "_rejects/part-00007-of-00040.jsonl"),
        (layout.segments(SHARD), "_segments/part-00007-of-00040.parquet"),
        (layout.checksums(SHARD), "_state/checksums/part-00007-of-00040.json"),
        (layout.checksums_of("part-00007-of-00040.parquet"), "_state/checksums/part-00007-of-00040.json"),
        (layout.part(Shard(100_000, 100_001, 0, 0, 0, 0)), "part-100000-of-100001.parquet"),  # up to format 4
        (layout.journal(7, "host.1.ab"), "_state/journal/part-00007.host.1.ab.journal"),
        (layout.claim(7), "_state/claims/part-00007"),
        (layout.claim(layout.DECIDING), "_state/claims/job"),
        (layout.growth("f"), "_state/grown/f.json"),
        (layout.log(1), "_state/engine.log"),
        (layout.log(2), "_state/engine-2.log"),
        (layout.log(2, user=7), "_state/engine.7-2.log"),
    ],
)
def test_names_are_those_that_folders_of_all_versions_have(name, expected):
    assert name == expected


@pytest.mark.parametrize(
    ("name", "shard"), [("part-00007", 7), ("part-100000", 100_000), ("job", None), ("x.tmp", None)]
)
def test_a_claim_tells_its_shard(name, shard):
    assert layout.claimed_shard(name) == shard


@pytest.mark.parametrize(("name", "whether"), [("part-00007.w.journal", True), ("part-000071.w.journal", False)])
def test_a_journal_tells_its_shard(name, whether):
    assert name.startswith(layout.journals(7)) == whether


def test_all_folders_are_made_at_the_start_or_when_they_are_needed():
    assert sorted(layout.FOLDERS) == sorted(layout.FROM_THE_START + layout.WHEN_NEEDED)


def strings(source: Path) -> Iterator[str]:
    """All that a file spells, but for its docstrings and what says something to people in more than a few words."""
    tree = ast.parse(source.read_text())
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


@pytest.mark.parametrize(
    "source", [path for path in ROOT.rglob("*.py") if path.parent.name != "output"], ids=lambda path: path.name
)
def test_no_other_room_spells_a_name(source):
    known = ELSEWHERE.get(str(source.relative_to(ROOT)), set())
    spelled = {found[0] for text in strings(source) for found in A_NAME.finditer(text)}
    assert spelled - known == set()


def test_the_names_of_more_than_99_999_shards_sort(tmp_path):
    """An empty row is the shortest there is."""
    (tmp_path / "in.jsonl").write_bytes(b"{}\n" * 100_001)
    plan = plan_input([str(tmp_path / "in.jsonl")], shard_rows=1)
    names = [layout.part(shard) for shard in plan.shards]
    assert names == sorted(names)
    assert (names[0], names[-1]) == ("part-000000-of-100001.parquet", "part-100000-of-100001.parquet")


def test_a_job_that_was_planned_with_five_digits_keeps_its_names(tmp_path):
    """Up to format 4 shards did not say how many digits they have."""
    (tmp_path / "in.jsonl").write_bytes(b"{}\n" * 100_001)
    shards = [[index, 100_001, index, 1, 0, 0, None] for index in (0, 100_000)]
    old = msgspec.convert({"files": [], "shards": shards}, Plan)
    again = plan_input([str(tmp_path / "in.jsonl")], shard_rows=1, known=old)
    for plan in (old, again):
        assert layout.part(plan.shards[0]) == "part-00000-of-100001.parquet"
        assert layout.part(plan.shards[-1]) == "part-100000-of-100001.parquet"
