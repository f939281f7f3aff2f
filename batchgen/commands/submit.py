"""Submits a job to Slurm: an array of runs that share its output folder, and a verification that waits for them."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..engine import cpu
from ..engine.installed import needs_gpu
from ..errors import JobError, warn
from ..host import credentials, safeopen
from ..output import opening, success
from ..runner import gpus
from ..runner.prepare import Job
from ..runner.run import missing_shards

# To the batch process itself (B:), as under cgroup tracking nothing else gets it, 120 to 150 s before the end.
WARNING = "B:USR1@120"
# Of the settings that --sbatch adds, those that the verification needs as well: who pays, where it may run, in what.
SHARED = tuple("account clusters container-image container-mounts export partition qos reservation time".split())
MAIL = ("mail-user", "mail-type")  # which the verification alone has, as the last to end
MEMORY_OPTIONS = ("mem", "mem-per-cpu", "mem-per-gpu")
CPU_OPTIONS = ("cpus-per-task", "cpus-per-gpu", "exclusive")
# What a task asks for by default: clusters give it one core and a few GB, with which no engine starts.
CORES_PER_GPU = 4  # the engine, its front end, the worker, and files
CORES = 8  # of a task without GPUs
HOST_BYTES = 8 << 30  # of a worker on a GPU, beside its weights, which pass through the host's memory
GPU_OPTIONS = ("gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket")

PATIENCE = 10  # seconds for sinfo
LONGEST_NAME = 200  # bytes of the 255 that a file's name may have: job and task ids stand behind it

Options = dict[str, str]


@dataclass(frozen=True)
class Around:
    """What a task's command runs in. setup: lines of bash ahead of it; container: image for Apptainer, or empty"""

    setup: tuple[str, ...] = ()
    container: str = ""


@dataclass(frozen=True)
class Submission:
    """job, verification: their ids in Slurm, the second empty if Slurm refused it; script: as submitted."""

    job: str
    verification: str
    script: Path


def settings(given: Iterable[str]) -> Options:
    """Options of sbatch from KEY=VALUE, or KEY for one without a value. Raises JobError."""
    options = {}
    for setting in given:
        key, equals, value = setting.removeprefix("--").partition("=")
        if not re.fullmatch(r"[a-z][a-z-]*", key) or (equals and not value):
            raise JobError(f"--sbatch {setting}: write KEY=VALUE with an option of sbatch, such as mem=64G")
        names = [part.partition("=")[0] for part in value.split(",") if "=" in part]
        if credentials.redacted(value) != value or any(map(credentials.is_secret_name, names)):
            raise JobError(
                f"--sbatch {key}: has a key or token in it, which the script and Slurm's database would keep; "
                "export it in your shell, from where Slurm passes it on"
            )
        options[key] = value
    return options


def lines(setup: Iterable[str]) -> tuple[str, ...]:
    """The lines of --setup. Raises JobError."""
    for line in setup:
        if any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in line):
            raise JobError(f"--setup {line!r}: has a control character, or is not UTF-8; give each line by itself")
        if credentials.redacted(line) != line:
            raise JobError("--setup: has a key or token in it, which the script would keep; export it in your shell")
    return tuple(setup)


def array_of(tasks: str) -> str:
    """Array indices as Slurm writes them, from indices or from a number of tasks; %K: at most K at a time. Raises
    JobError."""
    if number := re.fullmatch(r"([1-9]\d*)(%\d+)?", tasks):
        return f"0-{int(number[1]) - 1}{number[2] or ''}"
    if not re.fullmatch(r"\d+([-,:]\d+)+(%\d+)?", tasks):
        raise JobError(f"--array {tasks}: write a number of tasks, such as 8, or indices, such as 1,3,7-9%2")
    return tasks


def run_options(job: Job, name: str, given: Options) -> Options:
    """All options of sbatch for a run, or for each run of an array; those that are given win. Raises JobError."""
    name = given.get("job-name", name)
    for key, value in {"job-name": name, **given}.items():
        # A newline would end the comment that sbatch reads, and bash would run the rest.
        if any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in value):
            raise JobError(f"--{key} {value!r}: has a control character, or is not UTF-8; sbatch takes one line")
    if len(os.fsencode(name)) > LONGEST_NAME:
        raise JobError(f"--job-name {name[:40]}...: has over {LONGEST_NAME} bytes, and the logs are named after it")
    if "/" in name:
        raise JobError(f"--job-name {name}: has a slash, and the logs are named after it; give another name")
    given = {key: value for key, value in given.items() if key not in MAIL}
    return {
        "job-name": name,
        **given,  # in their order; once more below, as they win
        "nodes": "1",
        "ntasks": "1",
        **_resources(job, given),
        "requeue": "",
        "open-mode": "append",
        "signal": WARNING,
        "output": "%x_%A_%a.out" if "array" in given else "%x_%j.out",
        **given,
    }


