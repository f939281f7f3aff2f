"""What every store promises, and what only a folder can meet with: a failing disk, links, others that write beside."""

import errno
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import until

from batchgen.errors import JobError, Stopped
from batchgen.host import safeopen
from batchgen.output import layout
from batchgen.output import record as records
from batchgen.output.bucket import BucketStore
from batchgen.output.store import at

NAME = layout.claim(7)
LATE = f"{layout.REJECTS}/part-00000-of-00001.jsonl"  # in a folder that is made when it is needed
NAMES = pytest.mark.parametrize("name", [NAME, "x", LATE])


def at_once(work: Callable[[int], object], times: int = 8) -> list[object]:
    """What it gives, on threads that begin together."""
    given, gate = [], threading.Barrier(times)

    def run(number: int) -> None:
        gate.wait()
        given.append(work(number))

    threads = [threading.Thread(target=run, args=[number]) for number in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return given


# --- reading and writing


@NAMES
def test_what_is_written_is_read_back(store, name):
    store.write(name, b"one")
    assert (store.read(name), store.exists(name)) == (b"one", True)


@NAMES
def test_a_write_replaces_what_is_there(store, name):
    store.write(name, b"longer than two")
    store.write(name, b"two")
    assert store.read(name) == b"two"


@pytest.mark.parametrize("look", ["read", "stat", "open"])
def test_what_is_not_there_is_not_found(store, look):
    assert not store.exists(NAME)
    with pytest.raises(FileNotFoundError):
        if look == "open":
            with store.open(NAME):
                pass
        else:
            getattr(store, look)(NAME)


def test_what_is_longer_than_it_can_be_is_not_read(store):
    store.write(NAME, bytes(safeopen.SMALL + 1))
    with pytest.raises(JobError, match="cannot have more than"):
        store.read(NAME)
    assert len(store.read(NAME, most=safeopen.RECORD)) == safeopen.SMALL + 1


def test_what_is_opened_can_be_read_from_any_place(store):
    store.write("x", b"0123456789")
    with store.open("x") as stream:
        stream.seek(-3, os.SEEK_END)
        assert stream.read() == b"789"
        stream.seek(1)
        assert stream.read(2) == b"12"


@pytest.mark.parametrize("fresh", [False, True])
def test_another_content_is_another_version_even_of_one_size(store, fresh):
    store.write("x", b"1")
    first = store.stat("x", fresh)
    assert (first.size, store.stat("x", fresh)) == (1, first)
    store.write("x", b"2")
    assert store.stat("x", fresh).version != first.version


def test_times_are_by_the_clock_that_the_store_tells(store):
    store.write(NAME, b"1")
    before = store.stat(NAME).modified
    time.sleep(0.05)
    assert -1 < store.now() - before < 60  # a bucket's times may be whole seconds


# --- exclusively


def test_only_what_is_not_there_can_be_created(store):
    store.create("x", b"one")
    with pytest.raises(FileExistsError):
        store.create("x", b"two")
    assert store.read("x") == b"one"


def test_of_many_that_create_at_once_one_succeeds(store):
    def create(number: int) -> bool:
        try:
            store.create("x", b"%d" % number)
        except FileExistsError:
            return False
        return True

    assert Counter(at_once(create)) == {True: 1, False: 7}


def test_a_swap_from_nothing_puts_it_there(store):
    assert store.swap(NAME, None, b"me")
    assert store.read(NAME) == b"me"


def test_a_swap_from_nothing_fails_where_something_is(store):
    store.write(NAME, b"")
    assert not store.swap(NAME, None, b"me")
    assert store.read(NAME) == b""


def test_a_swap_puts_the_new_in_the_place_of_the_old(store):
    store.write(NAME, b"dead")
    assert store.swap(NAME, b"dead", b"me")
    assert store.read(NAME) == b"me"


@pytest.mark.parametrize("there", [b"deaf", b"de", b"dead and more", b""])
def test_a_swap_of_what_is_not_there_any_more_changes_nothing(store, there):
    store.write(NAME, there)
    assert not store.swap(NAME, b"dead", b"me")
    assert store.read(NAME) == there


def test_a_swap_of_what_is_gone_puts_nothing_there(store):
    assert not store.swap(NAME, b"dead", b"me")
    assert not store.exists(NAME)


def test_a_swap_for_nothing_removes_it(store):
    store.write(NAME, b"me")
    assert not store.swap(NAME, b"you", None)
    assert store.swap(NAME, b"me", None)
    assert not store.exists(NAME)


@pytest.mark.parametrize("there", [None, b"dead"])
def test_of_many_that_swap_at_once_one_succeeds(store, there):
    if there:
        store.write(NAME, there)
    won = at_once(lambda number: number if store.swap(NAME, there, b"%d" % number) else None)
    [winner] = [number for number in won if number is not None]
    assert store.read(NAME) == b"%d" % winner


# --- bit by bit, and in place


def test_what_is_appended_and_kept_at_once_is_there_after_a_head(store):
    appender = store.appender(layout.journal(0, "w"), b"head", 60)
    for number in range(3):
        appender.append(b"%d" % number)
        appender.keep(at_once=True)
        assert appended(store, layout.journals(0)) == b"012"[: number + 1]
    appender.close()


def appended(store, begin: str) -> bytes:
    """What appenders whose names begin so have behind their heads."""
    found = [store.read(f"{layout.JOURNALS}/{name}") for name in store.listed(layout.JOURNALS, begin)]
    assert all(content.startswith(b"head") for content in found)
    return b"".join(content.removeprefix(b"head") for content in found)


def test_what_is_appended_is_kept_in_time_without_anybody_waiting(store):
    appender = store.appender(layout.journal(0, "w"), b"head", 0.2)
    appender.append(b"1")
    appender.keep()
    until(lambda: appended(store, layout.journals(0)) == b"1", timeout=10)
    appender.close()


def test_lines_that_many_add_at_once_are_all_there_and_whole(store):
    lines = [b'{"run": %d, "text": "%s"}' % (number, b"x" * 500) for number in range(12)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda line: store.add_line(layout.RUN_LOG, line), lines))
    content = store.read(layout.RUN_LOG)
    assert content.endswith(b"\n")
    assert sorted(content.splitlines()) == sorted(lines)


