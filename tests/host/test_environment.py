"""An engine talks to nobody beyond this machine, and has none of the keys that a shell holds for other programs."""

import os
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from conftest import MODEL, demo_records
from processes import instant, until

from batchgen.engine.scratch import VARIABLE
from batchgen.engine.vllm import _meet_in_a_file
from batchgen.host import environment

KEYS = {
    "AWS_ACCESS_KEY_ID": "a",
    "AWS_SECRET_ACCESS_KEY": "a",
    "AWS_PROFILE": "a",
    "GOOGLE_APPLICATION_CREDENTIALS": "a",
    "AZURE_STORAGE_KEY": "a",
    "HF_TOKEN": "a",
    "OPENAI_API_KEY": "a",
    "NVIDIA_API_KEY": "a",
    "VLLM_API_KEY": "a",
    "SLURM_JWT": "a",
    "GITHUB_TOKEN": "a",
    "https_proxy": "http://user:password@proxy",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "ANYTHING_ELSE": "a",
}
NEEDED = {
    "PATH": "/bin",
    "HOME": "/home/a",
    "LC_ALL": "ja_JP.UTF-8",
    "PYTHONPATH": "/p",
    "LD_LIBRARY_PATH": "/l",
    "CUDA_VISIBLE_DEVICES": "0",
    "NVIDIA_VISIBLE_DEVICES": "all",
    "OMP_NUM_THREADS": "2",
    "VLLM_BATCH_INVARIANT": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HOME": "/h",
    "HF_HUB_OFFLINE": "1",
    "SLURM_ARRAY_TASK_ID": "3",
    "BATCHGEN_ENGINE": "instant",
}


def test_a_worker_gets_what_engines_need_and_no_keys():
    assert environment.of_worker(["/data/a.jsonl", "file:///data/b.jsonl"], KEYS | NEEDED) == NEEDED


def test_a_worker_gets_the_keys_to_its_own_input():
    got = environment.of_worker(["s3://bucket/a.jsonl"], KEYS | NEEDED).keys() - NEEDED.keys()
    assert got == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "https_proxy"}
    assert "HF_TOKEN" in environment.of_worker(["hf://datasets/a/b/c.jsonl"], KEYS)
    assert "AWS_PROFILE" not in environment.of_worker(["hf://datasets/a/b/c.jsonl"], KEYS)


def test_a_variable_that_is_named_is_passed():
    given = KEYS | {"BATCHGEN_PASS": "ANYTHING_ELSE, HF_TOKEN"}
    assert environment.of_worker([], given).keys() == {"BATCHGEN_PASS", "ANYTHING_ELSE", "HF_TOKEN"}


def test_a_running_worker_has_no_keys_in_its_environment(start, write_rows, tmp_path):
    slow = instant(tmp_path / "instant", start=30)
    run = start(write_rows(demo_records(3)), tmp_path / "out", env={**slow, **KEYS, "https_proxy": ""})
    until(run.workers)
    variables = Path(f"/proc/{run.workers()[0]}/environ").read_bytes().decode().split("\0")
    names = {variable.partition("=")[0] for variable in variables}
    assert not names & KEYS.keys()
    assert {"PATH", "PYTHONPATH", "VLLM_RPC_BASE_PATH", "TMPDIR"} <= names


def test_a_started_engine_is_bound_to_the_loopback_and_reports_to_nobody(engine):
    assert os.environ["GLOO_SOCKET_IFNAME"] == os.environ["NCCL_SOCKET_IFNAME"] == "lo"
    assert os.environ["VLLM_HOST_IP"] == "127.0.0.1"
    assert os.environ["VLLM_NO_USAGE_STATS"] == os.environ["VLLM_DO_NOT_TRACK"] == os.environ["DO_NOT_TRACK"] == "1"


LISTENERS = """
import contextlib, os, torch.distributed
from batchgen.engine.vllm import meeting_place
way = {way}
torch.distributed.init_process_group("gloo", init_method=way, world_size=1, rank=0)
sockets = set()
for name in os.listdir("/proc/self/fd"):
    with contextlib.suppress(FileNotFoundError):  # that of the listing itself
        sockets.add(os.readlink(f"/proc/self/fd/{{name}}"))
for table in ("tcp", "tcp6"):
    for line in open(f"/proc/net/{{table}}").readlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{{fields[9]}}]" in sockets:
            print(fields[1].partition(":")[0])
"""
EVERYWHERE = {"0" * 8, "0" * 32}


