"""Real servers of object stores: SeaweedFS, which keeps what it has on a disk, and Azurite. And many kills."""

import os
import random
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from unittest import mock

import boto3
import buckets
import msgspec
import processes
import pytest
from botocore.exceptions import BotoCoreError
from conftest import MODEL
from processes import until
from test_kills import mixed_rows

from batchgen.commands import status
from batchgen.job.spec import load
from batchgen.output import layout, record
from batchgen.output.bucket import _note
from batchgen.output.claims import Claims
from batchgen.output.counts import Counts
from batchgen.output.sealed import sealed
from batchgen.output.shard import Checksums
from batchgen.output.store import at
from batchgen.runner.prepare import prepare

pytestmark = pytest.mark.slow
TESTS = Path(__file__).parent.parent
CONTRACT = [TESTS / "output" / "test_store.py", TESTS / "output" / "test_bucket.py"]


class Weed:
    """SeaweedFS with its S3 gateway."""

    def __init__(self, folder: Path):
        self._folder, self._process = folder, None
        self._ports = free_ports(4)
        self.endpoint = f"http://127.0.0.1:{self._ports[0]}"
        keys = '[{"accessKey": "nobody", "secretKey": "of-nobody"}]'
        actions = '["Admin", "Read", "Write", "List"]'
        identity = f'{{"name": "n", "credentials": {keys}, "actions": {actions}}}'
        (folder / "s3.json").write_text(f'{{"identities": [{identity}]}}')

    def start(self) -> None:
        s3, master, volume, filer = self._ports
        ports = [f"-s3.port={s3}", f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
        command = [Path(sys.executable).with_name("weed"), "server", f"-dir={self._folder}", "-ip=127.0.0.1"]
        command += ["-ip.bind=127.0.0.1", "-s3", f"-s3.config={self._folder}/s3.json", *ports]
        command += ["-master.volumeSizeLimitMB=64", "-volume.max=50", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: answers(self.endpoint))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def free_ports(number: int) -> list[int]:
    """weed takes the port that is 10,000 above each, too: below those that the system gives to anybody."""
    begin = random.SystemRandom().randrange(11_000, 22_000, 10)
    return list(range(begin, begin + number))


def answers(endpoint: str) -> bool:
    try:
        urllib.request.urlopen(endpoint, timeout=2).close()
    except urllib.error.HTTPError as error:
        return error.code < 500
    except OSError:
        return False
    return True


@pytest.fixture
def weed(tmp_path):
    """A server, and a bucket there by the environment's keys."""
    (tmp_path / "weed").mkdir()
    server = Weed(tmp_path / "weed")
    server.start()
    try:
        with mock.patch.dict(os.environ, buckets.environment(server.endpoint)):
            client = boto3.client("s3")
            until(lambda: made(client, "talks"))
            yield server
    finally:
        server.kill()


@pytest.fixture
def azure(tmp_path):
    """Azurite with a container, and what leads there in the environment. It is a package of npm alone, which PyPI and
    so this project's own installation cannot bring; all else of these tests runs without it."""
    if not shutil.which("npm"):
        pytest.skip("Azurite needs npm")
    subprocess.run(["npm", "install", "--silent", "--prefix", tmp_path, "azurite"], check=True)
    [port] = free_ports(1)
    endpoint = f"http://127.0.0.1:{port}"
    command = [tmp_path / "node_modules/.bin/azurite-blob", "--blobPort", str(port), "--location", tmp_path / "azure"]
    with subprocess.Popen([*command, "--silent", "--skipApiVersionCheck", "--disableTelemetry"]) as server:
        try:
            until(lambda: answers(endpoint))
            buckets.make_container(endpoint, "talks")
            with mock.patch.dict(os.environ, buckets.azure(endpoint)):
                yield
        finally:
            server.kill()


def made(client, name: str) -> bool:
    try:
        client.create_bucket(Bucket=name)
    except (client.exceptions.ClientError, BotoCoreError):
        return False
    return True


def contract(*pytest_arguments: object, **variables: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "bucket", *pytest_arguments]
    done = subprocess.run(
        [str(part) for part in command], env=os.environ | variables, capture_output=True, text=True, cwd=TESTS.parent
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_seaweedfs_keeps_what_every_store_promises(weed):
    contract(*CONTRACT, BATCHGEN_TEST_BUCKET="s3://talks")


def test_azure_keeps_what_every_store_promises(azure):
    contract(CONTRACT[0], BATCHGEN_TEST_BUCKET="az://talks")


@pytest.mark.parametrize("there", [None, b"dead"])
def test_of_16_that_race_for_a_claim_one_gets_it_every_time(weed, there):
    out = at("s3://talks/race")
    for number in range(20):
        name = layout.claim(number)
        if there:
            out.write(name, there)
        gate, won = threading.Barrier(16), []

        def race(who: int, name: str = name, gate: threading.Barrier = gate, won: list[int] = won) -> None:
            gate.wait()
            if out.swap(name, there, b"%d" % who):
                won.append(who)

        threads = [threading.Thread(target=race, args=[who]) for who in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        [winner] = won
        assert out.read(name) == b"%d" % winner


def test_16_workers_share_what_dead_ones_held_without_a_shard_taken_twice(weed):
    out = at("s3://talks/dead")
    for number in range(32):
        out.write(layout.claim(number), b"gone.1.ab")
    workers = [Claims(at("s3://talks/dead"), stale=60) for _ in range(16)]
    taken: list[tuple[int, str]] = []

    def take(claims: Claims) -> None:
        for number in random.sample(range(32), 32):
            if claims.take(number):
                taken.append((number, claims.worker))

    threads = [threading.Thread(target=take, args=[claims]) for claims in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(number for number, _ in taken) == dict.fromkeys(range(32), 1)
    assert {number: out.read(layout.claim(number)).decode() for number in range(32)} == dict(taken)
    for claims in workers:
        claims.close()
    assert out.names(layout.CLAIMS) == []


def test_a_server_that_restarts_while_a_job_runs_costs_nothing(weed, start, instantly, write_rows, tmp_path):
    source = write_rows(mixed_rows(800))
    expected = instantly([source], "expected", output={"shard_rows": 40})
    watch = processes.Watch(tmp_path, step=0.1)
    run = start(source, "s3://talks/restart", "--shard-rows", 40, "--stale", 120, env=watch.environment)
    until(lambda: len(watch.finished()) > 200)
    weed.kill()
    time.sleep(3)
    weed.start()
    assert run.wait() == 0, run.stderr
    assert buckets.dataset(at("s3://talks/restart")) == processes.dataset(expected)
    assert len(watch.finished()) == len({done.item for done in watch.finished()})


def killed_50_times(start, uri: str, source: Path, watch: processes.Watch) -> list[float]:
    """Four runs at work on one output, of which again and again one is killed and another started in its place."""
    chance = random.Random(7)
    flags = ["--shard-rows", 50, "--stale", 30, "--journal-every", 1, "--workers", 1]
    runs, kills = [start(source, uri, *flags, env=watch.environment) for _ in range(4)], []
    while len(kills) < 50:
        time.sleep(chance.uniform(0.5, 3))
        victim = chance.choice(runs)
        if victim.process.poll() is not None:
            break  # the job is done
        victim.kill()
        kills.append(time.monotonic())
        runs[runs.index(victim)] = start(source, uri, *flags, env=watch.environment)
    assert [run.wait(600) for run in runs] == [0] * 4, [run.stderr for run in runs]
    return kills


def check_after_kills(uri: str, expected: Path, watch: processes.Watch, kills: list[float]) -> None:
    out = at(uri)
    assert buckets.dataset(out) == processes.dataset(expected)
    finished = watch.finished()
    last = {done.item: done.at for done in finished}
    again = [done for done in finished if done.at < last[done.item]]
    oldest = max((min(kill - done.at for kill in kills if kill > done.at) for done in again), default=0.0)
    print(f"\n{len(kills)} kills; done twice: {len(again)} of {len(finished)} items, none older than {oldest:.2f} s")
    assert len(kills) == 50
    assert oldest < 1.5  # journal_every, and what a busy machine adds


@pytest.mark.parametrize(("server", "scheme"), [("s3", "s3"), ("weed", "s3"), ("azure", "az")])
def test_50_kills_of_4_workers_change_no_byte(server, scheme, request, start, instantly, write_rows, tmp_path):
    request.getfixturevalue(server)
    source = write_rows(mixed_rows(7000))
    expected = instantly([source], "expected", output={"shard_rows": 50})
    watch = processes.Watch(tmp_path, step=0.4)
    uri = f"{scheme}://talks/kills-{server}"
    check_after_kills(uri, expected, watch, killed_50_times(start, uri, source, watch))


def test_the_status_of_100_000_shards_takes_3_seconds_of_this_process(write_rows, tmp_path):
    """From a service that answers each request after 60 ms, on the same machine: what it takes itself is its own."""
    number = 100_000
    source = write_rows([{"text": "x"}] * number)
    places = {"input": [str(source)], "model": str(MODEL), "output": str(tmp_path / "out")}
    tables = {table: {"path": path} for table, path in places.items()}
    tables["output"]["shard_rows"] = 1
    job = prepare(load(None, tables)).record
    (tmp_path / "content").mkdir()
    for name, content in (("_job.json", record.written(job)), ("clock", b"now"), (".huggingface.yaml", b"")):
        (tmp_path / "content" / name).write_bytes(content)
    sums = Checksums(
        os.urandom(16).hex(), None, 4711, Counts(1, 1, {}, 40, 50), job.fingerprint, ["v2", "murmur3"], device="H100"
    )
    lines = []
    for planned in job.plan.shards:
        own = msgspec.structs.replace(sums, parquet=f"{planned.index:032x}")
        lines.append(f"4711 out/{layout.part(planned)}")
        lines.append(f"0 out/{_note(layout.checksums(planned), sealed(own))}")
    looks = []
    with (
        buckets.listing_server(lines, tmp_path, seconds=0.06) as endpoint,
        mock.patch.dict(os.environ, buckets.environment(endpoint)),
    ):
        for _ in range(3):
            begin, worked = time.monotonic(), time.process_time()
            seen = status.look("s3://talks/out")
            looks.append((time.process_time() - worked, time.monotonic() - begin))
    print(f"\nstatus of {number:,} shards: {', '.join(f'{own:.2f} s of {whole:.2f} s' for own, whole in looks)}")
    assert (seen.shards.done, seen.finished.responses) == (number, number)
    assert min(looks)[0] < 3
