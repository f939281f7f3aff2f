"""Other users of the machine, of the same group above all: what they have put where a run works is never followed,
waited for or believed, and what they could change is not taken for the user's own."""

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from conftest import MODEL, demo_records
from faulty import run_here, spec_of
from msgspec.structs import replace
from neighbours import ATTACKER, DONE, TEAM, VICTIM, as_user, instant_engine, runs, snapshot

from batchgen.commands import export, retry, status, verify
from batchgen.engine import scratch
from batchgen.errors import JobError
from batchgen.host import safeopen
from batchgen.input.plan import Shard
from batchgen.output import layout, owners
from batchgen.output import record as records
from batchgen.output.store import at


@pytest.fixture
def lab():
    """A group's folder on a shared disk."""
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        place = Path(root) / "lab"
        place.mkdir()
        os.chown(place, 0, TEAM)
        place.chmod(0o2775)
        yield place


@pytest.fixture
def source(lab) -> Path:
    path = lab.parent / "in.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in demo_records(6)) + "no\n")
    return path


@pytest.fixture
def home(lab) -> Path:
    """The victim's, which nobody else may enter."""
    path = lab.parent / "home"
    (path / "thesis").mkdir(parents=True)
    (path / "thesis" / "part-00000.chapter.tex").write_text("precious")
    (path / "bashrc").write_text("mine")
    for each in (path, *path.rglob("*")):
        os.chown(each, VICTIM, VICTIM)
    path.chmod(0o700)
    return path


def put(user: int, path: Path, mode: int = 0o755) -> Path:
    """A folder of a user's."""
    path.mkdir()
    os.chown(path, user, TEAM)
    path.chmod(mode)
    return path


def link(user: int, path: Path, to: Path) -> None:
    path.symlink_to(to)
    os.chown(path, user, TEAM, follow_symlinks=False)


# --- whose the output folder is


@pytest.mark.parametrize("mode", [0o755, 0o777])
def test_a_folder_that_another_user_prepared_is_refused_and_its_links_lead_nowhere(lab, source, home, mode):
    out = put(ATTACKER, lab / "out", mode)
    put(ATTACKER, out / "_state", mode)
    link(ATTACKER, out / "_state" / "engine.log", home / "bashrc")
    before = snapshot(home)
    assert runs(VICTIM, source, out).startswith(f"{out}: belongs to user {ATTACKER}, who may put anything into it")
    assert (snapshot(home), os.listdir(out), os.listdir(out / "_state")) == (before, ["_state"], ["engine.log"])


@pytest.mark.parametrize(("mode", "who"), [(0o775, f"group {TEAM}"), (0o777, "everybody")])
@pytest.mark.parametrize("which", ["", "_state", "_state/journal"])
def test_a_folder_that_others_may_write_to_is_refused(lab, source, mode, who, which):
    assert runs(VICTIM, source, lab / "out") == DONE
    (lab / "out" / which).chmod(mode)
    (lab / "out" / "_SUCCESS").unlink()
    assert runs(VICTIM, source, lab / "out").startswith(f"{lab / 'out' / which}: {who} may write to it")
    (lab / "out" / which).chmod(0o755)
    assert runs(VICTIM, source, lab / "out") == DONE


def test_what_a_run_makes_nobody_else_may_write_to_whatever_the_umask(lab, source):
    assert runs(VICTIM, source, lab / "out", umask=0, group=TEAM) == DONE
    assert not [path for path in (lab / "out").rglob("*") if path.stat().st_mode & 0o022]
    (lab / "out" / "_SUCCESS").unlink()
    assert runs(VICTIM, source, lab / "out", umask=0, group=TEAM) == DONE


def test_a_team_shares_a_folder_if_it_says_so(lab, source):
    out = lab / "out"
    assert runs(ATTACKER, source, out, umask=0o002, shared=True) == DONE
    made = [out, *out.rglob("*")]
    assert all(path.stat().st_mode & 0o020 and path.stat().st_gid == TEAM for path in made)
    next(out.glob("part-*")).unlink()
    assert "belongs to user" in runs(VICTIM, source, out)
    assert runs(VICTIM, source, out, umask=0o002, shared=True) == DONE


