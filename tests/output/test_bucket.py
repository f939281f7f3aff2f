"""An output in a bucket: answers that get lost, services that refuse, several that commit at once."""

import os
import random
import shutil
import threading
from unittest import mock

import boto3
import pytest
from buckets import Proxy, environment, listing_server
from conftest import MODEL

from batchgen.errors import JobError, Stopped
from batchgen.host.bucket import Bucket
from batchgen.input.plan import Plan, Shard
from batchgen.output import layout, record
from batchgen.output.bucket import LONGEST_PART, _note, _noted
from batchgen.output.presence import Presence
from batchgen.output.shard import finished
from batchgen.output.store import at

PART, REJECTS, NOTE = "part-00000-of-00001.parquet", "_rejects/part-00000-of-00001.jsonl", "_state/checksums/x.json"


@pytest.fixture
def through(s3, bucket):
    """Gives the same place by way of a proxy with a fault, and the proxy."""
    proxies = []

    def open_by(fault, stale=8.0):
        proxy = Proxy(os.environ["AWS_ENDPOINT_URL"], fault)
        proxies.append(proxy.__enter__())
        with mock.patch.dict(os.environ, environment(proxy.endpoint)):
            return at(bucket.location, stale), proxy

    yield open_by
    for proxy in proxies:
        proxy.__exit__()


class Once:
    """A fault of the first request of a method to a path that ends so."""

    def __init__(self, fault: str, method: str, ending: str, times: int = 1):
        self._fault, self._method, self._ending, self.left = fault, method, ending, times

    def __call__(self, method: str, path: str) -> str:
        if self.left and method == self._method and path.endswith(self._ending):
            self.left -= 1
            return self._fault
        return ""


# --- logs


def test_a_log_is_kept_in_the_bucket_and_goes_with_the_store(bucket):
    store = at(bucket.location, 8.0)
    log = store.log("_state/engine.log")
    log.write_bytes(b"CUDA error")
    kept = store.keep_log(log)
    assert bucket.read(kept.removeprefix(f"{bucket.location}/")) == b"CUDA error"
    del store
    assert not log.parent.exists()


def test_a_log_that_cannot_be_uploaded_stays_where_it_is(through):
    store, _ = through(Once("503", "PUT", "/engine.log", times=1000), stale=4.0)
    log = store.log("_state/engine.log")
    log.write_bytes(b"CUDA error")
    assert store.keep_log(log) == str(log)
    del store
    assert log.read_bytes() == b"CUDA error"
    shutil.rmtree(log.parent)


def test_what_a_log_got_after_its_upload_stays(bucket):
    store = at(bucket.location, 8.0)
    log = store.log("_state/engine.log")
    log.write_bytes(b"CUDA error")
    store.keep_log(log)
    log.write_bytes(b"CUDA error, and more")
    del store
    assert log.read_bytes() == b"CUDA error, and more"
    shutil.rmtree(log.parent)


def test_a_log_whose_second_upload_works_does_not_stay(through):
    store, _ = through(once := Once("503", "PUT", "/engine.log", times=1000), stale=4.0)
    log = store.log("_state/engine.log")
    log.write_bytes(b"CUDA error")
    assert store.keep_log(log) == str(log)
    once.left = 0
    store.keep_log(log)
    del store
    assert not log.parent.exists()


# --- answers that get lost


@pytest.mark.parametrize("fault", ["lost", "late", "gone", "503"])
def test_what_was_created_counts_as_created_though_its_answer_got_lost(through, bucket, fault):
    once = Once(fault, "PUT", "/x")
    store, _ = through(once)
    store.create("x", b"me")
    assert (once.left, bucket.read("x")) == (0, b"me")


@pytest.mark.parametrize("old", [None, b"dead"])
@pytest.mark.parametrize("fault", ["lost", "late", "gone", "503"])
def test_a_swap_is_won_though_its_answer_got_lost(through, bucket, fault, old):
    if old:
        bucket.write("x", old)
    once = Once(fault, "PUT", "/x")
    store, _ = through(once)
    assert store.swap("x", old, b"me")
    assert (once.left, bucket.read("x")) == (0, b"me")


def test_a_swap_that_somebody_else_won_is_lost_though_its_answer_got_lost(through, bucket):
    def fault(method: str, path: str) -> str:
        if method == "PUT" and path.endswith("/x") and not bucket.exists("x"):
            bucket.write("x", b"you")
            return "lost"
        return ""

    store, _ = through(fault)
    assert not store.swap("x", None, b"me")
    assert bucket.read("x") == b"you"


