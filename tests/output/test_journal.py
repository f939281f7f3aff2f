"""The journal: what was flushed is read back, and whatever happened to the file, nothing else is."""

import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.host import clock
from batchgen.output import journal, layout
from batchgen.output.journal import Entry, Journal
from batchgen.output.store import at
from batchgen.task.task import Reasoned

FINGERPRINT = "0123456789abcdef" * 2
ENTRIES = [
    Entry(7, 0, [5, 300, 65535, 3], "stop"),
    Entry(8, 0, [], "length"),
    Entry(8, 1, [1] * 20, "length"),
    Entry(9, 0, [5, 3], "repetition", reasoned=Reasoned(None, "月")),
    Entry(9, 1, [5, 3], "stop", reasoned=Reasoned("月", "")),
]


@pytest.fixture
def out(tmp_path):
    (tmp_path / "_state" / "journal").mkdir(parents=True)
    return tmp_path


def write(out, entries, worker="w", shard=0, fingerprint=FINGERPRINT):
    ours = Journal(at(out), shard, worker, fingerprint)
    for entry in entries:
        ours.append(entry)
    ours.flush()
    ours.close()
    return out / layout.journal(shard, worker)


def read(path, fingerprint=FINGERPRINT):
    return journal.read(at(path.parent), path.name, fingerprint)[:2]


def paths_of(out, shard):
    return [out / name for name in journal.names(at(out), shard)]


def ends(out, entries):
    """The size of a journal after its head, and after each of its entries."""
    sizes = [write(out, entries[:count], f"size{count}").stat().st_size for count in range(1, len(entries) + 1)]
    return [8 + len(FINGERPRINT), *sizes]


def test_entries_come_back_as_they_were_written(out):
    assert read(write(out, ENTRIES)) == (ENTRIES, "")


def test_flushed_entries_are_there_for_another_process_at_once(out):
    path = out / layout.journal(0, "w")
    ours = Journal(at(out), 0, "w", FINGERPRINT)
    code = (
        "import sys; from batchgen.output.journal import *; from batchgen.output.store import at; "
        "print(read(at('/'), sys.argv[1], sys.argv[2])[:2])"
    )
    for count, entry in enumerate(ENTRIES, 1):
        ours.append(entry)
        ours.flush()
        seen = subprocess.run([sys.executable, "-c", code, path, FINGERPRINT], capture_output=True, text=True)
        assert seen.stdout == f"{(ENTRIES[:count], '')}\n"
    ours.close()


def test_a_journal_without_entries_makes_no_file(out):
    write(out, [])
    assert paths_of(out, 0) == []


def test_cut_at_every_byte_it_keeps_the_whole_entries_before_the_cut(out):
    content = write(out, ENTRIES).read_bytes()
    whole = ends(out, ENTRIES)
    cut = out / "cut"
    for size in range(len(content) + 1):
        cut.write_bytes(content[:size])
        entries, damage = read(cut)
        assert entries == ENTRIES[: max(0, sum(end <= size for end in whole) - 1)]
        assert bool(damage) == (size not in (0, *whole))


@pytest.mark.parametrize("tail", [1, 7, 8, 100])
def test_zeros_behind_the_last_entry_are_damage_and_the_entries_are_kept(out, tail):
    path = write(out, ENTRIES)
    path.write_bytes(path.read_bytes() + bytes(tail))
    entries, damage = read(path)
    assert entries == ENTRIES
    assert damage


def test_a_file_of_zeros_is_damage_and_holds_nothing(out):
    path = write(out, ENTRIES)
    path.write_bytes(bytes(path.stat().st_size))
    assert read(path) == ([], "damaged at byte 0; 0 whole entries kept")


def test_a_flipped_bit_anywhere_is_damage_and_the_entries_before_it_are_kept(out):
    path = write(out, ENTRIES)
    content = path.read_bytes()
    whole = ends(out, ENTRIES)
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        entries, damage = read(path)
        assert entries == ENTRIES[: max(0, sum(end <= bit // 8 for end in whole) - 1)], bit
        assert damage, bit


def test_the_journal_of_another_job_gives_nothing(out):
    assert read(write(out, ENTRIES, fingerprint="f" * 32)) == ([], "")


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 200))
def test_arbitrary_bytes_never_raise_and_never_hide_what_stands_before_them(tmp_path_factory, tail, keep):
    out = tmp_path_factory.getbasetemp()
    (out / "_state" / "journal").mkdir(parents=True, exist_ok=True)
    (out / layout.journal(0, "w")).unlink(missing_ok=True)
    path = write(out, ENTRIES)
    content = path.read_bytes()[:keep]
    path.write_bytes(content + tail)
    entries, _ = read(path)
    path.write_bytes(content)
    before, _ = read(path)
    assert entries[: len(before)] == before


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_payloads_that_are_no_entries_never_raise(tmp_path_factory, payloads):
    path = tmp_path_factory.getbasetemp() / "payloads"
    path.write_bytes(b"".join(map(journal._record, [FINGERPRINT.encode(), *payloads])))
    read(path)


def test_the_journals_of_all_workers_of_a_shard_are_found_and_no_others(out):
    written = [write(out, [entry], f"host.{number}.ab") for number, entry in enumerate(ENTRIES)]
    write(out, ENTRIES, shard=10)
    write(out, ENTRIES, shard=100_000)
    assert paths_of(out, 0) == written
    assert [read(path)[0] for path in paths_of(out, 0)] == [[entry] for entry in ENTRIES]


def test_removing_the_journals_of_a_shard_leaves_those_of_others(out):
    for shard in (1, 10):
        for worker in ("a", "b"):
            write(out, ENTRIES, worker, shard)
    journal.remove(at(out), 1)
    assert (len(paths_of(out, 1)), len(paths_of(out, 10))) == (0, 2)


def test_what_was_flushed_is_synced_within_the_promised_second(out, monkeypatch):
    now, synced = [0.0], []
    monkeypatch.setattr(clock, "monotonic", lambda: now[0])
    ours = Journal(at(out), 0, "w", FINGERPRINT)
    ours.append(ENTRIES[0])
    ours.flush()
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(now[0]))
    for tick in range(20):
        now[0] = tick / 10
        ours.keep()
    ours.close()
    assert synced
    assert synced[0] <= 1


def test_earlier_journals_are_resumed_and_damaged_ones_set_aside_with_all_they_hold(store):
    store.write(layout.journal(0, "other"), b"")
    for worker, entries in (("one", ENTRIES[:1]), ("two", ENTRIES[1:])):
        earlier = Journal(store, 0, worker, FINGERPRINT)
        for entry in entries:
            earlier.append(entry)
        earlier.flush()
        earlier.keep(at_once=True)
        earlier.close()
    [_, _, damaged] = journal.names(store, 0)
    store.write(damaged, store.read(damaged)[:-1])
    ours = Journal(store, 0, "w", FINGERPRINT)
    kept, [warning] = ours.resume()
    ours.close()
    [_, _, again] = journal.names(store, 0)
    assert kept == ENTRIES[:-1]
    assert warning.startswith(f"{store.where(damaged)}: cut off at byte ")
    assert f"; {len(ENTRIES) - 2} whole entries kept; moved to " in warning
    assert again.startswith(layout.journal(0, "w"))
    assert journal.read(store, again, FINGERPRINT)[:2] == (ENTRIES[1:-1], "")
