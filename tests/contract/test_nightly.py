"""jobs/nightly: systemd takes the units, a stop is a stop, and one night never runs beside another."""

import configparser
import fcntl
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MODEL, demo_records
from processes import instant

from batchgen.job.spec import OutputTable, load
from batchgen.runner.supervisor import GRACE

NIGHTLY = Path(__file__).parent.parent.parent / "jobs" / "nightly"


def unit(name: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parsed.optionxform = str
    parsed.read_string((NIGHTLY / name).read_text())
    return parsed


def test_systemd_takes_the_units(tmp_path):
    """As they are, but for the program, which has to be there."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is missing (Debian package systemd): NOTHING HAS CHECKED jobs/nightly/*.service")
    program = Path(sys.executable).with_name("batchgen")
    names = sorted(path.name for path in NIGHTLY.iterdir() if path.suffix in (".service", ".timer"))
    assert len(names) >= 3
    for name in names:
        text = (NIGHTLY / name).read_text().replace("/srv/batchgen/.venv/bin/batchgen", str(program))
        (tmp_path / name).write_text(text)
    units = [str(tmp_path / name) for name in names]
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "batchgen" in line]
    assert (done.returncode, ours) == (0, [])


def test_the_service_lets_a_stop_drain_and_takes_75_for_what_it_is():
    service = unit("batchgen.service")["Service"]
    assert service["KillMode"] == "mixed"
    assert service["KillSignal"] == "SIGTERM"
    assert int(service["TimeoutStopSec"]) > OutputTable(path="").drain + GRACE
    assert service["SuccessExitStatus"] == service["RestartForceExitStatus"] == "75"
    assert service["Type"] == "exec"


def test_the_service_can_write_to_its_own_folder_and_talk_to_itself_alone():
    service = unit("batchgen.service")["Service"]
    assert (service["ProtectSystem"], service["ReadWritePaths"]) == ("strict", service["WorkingDirectory"])
    assert (service["IPAddressDeny"], service["IPAddressAllow"]) == ("any", "localhost")
    assert {"AF_UNIX", "AF_INET", "AF_NETLINK"} <= set(service["RestrictAddressFamilies"].split())  # of ZMQ and gloo
    assert service["NoNewPrivileges"] == service["PrivateTmp"] == service["ProtectHome"] == "true"
    assert service["Environment"] == f"HOME=/var/cache/{service['CacheDirectory']}"
    assert "PrivateDevices" not in service and "MemoryDenyWriteExecute" not in service  # GPUs, compiled kernels


def test_systemd_finds_the_service_well_enclosed(tmp_path):
    (tmp_path / "batchgen.service").write_text((NIGHTLY / "batchgen.service").read_text())
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=40", str(tmp_path / "batchgen.service")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_failure_starts_what_tells_of_it():
    failed = unit("batchgen.service")["Unit"]["OnFailure"]
    assert unit(failed)["Service"]["Type"] == "oneshot"
    assert "--unit=batchgen.service" in unit(failed)["Service"]["ExecStart"]


def test_the_nightly_job_is_valid_and_incremental():
    spec = load(str(NIGHTLY / "nightly.toml"), {})
    assert spec.input.incremental
    assert int(unit("batchgen.service")["Service"]["TimeoutStopSec"]) == spec.output.drain + 90


@pytest.fixture
def site(tmp_path):
    """What is /srv/batchgen in the files."""
    site = tmp_path / "srv"
    (site / ".venv").mkdir(parents=True)
    (site / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    (site / "model").symlink_to(MODEL)
    (site / "nightly.toml").write_text((NIGHTLY / "nightly.toml").read_text())
    (site / "in").mkdir()
    return site


def cron(site: Path) -> list[str]:
    """What cron would start."""
    lines = (NIGHTLY / "crontab").read_text().splitlines()
    [line] = [line for line in lines if not line.startswith(("#", "MAILTO="))]
    return ["/bin/sh", "-c", line.split(maxsplit=5)[5].replace("/srv/batchgen", str(site))]


def test_cron_starts_no_second_run_while_one_is_going(site):
    with (site / "nightly.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert subprocess.run(cron(site)).returncode == 0
    assert (site / "nightly.log").read_text() == ""


def test_a_night_by_cron_answers_what_is_new(site):
    (site / "in" / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in demo_records(5)))
    assert subprocess.run(cron(site), env=instant(site / "instant")).returncode == 0
    assert "done: 5 rows, 5 responses, 0 rejects" in (site / "nightly.log").read_text()


def test_what_cron_prints_and_so_mails_is_the_log_of_a_night_that_failed(site):
    quiet = subprocess.run(cron(site), env=instant(site / "instant"), capture_output=True, text=True)
    assert (quiet.returncode, quiet.stdout) == (0, "")  # an empty folder
    (site / "in").rmdir()
    failed = subprocess.run(cron(site), env=instant(site / "again"), capture_output=True, text=True)
    assert "in: no such file or folder" in failed.stdout


def test_the_report_of_a_night_is_made_of_what_the_run_says(site):
    (site / "report").symlink_to(NIGHTLY / "report")
    rows = [{"text": ""}, *demo_records(5)]
    (site / "in" / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in rows))
    job = (site / "nightly.toml").read_text()
    (site / "nightly.toml").write_text(job.replace("#[notify]\n#command", "[notify]\ncommand"))
    assert subprocess.run(cron(site), env=instant(site / "instant")).returncode == 0
    log = (site / "nightly.log").read_text()
    assert ": done (0), 20" in log
    assert "  6 rows in" in log and "rejects: empty 1\n" in log
    assert f"  {site}/in/a.jsonl:1: empty" in log
