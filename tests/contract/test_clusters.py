"""jobs/kubernetes.yaml, jobs/skypilot.yaml and jobs/on_ray.py, as far as they can be told without a cluster: what they
say of batchgen is true, and the makers' own parsers take them."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import MODEL, demo_records
from processes import dataset, instant

from batchgen import cli
from batchgen.job.spec import load
from batchgen.runner import supervisor

JOBS = Path(__file__).parent.parent.parent / "jobs"
JOB = yaml.safe_load((JOBS / "kubernetes.yaml").read_text())["spec"]
POD = JOB["template"]["spec"]
[CONTAINER] = POD["containers"]
TASK = yaml.safe_load((JOBS / "skypilot.yaml").read_text())
ON_RAY = JOBS / "on_ray.py"
DRIVE = Path(__file__).with_name("two_ray_nodes.py")


def parsed(arguments: list[str]) -> dict:
    """What `batchgen` makes of its arguments. Raises click.UsageError."""
    command, *rest = arguments
    return cli.cli.commands[command].make_context(command, rest).params


@pytest.fixture(scope="session")
def installed(tmp_path_factory) -> Callable[..., Path]:
    """Installs packages into an environment of their own; gives the folder of their commands."""

    def install(*packages: str) -> Path:
        folder = tmp_path_factory.mktemp("own") / "venv"
        uv = Path(sys.executable).with_name("uv")
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, folder], check=True)
        subprocess.run([uv, "pip", "install", "-q", "--python", folder / "bin" / "python", *packages], check=True)
        return folder / "bin"

    return install


# --- Kubernetes


def test_a_pod_runs_a_job_by_its_uri():
    assert parsed(CONTAINER["args"])["inputs"] == ("s3://my-bucket/job.toml",)


def test_only_what_no_other_run_would_do_better_fails_the_whole_job():
    fail, again, gone = JOB["podFailurePolicy"]["rules"]
    assert (fail["action"], fail["onExitCodes"]["values"]) == ("FailJob", [cli.EXIT_USAGE, cli.EXIT_REJECTS])
    assert (again["action"], again["onExitCodes"]["values"]) == ("Ignore", [cli.EXIT_STOPPED])
    assert (gone["action"], gone["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    named = {rule["onExitCodes"]["containerName"] for rule in (fail, again)}
    assert named == {CONTAINER["name"]}
    assert POD["restartPolicy"] == "Never"  # or no rule counts
    assert JOB["backoffLimitPerIndex"] > 0  # of all other codes


def test_any_number_of_pods_share_out_the_rows():
    assert JOB["completionMode"] == "Indexed"
    assert JOB["completions"] == JOB["parallelism"]
    assert all("emptyDir" in volume for volume in POD["volumes"])


def test_a_pod_has_the_time_to_drain():
    """And 30 s more for the bucket: a request there may take half of `stale` if it has to be made again."""
    output = load(None, {"output": {"path": "out"}, "model": {"path": "model"}, "input": {"path": ["in"]}}).output
    assert POD["terminationGracePeriodSeconds"] >= output.drain + supervisor.GRACE + output.stale / 2


def test_a_pod_is_the_user_that_the_image_is_made_for_and_writes_to_its_cache():
    dockerfile = (JOBS / "Dockerfile").read_text()
    assert re.findall(r"^USER (\d+)$", dockerfile, re.MULTILINE) == [str(POD["securityContext"]["runAsUser"])]
    mounted = {mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    assert re.search(r"^ENV HOME=(\S+)", dockerfile, re.MULTILINE)[1] in mounted
    assert {mount["name"] for mount in CONTAINER["volumeMounts"]} == {volume["name"] for volume in POD["volumes"]}


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.33.0", "1.37.0"])
def test_kubernetes_own_schema_takes_the_job(installed, version):
    validate = installed("kubernetes-validate==1.37.0") / "kubernetes-validate"
    done = subprocess.run(
        [validate, "-k", version, "--strict", JOBS / "kubernetes.yaml"], capture_output=True, text=True
    )
    assert (done.returncode, "passed for resource job/batchgen" in done.stdout + done.stderr) == (0, True), done.stdout


# --- SkyPilot


def test_each_machine_runs_the_same_job_until_it_is_done():
    executed, program, *arguments = shlex.split(TASK["run"])
    assert (executed, Path(program).name) == ("exec", "batchgen")
    assert parsed([argument.replace("$JOB", TASK["envs"]["JOB"]) for argument in arguments])["inputs"]
    assert TASK["resources"]["job_recovery"]["recover_on_exit_codes"] == [cli.EXIT_STOPPED]
    assert TASK["resources"]["use_spot"] and len(TASK["resources"]["any_of"]) > 1


def test_a_machine_is_installed_with_what_a_bucket_needs():
    _, script, extra = shlex.split(TASK["setup"])
    assert (JOBS.parent / script).exists()
    assert extra in tomllib.loads((JOBS.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.mark.slow
def test_skypilots_own_parser_takes_the_task(installed, tmp_path):
    python = installed("skypilot==0.14.1") / "python"
    code = (
        "import sky, sys; task = sky.Task.from_yaml(sys.argv[1]); "
        "print(task.num_nodes, *sorted(f'{each.region}{each.use_spot}' for each in task.resources))"
    )
    done = subprocess.run(
        [python, "-c", code, JOBS / "skypilot.yaml"],
        env={**os.environ, "HOME": str(tmp_path)},
        cwd=JOBS.parent,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split()[-4:] == ["1", "us-east-1True", "us-east-2True", "us-west-2True"], done.stderr


# --- Ray


def test_the_script_for_ray_gives_each_worker_flags_of_run():
    [given] = [
        node.value
        for node in ast.walk(ast.parse(ON_RAY.read_text()))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "arguments"
    ]
    arguments = [ast.unparse(part).strip("'").replace("asked.job", "job.toml") for part in given.elts[:-1]]
    assert parsed(["run", *arguments])["output__workers"] == 1


@pytest.fixture
def ray_python(installed) -> Path:
    """A Python that has Ray, and all else from the environment of the tests."""
    python = installed("ray==2.60.0") / "python"
    [packages] = python.parent.parent.glob("lib/python*/site-packages")
    (packages / "ours.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")
    return python


class OnTwoNodes:
    """A job of 40 shards in two folders: `plain`, by a plain run, and `out`, on a Ray cluster with room for a worker on
    each of two nodes."""

    def __init__(self, folder: Path, rows: Path, python: Path):
        self._folder, self._rows, self._python = folder, rows, python
        self._paced = instant(folder / "instant", start=1, step=0.2)
        self.run("plain")

    def job(self, name: str) -> Path:
        path = self._folder / f"{name}.toml"
        path.write_text(
            f"[input]\npath = ['{self._rows}']\n[model]\npath = '{MODEL}'\n"
            f"[output]\npath = '{self._folder / name}'\nshard_rows = 10\nstale = 6\n"
        )
        return path

    def run(self, name: str) -> None:
        subprocess.run([sys.executable, "-m", "batchgen", "run", self.job(name)], env=self._paced, check=True)

    def drive(self, act: str, *command: object) -> dict[str, int]:
        """act: what is done when 12 shards are there"""
        done = subprocess.run(
            [self._python, DRIVE, act, self._folder / "out", "12", self._python, *command],
            env=self._paced,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def is_as_of_a_plain_run(self) -> bool:
        return dataset(self._folder / "out") == dataset(self._folder / "plain")


@pytest.fixture
def on_two_nodes(tmp_path, write_rows, ray_python) -> OnTwoNodes:
    return OnTwoNodes(tmp_path, write_rows(demo_records(400)), ray_python)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["--ray", "jobs/on_ray.py"])
def test_a_job_on_ray_survives_the_loss_of_a_node(on_two_nodes, by):
    """When the second node is gone, its worker waits for room on the first; the job does not."""
    job = on_two_nodes.job("out")
    command = ["-m", "batchgen", "run", job, "--ray", "ADDRESS"]
    if by != "--ray":
        command = [ON_RAY, job, "--workers", "2", "--gpus", "0", "--cpus", "1", "--address", "ADDRESS"]
    told = on_two_nodes.drive("lose", *command)
    assert told["code"] == 0 and 12 <= told["shards"] < 40
    assert on_two_nodes.is_as_of_a_plain_run()


@pytest.mark.slow
def test_a_run_on_ray_that_is_stopped_has_its_workers_drain(on_two_nodes):
    told = on_two_nodes.drive("stop", "-m", "batchgen", "run", on_two_nodes.job("out"), "--ray", "ADDRESS")
    assert told["code"] == cli.EXIT_STOPPED and told["shards"] < 40
    on_two_nodes.run("out")
    assert on_two_nodes.is_as_of_a_plain_run()


@pytest.mark.slow
def test_a_step_of_ray_data_gives_the_responses_of_a_run(installed, tmp_path):
    records = [{"id": f"r{number}", **record} for number, record in enumerate(demo_records(60))]
    rows, job = tmp_path / "in.parquet", tmp_path / "job.toml"
    pq.write_table(pa.Table.from_pylist(records), rows)
    job.write_text(f"[input]\nid = 'id'\n[model]\npath = '{MODEL}'\n")
    python = installed("ray==2.60.0", "pandas", "pyarrow") / "python"
    ours = instant(tmp_path / "instant")
    ours["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{ours['PATH']}"
    subprocess.run(["batchgen", "run", job, rows, "--output", tmp_path / "plain"], env=ours, check=True)
    command = [python, JOBS / "on_ray_data.py", job, rows, tmp_path / "out", "--rows", "25", "--gpus", "0"]
    subprocess.run(command, env=ours, check=True, capture_output=True)

    def read(folder: Path) -> list[dict]:
        table = ds.dataset(folder).to_table().drop(["row"])
        return sorted(table.to_pylist(), key=lambda row: row["id"])

    assert len(read(tmp_path / "plain")) == 60
    assert read(tmp_path / "out") == read(tmp_path / "plain")