def test_a_service_that_fails_now_and_then_loses_nothing(through, bucket):
    chance = random.Random(1)
    store, proxy = through(lambda *_: chance.choice([*[""] * 9, "503", "gone", "lost"]), stale=60)
    for number in range(6):
        store.write(f"_state/claims/{number}", b"%d" % number)
        assert store.swap(f"_state/claims/{number}", b"%d" % number, b"me")
    assert [entry.content for entry in store.entries(layout.CLAIMS)] == [b"me"] * 6
    assert sum(proxy.asked.values()) > 30


def test_a_service_that_is_gone_stops_the_run_in_less_than_it_takes_to_count_as_dead(through):
    gone = []
    store, _ = through(lambda *_: "gone" if gone else "", stale=4.0)
    gone.append(True)
    with pytest.raises(Stopped, match=r"^s3://talks/.*/x: .*; fix that and run the same command again$"):
        store.write("x", b"1")


# --- what is wrong from the start


def test_a_bucket_that_is_not_there_is_one_line(s3):
    with pytest.raises(JobError, match=r"^s3://nowhere/out: there is no such bucket; `batchgen manual buckets` says"):
        at("s3://nowhere/out")


def test_keys_that_open_nothing_are_one_line_at_the_start_and_resumable_later(through):
    with pytest.raises(
        JobError, match=r"^s3://talks/.*: access is denied \(403 Forbidden\); `batchgen manual buckets`"
    ):
        through(lambda *_: "403")
    denied = []
    store, _ = through(lambda *_: "403" if denied else "")
    denied.append(True)
    with pytest.raises(
        Stopped, match=r"/x: access is denied \(403 Forbidden\); fix that and run the same command again"
    ):
        store.write("x", b"1")


@pytest.mark.parametrize("command", ["run", "plan", "status", "verify", "rejects"])
def test_a_command_whose_bucket_is_not_there_says_so_in_one_line(s3, batchgen, write_rows, command):
    where = ["s3://nowhere/out"]
    if command in ("run", "plan"):
        where = [write_rows([{"text": "x"}]), "--model", MODEL, "--output", *where]
    result = batchgen(command, *where)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.stderr
    assert "s3://nowhere/out: there is no such bucket" in result.stderr


def test_no_key_shows_up_in_what_is_said(s3):
    with mock.patch.dict(os.environ, environment("http://127.0.0.1:9")), pytest.raises(Stopped) as stopped:
        at(s3, stale=4.0)
    assert "of-nobody" not in str(stopped.value)


def test_http_is_for_this_machine_alone(s3):
    with (
        mock.patch.dict(os.environ, environment("http://minio.example:9000")),
        pytest.raises(JobError, match="http:// works for this machine only; use https://, or set AWS_ALLOW_HTTP=true"),
    ):
        at(s3)


# --- several that commit at once


def publish(store, name: str) -> bool:
    who = name.encode()
    return store.publish(PART, who * 1000, {REJECTS: b"of " + who, "_segments/x": b""}, (NOTE, b"sums of " + who))


def what_is_there(bucket) -> list[object]:
    return [bucket.read(PART)[:1], bucket.read(REJECTS), bucket.noted(NOTE)]


def test_the_later_of_two_that_commit_takes_its_own_bytes_back(bucket):
    assert publish(bucket, "a")
    assert not publish(bucket, "b")
    assert what_is_there(bucket) == [b"a", b"of a", [b"sums of a"]]


def test_whoever_commits_the_same_bytes_has_committed_them(bucket):
    assert publish(bucket, "a")
    assert publish(bucket, "a")
    assert what_is_there(bucket) == [b"a", b"of a", [b"sums of a"]]


@pytest.mark.parametrize("ending", [REJECTS, PART, ".json/"])
def test_one_that_comes_in_between_leaves_one_whole_commit(through, bucket, monkeypatch, ending):
    """The other commits just before one of the requests of the first."""
    monkeypatch.setattr("batchgen.output.bucket.GRACE", 0.1)
    other = []

    def fault(method: str, path: str) -> str:
        if method == "PUT" and (path.endswith(ending) or (ending in path and ending.endswith("/"))) and not other:
            other.append(True)
            publish(bucket, "b")
        return ""

    store, _ = through(fault)
    assert not publish(store, "a")
    assert what_is_there(bucket) == [b"b", b"of b", [b"sums of b"]]