@pytest.mark.parametrize("which", ["_state", "_rejects", "_segments", "_state/journal", "_state/quarantine"])
def test_in_a_teams_folder_a_link_in_the_place_of_a_folder_is_not_followed(lab, source, home, which):
    out = lab / "out"
    assert runs(ATTACKER, source, out, umask=0o002, shared=True) == DONE
    next(out.glob("part-*")).unlink()
    shutil.rmtree(out / which, ignore_errors=True)
    link(ATTACKER, out / which, home / "thesis")
    before = snapshot(home)
    told = f"{out / which}: is a link, and nothing outside the output folder is touched; remove it"
    assert runs(VICTIM, source, out, shared=True) == told
    writing = verify.Writing(quarantine=True, close=True, shared=True)
    assert as_user(VICTIM, lambda: verify.verify(out, writing)) == told
    assert as_user(VICTIM, lambda: status.look(out)) == told
    assert snapshot(home) == before


def test_a_users_own_link_to_an_output_folder_is_followed(lab, source, home):
    link(VICTIM, lab / "out", put(VICTIM, home / "far"))
    assert runs(VICTIM, source, lab / "out") == DONE
    assert (home / "far" / "_SUCCESS").exists()


def test_another_users_link_to_an_output_folder_is_refused(lab, source, home):
    link(ATTACKER, lab / "out", put(VICTIM, home / "far"))
    assert f"is a link that user {ATTACKER} made; name what it leads to" in runs(VICTIM, source, lab / "out")
    assert not list((home / "far").iterdir())


def test_the_private_group_of_a_user_counts_as_the_user(tmp_path, lab):
    (tmp_path / "out").mkdir(mode=0o775)
    (tmp_path / "out").chmod(0o775)  # of root's own group
    owners.check_folders(tmp_path / "out", shared=False)
    out = put(VICTIM, lab / "out", 0o775)
    os.chown(out, VICTIM, VICTIM)
    assert (
        as_user(VICTIM, lambda: owners.check_folders(out, False)) == "None"
    )  # whom this machine does not know by name
    os.chown(tmp_path / "out", 0, TEAM)
    with pytest.raises(JobError, match=f"group {TEAM} may write to it"):
        owners.check_folders(tmp_path / "out", shared=False)


def test_on_a_share_that_shows_all_files_as_one_users_it_is_ours(lab, monkeypatch):
    """As with NFS's root_squash: who we are there only a file that we make can tell."""
    out = put(VICTIM, lab / "out")
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    assert as_user(VICTIM, lambda: owners.check_folders(out, False)) == "None"
    assert "belongs to user" in as_user(ATTACKER, lambda: owners.check_folders(out, False))
    assert not list(out.iterdir())


def test_on_a_share_that_keeps_no_modes_they_say_nothing(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o777)
    real = tempfile.TemporaryDirectory

    class Open(real):
        def __enter__(self):
            os.chmod(self.name, 0o777)
            return self.name

    with pytest.raises(JobError, match="everybody may write to it"):
        owners.check_folders(tmp_path / "out", shared=False)
    monkeypatch.setattr(tempfile, "TemporaryDirectory", Open)
    owners.check_folders(tmp_path / "out", shared=False)


def test_root_takes_a_users_folder_only_under_that_users_sudo(lab, monkeypatch):
    out = put(VICTIM, lab / "out")
    with pytest.raises(JobError, match=f"belongs to user {VICTIM}"):
        owners.check_folders(out, shared=False)
    monkeypatch.setenv("SUDO_UID", str(VICTIM))
    owners.check_folders(out, shared=False)


# --- what stands in the place of a file

IN_PLACE = {
    "a link": lambda path: path.symlink_to("/etc/hostname"),
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "20 GB": lambda path: (path.touch(), os.truncate(path, 20_000_000_000)),
}
FIRST = Shard(0, 3, 0, 3, 0, 0)
FILES = {
    "_job.json": ("verify", "status", "export", "run"),
    "_SUCCESS": ("verify", "run"),
    "part-00000-of-00003.parquet": ("verify", "export", "run"),
    "_rejects/part-00001-of-00003.jsonl": ("verify",),
    "_state/checksums/part-00000-of-00003.json": ("verify", "export", "run"),
    "_state/journal/part-00002.x.journal": ("run again",),
    "_state/claims/part-00002": ("run again",),
    "_state/claims/job": ("run again",),
    "_state/workers/x.1.1": ("status", "run again"),
    "_state/grown/{}.json": ("verify", "status", "export", "run"),
}


@pytest.fixture(scope="module")
def finished():
    """A folder of root's with a finished job, which anybody may read."""
    with tempfile.TemporaryDirectory() as root:
        os.chmod(root, 0o755)
        place = Path(root)
        (place / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in demo_records(7)) + "no\n")
        assert runs(0, place / "in.jsonl", place / "out") == DONE
        yield place


