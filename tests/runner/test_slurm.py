"""Slurm: what is submitted, and how runs fare in a real Slurm (marker `slurm`), which tests/slurm-box starts."""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import MODEL, demo_records
from processes import dataset, hook, until

from batchgen import manual
from batchgen.commands import submit

TESTS = Path(__file__).parent.parent
BATCHGEN = Path(sys.executable).with_name("batchgen")
SLOWLY = ["--", "--engine", "max_num_seqs=8"]  # so that there is time to disturb it; the results are the same
LONG = {"ignore_eos": True, "max_tokens": 300}
ENDED = {"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY"}
MINUTES = 900  # seconds that a job may take: four engines that start at once on two cores need their time


@pytest.fixture
def job_file(write_rows, tmp_path):
    write_rows(demo_records(20))
    path = tmp_path / "talks.toml"
    path.write_text(f'[input]\npath = "in.jsonl"\n[model]\npath = "{MODEL}"\n[output]\npath = "out"\n')
    return path


# --- what is submitted


def parts(script: str) -> tuple[set[str], str]:
    """The options of a batch script, and what it runs."""
    lines = script.splitlines()
    return {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}, lines[-1]


def test_a_dry_run_prints_the_batch_script_and_changes_nothing(batchgen, job_file, tmp_path):
    before = sorted(tmp_path.iterdir())
    done = batchgen("submit", job_file, "--array", 8, "--time", "4:00:00", "-p", "gpu", "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash\n#SBATCH --job-name=talks\n")
    options, command = parts(done.stdout)
    assert options == {
        "--job-name=talks",
        "--array=0-7",
        "--time=4:00:00",
        "--partition=gpu",
        "--nodes=1",
        "--ntasks=1",
        "--cpus-per-task=8",
        "--mem=16G",
        "--requeue",
        "--open-mode=append",
        "--signal=B:USR1@120",
        "--output=%x_%A_%a.out",
    }
    assert command == f"exec {BATCHGEN} run {job_file} --requeue"
    assert sorted(tmp_path.iterdir()) == before


def test_flags_behind_the_dashes_are_for_the_run_and_are_quoted_for_the_shell(batchgen, job_file, tmp_path):
    out = tmp_path / "it's new"
    done = batchgen("submit", job_file, "--dry-run", "--", "--output", out, "--engine", "max_num_seqs=32")
    quoted = str(out).replace("'", "'\"'\"'")
    assert parts(done.stdout)[1].endswith(f" --requeue --output '{quoted}' --engine max_num_seqs=32")


@pytest.mark.parametrize(
    ("given", "array"), [("1", "0-0"), ("8%2", "0-7%2"), ("1,3,7-9%2", "1,3,7-9%2"), ("0-15:4", "0-15:4")]
)
def test_an_array_is_a_number_of_tasks_or_indices_as_slurm_writes_them(batchgen, job_file, given, array):
    options, _ = parts(batchgen("submit", job_file, "--array", given, "--dry-run").stdout)
    assert f"--array={array}" in options


def test_options_of_sbatch_beat_our_own(batchgen, job_file):
    given = ["--sbatch", "signal=B:USR1@300", "--sbatch", "exclusive", "--sbatch", "comment=two words"]
    options, _ = parts(batchgen("submit", job_file, "--dry-run", "--job-name", "nightly", *given).stdout)
    assert {"--signal=B:USR1@300", "--exclusive", '--comment="two words"', "--job-name=nightly"} <= options
    assert "--output=%x_%j.out" in options  # %A_%a of a job that is no array is a number near 2^32
    assert not any("cpus" in option for option in options)  # a node of its own has all of them
    assert len(options) == 10


def test_a_task_asks_for_the_gpus_of_one_engine(batchgen, job_file, monkeypatch):
    monkeypatch.setattr(submit, "needs_gpu", lambda: True)
    for flags, gres in [
        ([], {"--gres=gpu:1"}),
        (["--", "--engine", "tensor_parallel_size=4"], {"--gres=gpu:4"}),
        (["--", "--workers", "2", "--engine", "tensor_parallel_size=2"], {"--gres=gpu:4"}),
        (["--sbatch", "gres=gpu:a100:2"], {"--gres=gpu:a100:2"}),
        (["--sbatch", "gpus-per-node=2"], {"--gpus-per-node=2"}),
    ]:
        options, _ = parts(batchgen("submit", job_file, "--dry-run", *flags).stdout)
        assert {option for option in options if "gpu" in option} == gres