def test_of_many_that_commit_at_once_one_does_and_all_that_is_there_is_its_own(bucket):
    won = []

    def commit(name: str) -> None:
        won.append((publish(bucket, name), name))

    threads = [threading.Thread(target=commit, args=[name]) for name in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = [name for has_won, name in won if has_won]
    assert what_is_there(bucket) == [winner.encode(), b"of " + winner.encode(), [b"sums of " + winner.encode()]]


# --- listing


def test_a_note_is_in_a_name_of_parts_that_every_service_takes():
    for content in (b"", b"x", random.Random(1).randbytes(600)):
        name = _note(NOTE, content)
        assert name.startswith(f"{NOTE}/" if content else NOTE)
        assert max(map(len, name.split("/"))) <= LONGEST_PART
        assert _noted(name.removeprefix(f"{NOTE}/")) == content


def test_the_object_that_a_console_makes_for_a_folder_is_nothing(bucket):

    _, _, name, place = bucket.location.split("/", 3)
    for folder in ("", "_state/claims/"):
        boto3.client("s3").put_object(Bucket=name, Key=f"{place}/{folder}", Body=b"")
    assert bucket.names() == ["_state"]
    assert bucket.names(layout.CLAIMS) == bucket.entries(layout.CLAIMS) == []
    assert record.read_job(bucket) is None


def test_a_listing_in_pieces_is_the_whole_listing(bucket):
    names = [f"part-{number:05}-of-00040.parquet" for number in range(40)]
    Bucket(bucket.location).side_by_side(lambda name: bucket.write(name, b""), [*names, "part", "paru", "_state/x"])
    for cuts in ([], names[10:11], names[7::7], ["part-", "part-z"]):
        assert bucket.listed("", "part-", cuts) == names
    assert bucket.listed("", "part-00007") == names[7:8]
    assert bucket.sizes("", "part-0000", names[::3]) == dict.fromkeys(names[:10], 0)


def test_many_names_are_listed_and_their_notes_read_in_one_request_for_990_of_them(tmp_path):
    """A service answers with 1,000 at most. Some of the 2,500 shards have notes of two workers; one name is no note."""
    shards = [Shard(index, 2500, index, 1, 0, index) for index in range(2500)]
    names = [layout.checksums(shard) for shard in shards]
    notes = {name: [b"%d" % at] + [b"another"] * (at % 990 == 989) for at, name in enumerate(names)}
    keys = [f"5 out/{layout.part(shard)}" for shard in shards]
    keys += [f"0 out/{_note(name, note)}" for name, each in notes.items() for note in each]
    keys += [f"0 out/{names[1000]}/x", "0 out/_state/clock", "5 out/partition"]
    with listing_server(keys, tmp_path) as endpoint, Proxy(endpoint, lambda *_: "") as proxy:
        with mock.patch.dict(os.environ, environment(proxy.endpoint)):
            out = at("s3://talks/out")
        asked = proxy.asked["GET"]
        assert finished(out, Plan([], shards)) == shards
        assert proxy.asked["GET"] - asked == 3
        assert {name: sorted(each) for name, each in out.notes(names).items()} == notes
        assert proxy.asked["GET"] - asked == 6


def test_a_long_file_is_uploaded_in_parts_of_which_there_are_never_too_many(bucket, tmp_path, monkeypatch):
    there, file = Bucket(bucket.location), tmp_path / "long"
    file.write_bytes(random.Random(1).randbytes(20 << 20))
    there.upload("long", file)
    assert there.get("long")[0] == file.read_bytes()
    assert there.head("long").version["e_tag"].endswith('-3"')  # parts of 8 MiB
    monkeypatch.setattr("batchgen.host.bucket._MOST_PARTS", 2)
    there.upload("long", file)
    assert there.head("long").version["e_tag"].endswith('-2"')


# --- journals


def test_a_segment_that_cannot_be_uploaded_stops_whoever_appends_next(through):
    gone = []
    store, _ = through(lambda *_: "gone" if gone else "", stale=4.0)
    appender = store.appender(layout.journal(0, "w"), b"head", 0.1)
    gone.append(True)
    appender.append(b"1")
    with pytest.raises(Stopped, match="fix that and run the same command again"):
        for _ in range(200):
            threading.Event().wait(0.1)
            appender.keep()
    appender.close()


# --- after the last shard


def test_what_killed_workers_have_left_is_removed_when_nobody_is_at_work_any_more(store):
    left = (layout.claim(3), layout.journal(3, "w"))
    for name in left:
        store.write(name, b"gone")
    store.write("part-00003-of-00004.parquet", b"")
    with Presence(store, stale=60) as ours:
        ours.tidy()
    assert not any(map(store.exists, left))
    assert store.exists("part-00003-of-00004.parquet")