def test_a_torn_line_does_not_spoil_the_next_one(folder):
    folder.write(layout.RUN_LOG, b'{"run": 1}\n{"ru')
    folder.add_line(layout.RUN_LOG, b'{"run": 2}')
    assert folder.read(layout.RUN_LOG) == b'{"run": 1}\n{"ru\n{"run": 2}\n'


def test_what_is_overwritten_is_made_if_it_is_not_there_and_keeps_its_length(store):
    for content in (b"beat 1", b"beat 2"):
        store.overwrite("_state/workers/w", content)
        assert store.read("_state/workers/w") == content


# --- folders


def test_names_are_those_of_one_folder_in_order(store):
    for name in (layout.claim(10), layout.claim(2), layout.claim("job"), layout.journal(0, "w")):
        store.write(name, b"1")
    assert store.names(layout.CLAIMS) == ["job", "part-00002", "part-00010"]


def test_in_a_folder_that_is_not_there_lies_nothing_where_that_may_be(store):
    assert store.names(layout.GROWN, missing_ok=True) == []
    assert store.entries(layout.GROWN) == []


def test_entries_are_small_objects_with_their_times(store):
    for name, content in (("a", b"1"), ("b", b""), ("c", bytes(safeopen.SMALL + 1))):
        store.write(f"{layout.CLAIMS}/{name}", content)
    assert [entry[:2] for entry in store.entries(layout.CLAIMS)] == [("a", b"1"), ("b", b"")]
    assert store.entries(layout.CLAIMS)[0].modified == store.stat(f"{layout.CLAIMS}/a").modified


def test_a_folder_changes_when_something_is_written_to_it(store):
    store.write(f"{layout.CHECKSUMS}/a", b"1")
    before = store.changed(layout.CHECKSUMS)
    time.sleep(1.1 if isinstance(store, BucketStore) else 0.02)  # of which some tell whole seconds
    store.write(f"{layout.CHECKSUMS}/b", b"1")
    assert store.changed(layout.CHECKSUMS) > before


def test_what_is_moved_is_under_its_new_name_alone(store):
    store.write("x", b"1")
    store.move("x", f"{layout.QUARANTINE}/x.1")
    assert (store.exists("x"), store.read(f"{layout.QUARANTINE}/x.1")) == (False, b"1")


def test_what_is_gone_is_not_moved(store):
    with pytest.raises(FileNotFoundError):
        store.move("x", f"{layout.QUARANTINE}/x.1")


@pytest.mark.parametrize("durable", [False, True])
def test_what_is_removed_is_gone_and_what_was_gone_stays_so(store, durable):
    store.write(NAME, b"1")
    store.remove(NAME, "x", durable=durable)
    assert not store.exists(NAME)


def test_folders_are_emptied_and_others_are_left(store):
    for name in (LATE, layout.claim(1), layout.journal(1, "w")):
        store.write(name, b"1")
    store.empty(layout.REJECTS, layout.CLAIMS, layout.GROWN)
    assert [store.exists(name) for name in (LATE, layout.claim(1), layout.journal(1, "w"))] == [False, False, True]