def test_the_script_to_copy_is_what_submit_writes(batchgen, job_file, monkeypatch):
    monkeypatch.setattr(submit, "needs_gpu", lambda: True)
    submitted = batchgen("submit", job_file, "--array", 8, "--time", "4:00:00", "--job-name", "job", "--dry-run").stdout
    options, command = parts((TESTS.parent / "jobs" / "slurm-array.sbatch").read_text())
    expected = parts(submitted)
    assert options - {"--mem=24G"} == expected[0] - {"--mem=9G"}  # for the 4b model; for the demo's
    assert command == expected[1].replace(str(BATCHGEN), "batchgen").replace(str(job_file), "job.toml")


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder of programs ahead of all others, among them an sbatch that keeps what is submitted."""
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "sbatch").write_text(SBATCH.format(folder=tmp_path))
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_task_asks_for_no_more_than_the_largest_node_has(batchgen, job_file, programs):
    sinfo = programs / "sinfo"
    for said, asked in [
        ("4 3000\n2+ 8000+\n", {"--cpus-per-task=4", "--mem=8000M"}),
        ("64 512000\n", {"--cpus-per-task=8", "--mem=16G"}),
        ("64 1\n", {"--cpus-per-task=8", "--mem=16G"}),
        ("", {"--cpus-per-task=8", "--mem=16G"}),
    ]:
        sinfo.write_text(f"#!/bin/sh\nprintf '{said}'\n")
        sinfo.chmod(0o755)
        options, _ = parts(batchgen("submit", job_file, "--dry-run").stdout)
        assert asked <= options, said


def test_what_is_given_of_cores_and_memory_stands(batchgen, job_file):
    given = ["--sbatch", "mem-per-cpu=4G", "--sbatch", "cpus-per-task=3"]
    options, _ = parts(batchgen("submit", job_file, "--dry-run", *given).stdout)
    assert {option for option in options if "cpu" in option or "mem" in option} == {
        "--mem-per-cpu=4G",
        "--cpus-per-task=3",
    }


def test_lines_of_setup_stand_ahead_of_the_command(batchgen, job_file):
    given = ["--setup", "module load cuda/12.8", "--setup", "export HF_HOME=/scratch/$USER"]
    lines = batchgen("submit", job_file, "--dry-run", *given).stdout.splitlines()
    assert lines[-3:-1] == ["module load cuda/12.8", "export HF_HOME=/scratch/$USER"]
    assert lines[-1].startswith("exec ")


def test_a_container_has_a_batchgen_of_its_own(batchgen, job_file, monkeypatch):
    assert parts(batchgen("submit", job_file, "--dry-run", "--container", "my image.sif").stdout)[1] == (
        f"exec apptainer exec 'my image.sif' batchgen run {job_file} --requeue"
    )
    pyxis = batchgen("submit", job_file, "--dry-run", "--sbatch", "container-image=nvcr.io#org/batchgen").stdout
    assert parts(pyxis)[1] == f"exec batchgen run {job_file} --requeue"
    monkeypatch.setattr(submit, "needs_gpu", lambda: True)
    on_gpus = batchgen("submit", job_file, "--dry-run", "--container", "image.sif").stdout
    assert parts(on_gpus)[1].startswith("exec apptainer exec --nv image.sif batchgen run")


def test_resources_and_features_of_nodes_are_options(batchgen, job_file, monkeypatch):
    monkeypatch.setattr(submit, "needs_gpu", lambda: True)
    options, _ = parts(batchgen("submit", job_file, "--dry-run", "--gres", "gpu:h100:2", "--constraint", "ib").stdout)
    assert {option for option in options if "gres" in option or "constraint" in option} == {
        "--gres=gpu:h100:2",
        "--constraint=ib",
    }


def test_each_example_of_the_manual_is_in_the_script_that_it_makes(batchgen, job_file, monkeypatch):
    monkeypatch.delenv("APPTAINER_BIND", raising=False)
    page = manual.text("slurm-and-nightly")
    _, table = page.split("| your cluster | what to give |\n")
    examples = re.findall(r"`(--(?!-| -)[^`]* [^`]*)`", table.split("\n\n")[0])
    assert len(examples) == 8
    for example in examples:
        words = shlex.split(example)
        done = batchgen("submit", job_file, *words, "--dry-run")
        assert done.exit_code == 0, (example, done.stderr)
        for flag, value in itertools.pairwise(words):
            if flag.startswith("--") and flag != "--mail":  # which is the verification's, a script of its own
                assert value in done.stdout, example


def test_mail_is_about_the_verification_which_ends_last(batchgen, job_file, programs, tmp_path):
    done = batchgen("submit", job_file, "--array", 2, "--mail", "me@example.org", "--setup", "module load x")
    assert done.exit_code == 0, done.stderr
    tasks, verification = (tmp_path / "submitted").read_text().split("#!/bin/bash")[1:]
    assert "--mail" not in tasks
    assert {"--mail-user=me@example.org", "--mail-type=END,FAIL"} <= parts(verification)[0]
    assert "\nmodule load x\nexec " in tasks and "\nmodule load x\nexec " in verification


def test_a_job_that_is_done_is_not_submitted(batchgen, job_file, programs, instantly, tmp_path):
    instantly([tmp_path / "in.jsonl"])
    done = batchgen("submit", job_file)
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"all done already, nothing was submitted: {tmp_path / 'out'}\n"
    assert not (tmp_path / "submitted").exists()


def test_a_key_in_a_line_of_setup_is_refused(batchgen, job_file):
    refused = batchgen("submit", job_file, "--dry-run", "--setup", "export HF_TOKEN=hf_abcdefghijklmnopqrstuvwxyz0123")
    assert refused.exit_code == 2 and "hf_abc" not in refused.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--array", "0"], "--array 0: write a number of tasks, such as 8, or indices, such as 1,3,7-9%2"),
        (["--array", "1-"], "--array 1-: write a number of tasks"),
        (["--sbatch", "mem="], "--sbatch mem=: write KEY=VALUE with an option of sbatch, such as mem=64G"),
        (["--sbatch", "Mem=1"], "--sbatch Mem=1: write KEY=VALUE"),
        (["--sbatch", "comment=a\ntouch b #"], "--comment 'a\\ntouch b #': has a control character"),
        (["--partition", "gpu\r"], "--partition 'gpu\\r': has a control character"),
        (["--job-name", "night\ntouch b #"], "--job-name 'night\\ntouch b #': has a control character"),
        (["--job-name", "../night"], "--job-name ../night: has a slash"),
        (["--tme", "1"], "No such option '--tme'"),
        (["--", "--temprature", "1"], "No such option '--temprature'"),
        (["--", "--stop-at", "7:00"], "[output] stop_at and requeue exclude each other"),
        (["--", "--engine", "max_num_seq=3"], "[engine] max_num_seq: vLLM 0."),
        (["--", "--model", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_a_mistake_shows_when_it_is_submitted(batchgen, job_file, flags, message):
    done = batchgen("submit", job_file, *flags)
    assert done.exit_code == 2
    assert message in done.stderr


SBATCH = """#!/bin/sh
cat >>"{folder}/submitted"
echo 777
"""


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("night\ntouch pwned #.toml", []),
        ("job.toml", ["--job-name", "a\nb"]),
        ("job.toml", ["--job-name", "a\u2028b"]),
        ("job.toml", ["--job-name", "../../x"]),
        ("job.toml", ["--job-name", "x" * 240]),
        ("job.toml", ["--sbatch", "job-name=../../x"]),
        ("job.toml", ["--sbatch", "comment=a\nb"]),
        ("job.toml", ["-p", "a\nb"]),
        ("job.toml", ["--time", "1\rb"]),
    ],
)
def test_an_odd_name_or_option_is_refused_before_anything_is_submitted(
    batchgen, job_file, monkeypatch, tmp_path, name, flags
):
    (tmp_path / "sbatch").write_text(SBATCH.format(folder=tmp_path))
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    job_file.rename(tmp_path / name)
    refused = batchgen("submit", tmp_path / name, *flags)
    assert refused.exit_code == 2
    assert len(refused.stderr.splitlines()) == 1
    assert not (tmp_path / "submitted").exists()


def test_paths_of_any_bytes_are_submitted_as_they_are(batchgen, job_file, monkeypatch, tmp_path):
    (tmp_path / "sbatch").write_text(SBATCH.format(folder=tmp_path))
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    job_file.rename(folder / "job.toml")
    (folder / "job.toml").write_text((folder / "job.toml").read_text().replace('"in.jsonl"', '"../in.jsonl"'))
    done = batchgen("submit", folder / "job.toml", "--job-name", "a", "--", "--output", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert os.fsencode(folder) in (tmp_path / "submitted").read_bytes()
    assert os.fsencode(folder) in (tmp_path / "a_777.sbatch").read_bytes()


def test_an_error_in_the_job_file_shows_when_it_is_submitted(batchgen, job_file):
    job_file.write_text(job_file.read_text() + "shard_row = 3\n")
    done = batchgen("submit", job_file)
    assert done.exit_code == 2
    assert done.stderr == f"batchgen: {job_file}: [output] shard_row: unknown key; did you mean shard_rows?\n"


def test_without_sbatch_one_line_says_so(batchgen, job_file, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    done = batchgen("submit", job_file)
    assert done.exit_code == 2
    assert done.stderr == (
        "batchgen: sbatch was not found: submit where Slurm's commands are, or see the script with --dry-run\n"
    )
    assert not (tmp_path / "out").exists()


# --- in a real Slurm


# Of a task, so that several run side by side: what submit asks for is all of a small node.
SMALL = ("--sbatch", "cpus-per-task=1", "--sbatch", "mem=1G")


class Box:
    """A Slurm of one node, and what a user does with it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "OMP_NUM_THREADS": "1"}

    def control(self, command: str) -> None:
        as_most_sites = os.environ | {"SBOX_KILLWAIT": "30"}
        subprocess.run([TESTS / "slurm-box", command, self.folder], env=as_most_sites, check=True)

    def call(self, *command: object, cwd: Path | None = None, **environment: str) -> str:
        done = subprocess.run(
            [str(part) for part in command], env=self.environment | environment, cwd=cwd, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def submit(self, job: "SlurmJob", *flags: object, **environment: str) -> str:
        """Submits a job; gives its id."""
        said = self.call(BATCHGEN, "submit", job.file, *SMALL, *flags, cwd=job.folder, **environment)
        return re.match(r"submitted: job (\d+)", said)[1]

    def state(self, job: str) -> str:
        """Of all tasks, such as COMPLETED."""
        return " ".join(sorted(set(re.findall(r"JobState=(\w+)", self.call("scontrol", "show", "job", job)))))

    def restarts(self, job: str) -> int:
        return sum(map(int, re.findall(r"Restarts=(\d+)", self.call("scontrol", "show", "job", job))))

    def wait(self, job: str) -> str:
        """Until all tasks have ended; gives their states."""
        until(lambda: set(self.state(job).split()) <= ENDED, MINUTES)
        return self.state(job)

    def lose_processes_of(self, job: "SlurmJob") -> None:
        """As a node that goes away: Slurm's daemon there ends, and so does what runs. A step that lived on would keep
        Slurm from starting the job again (Duplicate jobid)."""
        daemon, _ = (self.folder / "run" / "slurmd.rec").read_text().split()
        [beat] = (job.out / "_state" / "runs").iterdir()
        run = json.loads(beat.read_text())["pid"]
        step = Path(f"/proc/{run}/stat").read_text().rpartition(")")[2].split()[1]  # its parent
        assert "slurmstepd" in Path(f"/proc/{step}/cmdline").read_text()
        subprocess.run(["kill", "-9", daemon, step, str(run)], check=True)

    def cancel_all(self) -> None:
        self.call("scancel", "--user", os.environ.get("USER") or str(os.getuid()))
        until(lambda: not self.call("squeue", "-h"))


class SlurmJob:
    """A job file with an output folder of its own, in a folder where its logs come to lie."""

    def __init__(self, folder: Path, source: Path):
        self.folder, self.out, self.file = folder, folder / "out", folder / "job.toml"
        self.file.write_text(
            f'[input]\npath = "{source}"\n[model]\npath = "{MODEL}"\n[output]\npath = "out"\nshard_rows = 25\n'
        )

    def log(self, name: str = "job_*") -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob(f"{name}.out")))

    def generating(self) -> int:
        """How many workers have written responses down."""
        return sum(path.stat().st_size > 100 for path in (self.out / "_state" / "journal").glob("*"))