def _resources(job: Job, given: Options) -> Options:
    """GPUs, cores and memory for a task, where they are not given; no more than the largest node has."""
    engine, workers = job.spec.engine, job.spec.output.workers
    gpus_wanted = gpus.per_worker(engine) * (workers or 1)
    weights, cache = cpu.weight_bytes(job.model, engine), cpu.cache_bytes(job.model, job.context, engine)
    if needs_gpu():
        cores, memory = CORES_PER_GPU * gpus_wanted, (workers or 1) * (HOST_BYTES + 2 * weights)
    else:
        most = workers or max(1, CORES // (1 + weights // cpu.WEIGHTS_PER_CORE))
        cores, memory = CORES, int(most * (cpu.PROCESS + weights + cache) / cpu.SPARE)
    node = _largest_node(given.get("partition"))
    found = {}
    # Every Slurm knows --gres; --gpus-per-task is refused without --ntasks.
    if needs_gpu() and given.keys().isdisjoint(GPU_OPTIONS):
        found["gres"] = f"gpu:{gpus_wanted}"
    if given.keys().isdisjoint(CPU_OPTIONS):
        found["cpus-per-task"] = str(min(cores, node.cores))
    if given.keys().isdisjoint(MEMORY_OPTIONS):
        gigabytes = -(-memory >> 30)
        found["mem"] = f"{gigabytes}G" if gigabytes << 10 <= node.megabytes else f"{node.megabytes}M"
    return found


class _Node(NamedTuple):
    cores: int = 1 << 30
    megabytes: int = 1 << 30


def _largest_node(partition: str | None) -> _Node:
    """What the largest node of a partition has, as sinfo says; no limit where it does not, or where Slurm does not
    manage memory and says 1."""
    among = ["-p", partition] if partition else []
    try:
        said = subprocess.run(["sinfo", "-h", "-o", "%c %m", *among], capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return _Node()
    nodes = re.findall(r"^(\d+)\+? (\d+)\+?$", said.stdout, re.MULTILINE)
    cores, megabytes = (max((int(node[place]) for node in nodes), default=0) for place in (0, 1))
    return _Node(cores or _Node().cores, megabytes if megabytes > 1 else _Node().megabytes)


def mail_options(given: Options, address: str | None) -> Options:
    """Mail on how the verification ended, which is after all tasks. given: by --sbatch; address: by --mail"""
    asked = {key: value for key, value in given.items() if key in MAIL} | ({"mail-user": address} if address else {})
    return {"mail-type": "END,FAIL", **asked} if asked else {}


def script(options: Options, arguments: list[str], around: Around) -> str:
    """A batch script. exec: the signals that Slurm sends to it are for batchgen."""
    header = [f"#SBATCH --{key}" + (f"={_quoted(value)}" if value else "") for key, value in options.items()]
    in_image = around.container or "container-image" in options
    command = ["batchgen" if in_image else _batchgen(), *arguments]
    if around.container:
        command = ["apptainer", "exec", *(["--nv"] if needs_gpu() else []), around.container, *command]
    return "\n".join(["#!/bin/bash", *header, "", *around.setup, f"exec {shlex.join(command)}", ""])


def is_done(job: Job) -> bool:
    """Whether no task would find anything to do."""
    return success.is_of(job.out, job.record.fingerprint) and not missing_shards(job)


def submit(job: Job, options: Options, arguments: list[str], around: Around, mail: Options) -> Submission:
    """Submits runs of a job, and a verification after them. mail: options of sbatch for the latter. Raises JobError.

    The job, as planned here, goes into its output folder: a job that differs from the one there is refused now, and
    no task has to plan it again. The script is kept beside the logs, so that it can be seen later what ran.
    """
    if not shutil.which("sbatch"):
        raise JobError("sbatch was not found: submit where Slurm's commands are, or see the script with --dry-run")
    if not os.access(".", os.W_OK):
        raise JobError(f"{Path.cwd()}: cannot be written to, but logs and script come here; submit from another folder")
    opening.open_job(job.out, job.record)
    name, text = options["job-name"], script(options, ["run", *arguments], around)
    job_id = _sbatch(text)
    path = Path(f"{name}_{job_id}.sbatch")
    safeopen.replace(path, text.encode(errors="surrogateescape"))
    check = {"job-name": f"{name}-verify", "dependency": f"afterany:{job_id}", "output": "%x_%j.out"}
    check |= {key: value for key, value in options.items() if key in SHARED} | mail
    try:
        shared = ["--shared"] if job.spec.output.shared else []
        verification = _sbatch(script(check, ["verify", str(job.out), "--quarantine", "--close", *shared], around))
    except JobError as error:
        warn(f"the verification was not submitted ({error}); in the end, run batchgen verify {job.out} --close")
        verification = ""
    return Submission(job_id, verification, path)


def _sbatch(text: str) -> str:
    """Submits a script; gives the job's id."""
    done = subprocess.run(
        ["sbatch", "--parsable"], input=text, capture_output=True, text=True, errors="surrogateescape"
    )
    if done.returncode:
        said = dict.fromkeys(line.removeprefix("sbatch: ").removeprefix("error: ") for line in done.stderr.splitlines())
        raise JobError(f"sbatch: {'; '.join(said)}")
    return done.stdout.strip().partition(";")[0]  # ID;CLUSTER where there are several


def _quoted(value: str) -> str:
    """As sbatch reads an option's value."""
    if re.fullmatch(r"[\w@%+=:,./-]+", value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _batchgen() -> str:
    """The command of this very installation: a batch job's PATH may lead to another, or none."""
    beside = Path(sys.executable).with_name("batchgen")
    return str(beside if beside.exists() else Path(sys.argv[0]).absolute())