def test_nothing_that_is_whole_counts_as_unfinished(store):
    names = ("x", NAME, layout.log(1))
    for name in names:
        store.write(name, b"1")
    store.remove_unfinished()
    assert all(map(store.exists, names))


# --- a folder: what the disk refuses stops the run

CHANGES = {
    "write": lambda folder: folder.write("x", b"1"),
    "create": lambda folder: folder.create("x", b"1"),
    "swap": lambda folder: folder.swap(NAME, None, b"1"),
    "overwrite": lambda folder: folder.overwrite(NAME, b"1"),
    "appender": lambda folder: folder.appender(NAME, b"1", 1),
    "make": lambda folder: folder.write(LATE, b"1"),
    "prepare": lambda folder: folder.prepare(shared=False),
}
LOOKS = {
    "read": lambda folder: folder.read("there"),
    "open": lambda folder: folder.open("there").__enter__(),
    "fresh": lambda folder: folder.stat("there", fresh=True),
    "take over": lambda folder: folder.swap("there", b"1", b"2"),
    "names": lambda folder: folder.names(),
    "entries": lambda folder: folder.entries(layout.CLAIMS),
    "empty": lambda folder: folder.empty(layout.CLAIMS),
    "exists": lambda folder: folder.exists("there"),
    "stat": lambda folder: folder.stat("there"),
    "changed": lambda folder: folder.changed(layout.CLAIMS),
    "remove": lambda folder: folder.remove("there"),
    "move": lambda folder: folder.move("there", f"{layout.QUARANTINE}/x"),
}


def failing(*_, **__) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("work", [*CHANGES, *LOOKS])
def test_an_error_of_the_disk_stops_the_run_and_names_the_place(folder, monkeypatch, work):
    folder.write("there", b"1")
    folder.write(layout.claim(1), b"1")
    before = folder.location
    with monkeypatch.context() as broken:
        for call in ("open", "stat", "listdir", "unlink", "rename", "mkdir"):
            broken.setattr(os, call, failing)
        with pytest.raises(Stopped, match=f"^{before}.*: Input/output error; .* run the same command again$"):
            (CHANGES | LOOKS)[work](folder)


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("work", ["swap", "write", "create"])
def test_what_cannot_be_written_leaves_nothing(folder, monkeypatch, work, call):
    with monkeypatch.context() as full:
        full.setattr(os, call, failing)
        if (work, call) != ("write", "write") and (work, call) != ("create", "write"):  # those write by a stream
            with pytest.raises(Stopped):
                CHANGES[work](folder)
    assert not folder.exists("x")
    assert not folder.exists(NAME)
    assert [name for name in folder.names(layout.STATE) if name.endswith(".tmp")] == []


@pytest.mark.parametrize("work", [work for work in CHANGES if work != "prepare"])
def test_a_folder_that_has_vanished_is_not_made_again(folder, tmp_path, work):
    """As a share that is not mounted any more: what were written then would lie on the disk beneath it."""
    (tmp_path / "out").rename(tmp_path / "away")
    with pytest.raises(Stopped, match="No such file or directory"):
        CHANGES[work](folder)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("look", [lambda folder: folder.names(), lambda folder: folder.names(layout.JOURNALS)])
def test_in_a_folder_that_has_vanished_is_not_nothing(folder, tmp_path, look):
    (tmp_path / "out").rename(tmp_path / "away")
    with pytest.raises(Stopped, match="No such file or directory"):
        look(folder)


def test_a_file_in_the_place_of_the_folder_or_above_it_is_named(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(JobError, match=f"^{tmp_path}/file: is a file; name a folder for the output$"):
            at(path).names()


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOTSUP, errno.EIO], ids=errno.errorcode.get)
def test_a_file_system_that_cannot_sync_folders_is_taken_as_it_is(folder, monkeypatch, error):
    real = os.fsync

    def fsync(file):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(error, os.strerror(error))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    if error == errno.EIO:  # which is no matter of what the file system can do
        with pytest.raises(Stopped, match="Input/output error"):
            folder.write("x", b"1")
    else:
        folder.write("x", b"1")
        assert folder.read("x") == b"1"


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENOSYS], ids=errno.errorcode.get)
def test_a_file_system_without_hard_links_creates_all_the_same(folder, monkeypatch, error):
    def link(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "link", link)
    folder.create("x", b"1")
    with pytest.raises(FileExistsError):
        folder.create("x", b"2")
    assert folder.read("x") == b"1"