@pytest.fixture(scope="session")
def running_box():
    subprocess.run([TESTS / "slurm-box", "install"], check=True)
    with tempfile.TemporaryDirectory(prefix="sb-", dir="/tmp") as folder:  # a short path: Slurm's sockets lie there
        box = Box(Path(folder))
        box.control("start")
        try:
            yield box
        finally:
            box.control("stop")


@pytest.fixture
def box(running_box):
    yield running_box
    running_box.cancel_all()


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """Rows that one worker needs about a minute for, and what it makes of them."""
    folder = tmp_path_factory.mktemp("alone")
    path = folder / "in.jsonl"
    rows = [{**row, "sampling": LONG} for row in demo_records(600)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    job = SlurmJob(folder, path)
    subprocess.run([BATCHGEN, "run", job.file], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return path, dataset(job.out)


@pytest.fixture
def job(source, tmp_path):
    return SlurmJob(tmp_path, source[0])


@pytest.fixture
def expected(source):
    return source[1]


@pytest.mark.slurm
def test_an_array_shares_a_job_and_is_verified_in_the_end(box, job, expected):
    said = box.call(BATCHGEN, "submit", job.file, *SMALL, "--array", 4, "--time", "30", cwd=job.folder)
    first, second, third = said.splitlines()
    [array] = re.findall(r"^submitted: job (\d+); the script is job_\1.sbatch, and the logs will be next to it$", first)
    [verification] = re.findall(r"^after it: job (\d+), batchgen verify$", second)
    assert third == f"to watch it: batchgen status {job.out}"
    assert (job.folder / f"job_{array}.sbatch").read_text().startswith("#!/bin/bash\n")
    assert box.wait(array) == "COMPLETED", job.log()
    assert box.wait(verification) == "COMPLETED"
    assert dataset(job.out) == expected
    assert "verified: 600 rows, 600 responses, 0 rejects" in job.log("job-verify_*")
    assert job.log().count("this run: ") >= 2


@pytest.mark.slurm
def test_the_verification_writes_a_success_that_is_missing(box, job, expected):
    said = box.call(BATCHGEN, "submit", job.file, cwd=job.folder)
    run, verification = re.findall(r"job (\d+)", said)
    box.call("scontrol", "hold", verification)
    assert box.wait(run) == "COMPLETED", job.log()
    (job.out / "_SUCCESS").unlink()
    box.call("scontrol", "release", verification)
    assert box.wait(verification) == "COMPLETED"
    assert f"_SUCCESS was missing; wrote {job.out}/_SUCCESS" in job.log("job-verify_*")
    assert dataset(job.out) == expected


@pytest.mark.slurm
def test_a_sparse_array_does_the_whole_job(box, job, expected):
    array = box.submit(job, "--array", "1,3,7-9%2", "--time", "30")
    assert box.wait(array) == "COMPLETED", job.log()
    assert sorted(path.name for path in job.folder.glob("job_*.out")) == [
        f"job_{array}_{i}.out" for i in (1, 3, 7, 8, 9)
    ]
    assert dataset(job.out) == expected


@pytest.mark.slurm
def test_a_cancelled_task_stays_cancelled_and_the_others_take_over_its_shards(box, job, expected):
    array = box.submit(job, "--array", 2, "--time", "30", *SLOWLY)
    until(lambda: job.generating() >= 2, MINUTES)
    box.call("scancel", f"{array}_1")
    assert box.wait(f"{array}_1") == "CANCELLED"
    assert box.wait(array) == "CANCELLED COMPLETED", job.log()
    assert "starts it again" not in job.log()
    assert box.restarts(array) == 0
    assert dataset(job.out) == expected


@pytest.mark.slurm
def test_a_cancelled_job_goes_on_when_it_is_submitted_again(box, job, expected):
    first = box.submit(job, "--time", "30", *SLOWLY)
    until(job.generating, MINUTES)
    box.call("scancel", first)
    assert box.wait(first) == "CANCELLED"
    assert not list((job.out / "_state" / "claims").iterdir())
    assert box.wait(box.submit(job, "--time", "30")) == "COMPLETED", job.log()
    assert dataset(job.out) == expected


@pytest.mark.slurm
def test_a_task_whose_time_is_nearly_up_requeues_itself_and_goes_on(box, job, expected):
    slowly = ["--", "--engine", "max_num_seqs=4"]  # with 8, a quiet machine is done when the signal comes
    array = box.submit(job, "--array", "5,6", "--time", "2", "--sbatch", "signal=B:USR1@60", *slowly)
    until(lambda: box.restarts(array) == 2, MINUTES)
    for task in (5, 6):  # a loaded machine might need many more allocations of two minutes
        box.call("scontrol", "update", f"jobid={array}_{task}", "timelimit=30")
    assert box.wait(array) == "COMPLETED", job.log()
    assert box.restarts(array) == 2
    assert job.log().count("batchgen: stopping; running requests have ") == 2
    assert job.log().count("; Slurm starts it again") == 2
    assert dataset(job.out) == expected


@pytest.mark.slurm
def test_without_a_signal_a_run_asks_slurm_when_its_time_ends(box, job, expected):
    run = box.submit(job, "--time", "2", "--sbatch", "signal=B:USR1@1", "--", "--engine", "max_num_seqs=2")
    until(lambda: box.restarts(run), MINUTES)
    until(lambda: "; Slurm starts it again" in job.log())  # it says so once Slurm has taken the request
    log = job.log()
    assert "batchgen: stopped, as the time is nearly up; run the same command again to resume" in log
    assert log.count("; Slurm starts it again") == 1


@pytest.mark.slurm
def test_a_task_that_never_gets_to_work_gives_up_after_three_restarts(box, job, tmp_path):
    starting = tmp_path / "starting"
    code = f"def patch(engine):\n    open({str(starting)!r}, 'w').close()\n    time.sleep(1000)\n"
    run = box.submit(job, "--time", "30", PYTHONPATH=hook(tmp_path / "hook", code)["PYTHONPATH"])
    for restart in range(4):
        until(starting.exists, MINUTES)
        starting.unlink()
        assert box.restarts(run) == restart
        box.call("scancel", "--signal=USR1", "--batch", run)
    assert box.wait(run) == "FAILED"
    assert box.restarts(run) == 3
    assert "; not requeued: 3 restarts, and nothing was finished in the last; give it a longer --time" in job.log()


@pytest.mark.slurm
def test_a_preempted_task_goes_on_by_itself(box, job, expected):
    array = box.submit(job, "--array", 2, "--time", "30", *SLOWLY)
    until(lambda: job.generating() >= 2, MINUTES)
    urgent = box.call("sbatch", "--parsable", "-p", "urgent", "-c", 4, "-o", "/dev/null", "--wrap", "sleep 3").strip()
    assert box.wait(urgent) == "COMPLETED"
    assert box.wait(array) == "COMPLETED", job.log()
    assert box.restarts(array) == 2
    assert job.log().count("; Slurm starts it again") == 2
    assert dataset(job.out) == expected


@pytest.mark.slurm
def test_a_node_that_goes_away_costs_a_restart(box, job, expected):
    run = box.submit(job, "--time", "30", *SLOWLY)
    until(job.generating, MINUTES)
    box.lose_processes_of(job)
    node = box.call("sinfo", "-h", "-o", "%n").strip()
    box.call("scontrol", "update", f"nodename={node}", "state=down", "reason=gone")
    until(lambda: box.restarts(run) == 1)
    box.control("start")
    assert box.wait(run) == "COMPLETED", job.log()
    assert dataset(job.out) == expected