@pytest.mark.parametrize("kind", IN_PLACE)
@pytest.mark.parametrize(("name", "commands"), FILES.items(), ids=FILES)
def test_what_is_no_file_of_ours_is_one_line(finished, tmp_path, name, commands, kind):
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    path = out / name.format(records.read_job(at(out)).fingerprint)
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        path.unlink()
    if "run again" in commands:
        (out / "part-00002-of-00003.parquet").unlink()
    IN_PLACE[kind](path)
    before = snapshot(out)
    for command in commands:
        said = {
            "verify": lambda: as_user(0, lambda: verify.verify(out).problems),
            "status": lambda: as_user(0, lambda: status.look(out).state),
            "export": lambda: as_user(0, lambda: export.export(out, tmp_path / "x.jsonl", "", "", False, False)),
        }.get(command, lambda: runs(0, finished / "in.jsonl", out))()
        assert "\n" not in said
        if "workers" in name:  # others' files may lie there: some servers put their own into every folder
            assert said in ("done", "stopped")
        elif command.startswith("run") and kind == "20 GB" and said == DONE:  # a damaged file like any other
            assert list(out.glob(f"_state/quarantine/{path.name}*"))
        else:
            assert str(path) in said, f"{command}: {said}"
        if not command.startswith("run"):
            assert snapshot(out) == before


# --- a check changes nothing


@pytest.mark.parametrize("user", [0, VICTIM])
def test_any_folder_is_verified_and_nothing_in_it_changes(finished, user):
    (finished / "out" / "_SUCCESS").rename(finished / "success")
    before = snapshot(finished / "out")
    verdict = as_user(user, lambda: verify.verify(finished / "out"))
    assert verdict.startswith("Verdict(counts=Counts(rows=8, responses=7, rejects={'invalid_json': 1}, ")
    assert "), problems=[], " in verdict
    assert verdict.endswith("is_closed=False, closed=False, alone=0)")
    assert snapshot(finished / "out") == before
    (finished / "success").rename(finished / "out" / "_SUCCESS")


def test_a_retry_of_a_folder_that_says_it_is_shared_makes_one_that_is_not(tmp_path):
    old = spec_of(tmp_path / "in.jsonl", tmp_path / "out", output={"shared": True})
    assert not retry._changed(old, {"output": {"path": str(tmp_path / "new")}}).output.shared


@pytest.mark.parametrize("how", ["quarantine", "close"])
def test_verify_writes_only_in_the_users_own_folder(finished, tmp_path, how):
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    os.chown(out, ATTACKER, ATTACKER)
    with pytest.raises(JobError, match=f"belongs to user {ATTACKER}"):
        verify.verify(out, verify.Writing(**{how: True}))


def test_a_damaged_shard_is_named_and_left_unless_it_shall_be_set_aside(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    path = out / layout.part(FIRST)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    before = snapshot(out)
    [problem] = verify.verify(out).problems
    assert problem.endswith(f"`batchgen verify {out} --quarantine` sets it aside, and the next run makes it again")
    assert snapshot(out) == before
    [problem] = verify.verify(out, verify.Writing(quarantine=True)).problems
    assert f"moved to {out}/_state/quarantine/" in problem
    assert not path.exists()


def test_the_digest_is_what_sha256sum_says(finished):
    command = "sha256sum part-*.parquet _rejects/*.jsonl | sha256sum"
    said = subprocess.run(command, shell=True, cwd=finished / "out", capture_output=True, text=True).stdout.split()[0]
    assert verify.verify(finished / "out").digest == said != hashlib.sha256(b"").hexdigest()


# --- other places


def test_a_link_that_another_user_made_is_no_place_for_an_export(finished, lab, home):
    link(ATTACKER, lab / "x.jsonl", home / "bashrc")
    said = as_user(VICTIM, lambda: export.export(finished / "out", lab / "x.jsonl", "", "", False, True))
    assert said == f"--to {lab}/x.jsonl: is a link that user {ATTACKER} made; name what it leads to"
    assert (home / "bashrc").read_text() == "mine"


def test_a_folder_of_the_users_own_that_was_given_the_name_of_an_exports_hidden_one_stays(finished, lab):
    """Whoever may write to the folder above can rename it."""
    thesis = put(VICTIM, lab / ".x.jsonl.batchgen")
    (thesis / "chapter.tex").write_text("precious")
    said = as_user(VICTIM, lambda: export.export(finished / "out", lab / "x.jsonl", "", "", False, True))
    assert "holds what no export has put there (chapter.tex); move it away" in said
    assert (thesis / "chapter.tex").exists()


def test_a_file_that_replaces_another_replaces_a_link_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "precious").write_text("x")
    (tmp_path / "job_7.sbatch").symlink_to("precious")
    safeopen.replace(tmp_path / "job_7.sbatch", b"#!/bin/bash")
    assert (tmp_path / "precious").read_text() == "x"
    assert (tmp_path / "job_7.sbatch").read_bytes() == b"#!/bin/bash"
    assert len(list(tmp_path.iterdir())) == 2