def listeners(way: str) -> set[str]:
    """The addresses, as the kernel has them, at which a process group of torch listens that meets in this way."""
    variables = os.environ | environment.of_engine()
    done = subprocess.run(
        [sys.executable, "-c", LISTENERS.format(way=way)], env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_meeting_place_of_older_vllms_listens_on_no_other_interface(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    assert listeners(f"'tcp://127.0.0.1:{port}'") & EVERYWHERE  # which the older ones do
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert not listeners("meeting_place('127.0.0.1', 1)") & EVERYWHERE
    assert not list(tmp_path.glob("dist:*"))  # nothing is left of one without a run, such as a benchmark's


def test_an_engine_is_given_a_meeting_place_that_goes_with_the_run(monkeypatch):
    from vllm.v1.executor import multiproc_executor, uniproc_executor

    monkeypatch.setenv(VARIABLE, "batchgen-engine-abc")
    for executor in (multiproc_executor, uniproc_executor):
        name = "get_file_store_init_method"  # which the others do not have
        name = name if hasattr(executor, name) else "get_distributed_init_method"
        monkeypatch.setattr(executor, name, getattr(executor, name))
        _meet_in_a_file()
        way = getattr(executor, name)("10.1.2.3", 1)
        assert way.startswith(f"file://{tempfile.gettempdir()}/")
        of_older, of_newer = way.split(":")[-1], os.path.basename(way)  # what they name shared memory after
        assert "batchgen-engine-abc" in of_older and "/" not in of_older and "batchgen-engine-abc" in of_newer


# --- on a network: a namespace with a second address, which the host's name stands for, as on a cluster

_LAN = """
set -e
ip link set lo up
ip link add lan0 type veth peer name lan1
ip addr add 10.1.2.3/24 dev lan0
ip link set lan0 up; ip link set lan1 up
hostname lanhost
mount --bind {hosts} /etc/hosts
(while :; do ss -lntupH >>{seen}; sleep 0.2; done) &
watch=$!
trap 'kill $watch' EXIT
"$@"
"""


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "own_process"), [(1, "0"), (2, "0"), (1, "1")])
def test_a_run_listens_on_the_loopback_alone(write_rows, tmp_path, workers, own_process):
    seen, hosts = tmp_path / "seen", tmp_path / "hosts"
    hosts.write_text("10.1.2.3 lanhost\n127.0.0.1 localhost\n")
    script = tmp_path / "lan.sh"
    script.write_text(textwrap.dedent(_LAN).format(hosts=hosts, seen=seen))
    command = [Path(sys.executable).with_name("batchgen"), "run", write_rows(demo_records(60)), "--model", MODEL]
    command += ["--output", tmp_path / "out", "--shard-rows", 20, "--workers", workers]
    variables = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": own_process, "VLLM_HOST_IP": "10.1.2.3"}
    done = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "bash", str(script), *map(str, command)],
        env=variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    addresses = {line.split()[4].rpartition(":")[0] for line in seen.read_text().splitlines()}
    assert addresses == {"127.0.0.1"}


@pytest.mark.slow
def test_a_run_connects_to_nobody_but_itself(write_rows, tmp_path):
    """By the kernel's word, engine in a process of its own: no connection, no datagram, no look-up of a name."""
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,bind", "-e", "signal=none", "-o", trace]
    command += [Path(sys.executable).with_name("batchgen"), "run", write_rows(demo_records(20)), "--model", MODEL]
    variables = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    done = subprocess.run([*map(str, command), "--output", str(tmp_path / "out")], env=variables, capture_output=True)
    assert done.returncode == 0, done.stderr
    calls = [line for line in trace.read_text(errors="replace").splitlines() if "AF_INET" in line]
    assert calls  # gloo's own
    strangers = [line for line in calls if 'inet_addr("127.0.0.1")' not in line and '"::1"' not in line]
    assert [line for line in strangers if not is_harmless(line)] == []


def is_harmless(line: str) -> bool:
    """A socket that is bound to look which port is free, and listens to nobody."""
    return "bind(" in line and "sin_port=htons(0)" in line