def test_a_link_whose_answer_got_lost_was_made(folder, monkeypatch):
    """NFS: the client asks again, and is told that the name is there."""
    real = os.link

    def link(*names):
        real(*names)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    monkeypatch.setattr(os, "link", link)
    folder.create("x", b"1")
    assert (folder.read("x"), [name for name in folder.names(layout.STATE) if "tmp" in name]) == (b"1", [])


def test_two_that_write_one_file_under_one_process_id_do_not_meet(folder, monkeypatch):
    """As in containers of one host: a file's name while it is written is nobody else's."""
    seen = []
    real = Path.replace

    def replace(self, target):
        seen.append(self.name)
        if len(seen) == 1:  # the other comes in between
            folder.write("x", b"2")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    folder.write("x", b"1")
    assert len(set(seen)) == 2
    assert folder.read("x") == b"1"


def test_what_a_killed_writer_left_half_written_is_removed(folder, tmp_path):
    (tmp_path / "out" / "_state" / "x.0123456789ab.tmp").touch()
    folder.remove_unfinished()
    assert not [name for name in folder.names(layout.STATE) if name.endswith(".tmp")]


# --- a folder: what others have put there

REFUSED = {
    "read": lambda folder, name: folder.read(name),
    "open": lambda folder, name: folder.open(name).__enter__(),
    "stat": lambda folder, name: folder.stat(name),
    "fresh": lambda folder, name: folder.stat(name, fresh=True),
    "take over": lambda folder, name: folder.swap(name, b"precious", b"2"),
    "overwrite": lambda folder, name: folder.overwrite(name, b"2"),
}


@pytest.mark.parametrize("work", REFUSED)
def test_a_link_in_the_place_of_a_file_is_not_followed(folder, tmp_path, work):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out" / NAME).symlink_to(tmp_path / "precious")
    with pytest.raises(JobError, match="is a link, but must be a regular file"):
        REFUSED[work](folder, NAME)
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("work", ["write", "create", "swap", "appender"])
def test_what_is_new_does_not_go_where_a_link_leads(folder, tmp_path, work):
    (tmp_path / "precious").write_text("precious")
    name = NAME if work in ("swap", "appender") else "x"
    (tmp_path / "out" / name).symlink_to(tmp_path / "precious")
    if work == "write":  # it takes the place of the link
        folder.write(name, b"1")
        assert not (tmp_path / "out" / name).is_symlink()
    elif work == "swap":
        assert not folder.swap(name, None, b"1")
    else:
        with pytest.raises(FileExistsError if work == "create" else Stopped):
            CHANGES[work](folder)
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize(
    "work",
    [
        lambda folder: folder.write(LATE, b"1"),
        lambda folder: folder.read(LATE),
        lambda folder: folder.open(LATE).__enter__(),
        lambda folder: folder.remove(LATE),
        lambda folder: folder.move("x", LATE),
        lambda folder: folder.check_links(),
        lambda folder: folder.check(shared=True),
    ],
)
def test_a_link_in_the_place_of_a_folder_is_not_followed(folder, tmp_path, work):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / LATE.rpartition("/")[2]).write_text("precious")
    (tmp_path / "out" / layout.REJECTS).symlink_to(tmp_path / "far")
    folder.write("x", b"1")
    with pytest.raises(JobError, match="_rejects: is a link, and nothing outside the output folder is touched"):
        work(folder)
    assert [path.read_text() for path in (tmp_path / "far").iterdir()] == ["precious"]


def test_of_a_link_in_the_place_of_a_folder_that_is_emptied_only_the_link_goes(folder, tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "kept").touch()
    (tmp_path / "out" / layout.REJECTS).symlink_to(tmp_path / "far")
    folder.empty(layout.REJECTS)
    assert not (tmp_path / "out" / layout.REJECTS).is_symlink()
    assert (tmp_path / "far" / "kept").exists()


def test_entries_pass_over_what_is_no_file(folder, tmp_path):
    claims = tmp_path / "out" / layout.CLAIMS
    (claims / "link").symlink_to("/etc/hostname")
    os.mkfifo(claims / "pipe")
    (claims / "folder").mkdir()
    folder.write(layout.claim(1), b"w")
    assert [entry.name for entry in folder.entries(layout.CLAIMS)] == ["part-00001"]


def test_a_job_that_is_made_while_the_folder_is_looked_at_is_not_something_else(tmp_path, monkeypatch):
    real = os.listdir

    def listdir(path):
        (tmp_path / "_job.json").write_bytes(b"{}")
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(JobError, match="damaged"):  # it was read, not taken for a stranger's file
        records.read_job(at(tmp_path))