def test_compiled_programs_of_another_user_are_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    ours = scratch.Scratch()
    cache = tmp_path / f"torchinductor_{os.getuid()}"
    assert ours.environment()["TORCHINDUCTOR_CACHE_DIR"] == str(cache)
    os.chown(cache, ATTACKER, ATTACKER)
    assert "TORCHINDUCTOR_CACHE_DIR" not in ours.environment()
    ours.close()


# --- input


@pytest.fixture
def drop(lab, home) -> Path:
    """A folder that others may drop files into, with a link to a secret and one to itself."""
    drop = put(VICTIM, lab / "drop", 0o777)
    (drop / "a.jsonl").write_text('{"text": "Monday"}\n')
    (home / "secret.cfg").write_text("key = AKIASECRET\n")
    link(ATTACKER, drop / "b.jsonl", home / "secret.cfg")
    link(ATTACKER, drop / "loop", drop)
    return drop


@pytest.mark.parametrize("named", ["", "*.jsonl", "**/*"])
def test_links_in_an_input_folder_are_passed_over_with_a_warning(drop, tmp_path, capfd, named):
    assert runs(0, drop / named, tmp_path / "out") == DONE
    assert "AKIASECRET" not in "".join(path.read_text(errors="replace") for path in (tmp_path / "out").glob("_r*/*"))
    assert verify.verify(tmp_path / "out").counts.rows == 1
    assert " skipped (" in capfd.readouterr().err


def test_a_link_is_read_if_it_is_named_or_asked_for(drop, tmp_path, batchgen):
    for more in (["--follow-links", drop], [drop / "b.jsonl"]):
        said = batchgen("plan", *more, "--model", MODEL, "--output", tmp_path / "out")
        assert "rejects        1 (invalid_json 1)" in said.stdout


def test_a_folder_of_nothing_but_links_says_what_to_do(tmp_path, batchgen):
    """As a snapshot in the hub's cache is."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0a1b").write_text('{"text": "Monday"}\n')
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "train.jsonl").symlink_to("../blobs/0a1b")
    flags = ["--model", MODEL, "--output", tmp_path / "out"]
    said = batchgen("plan", tmp_path / "snapshot", *flags)
    assert (said.exit_code, said.stderr.count("\n")) == (2, 1)
    assert "1 link skipped" in said.stderr and "--follow-links ([input] follow_links)" in said.stderr
    assert batchgen("plan", tmp_path / "snapshot", *flags, "--follow-links").exit_code == 0


def test_a_job_that_has_read_linked_files_before_goes_on(tmp_path, batchgen):
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "a.jsonl").write_text('{"text": "Monday"}\n')
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "far")
    (tmp_path / "in" / "b.jsonl").symlink_to(tmp_path / "far" / "b")
    (tmp_path / "far" / "b").write_text('{"text": "Friday"}\n')
    out = tmp_path / "out"
    followed = spec_of(tmp_path / "in", out)
    run_here(instant_engine(), replace(followed, input=replace(followed.input, follow_links=True)))
    assert runs(0, tmp_path / "in", out) == DONE
    assert verify.verify(out).counts.rows == 2


def test_a_pipe_in_the_place_of_an_input_file_is_one_line(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished, tmp_path / "copy")
    record = records.read_job(at(tmp_path / "copy" / "out"))
    os.mkfifo(tmp_path / "in.jsonl")
    path = tmp_path / "in.jsonl"
    file = replace(record.plan.files[0], path=str(path))
    forged = replace(record, plan=records.Plan([file], record.plan.shards))
    (tmp_path / "copy" / "out").rename(out)
    (out / "_job.json").write_bytes(records.written(forged))
    with pytest.raises(JobError, match="needs a regular file"):
        verify.verify(out)
