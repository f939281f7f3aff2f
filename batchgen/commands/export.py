"""The results of a job as one file or folder, in the forms that other programs take."""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import JobError, Stopped, on_disk
from ..host.safeopen import sync_folder
from ..input.plan import COMPRESSION_BY_ENDING
from ..job.output_path import check_output_path
from ..output import owners, record, store
from ..output.store import Place
from . import push, upload
from .export_formats import OF_RESPONSES, STDOUT, WRITERS, check_ours, check_taken
from .results import Results, records_of, results_of


def export_to_hub(out: Place, uri: str, columns: str, partial: bool, overwrite: bool, public: bool) -> Results:
    """Pushes the finished results of a job to the Hugging Face hub, as the dataset folder that `hf` makes.

    uri: hf://datasets/ORG/NAME; public: of a repository that is made for it; the others as of `export`. Raises JobError
    or Stopped.
    """
    name = push.name_of(uri)
    push.check(name, overwrite)
    with _scratch() as scratch:
        made = scratch / name.rpartition("/")[2]
        results = export(out, made, "hf", columns, partial, overwrite=False)
        push.push(made, name, public)
    return results


def export_to_bucket(out: Place, uri: str, format: str, columns: str, partial: bool, overwrite: bool) -> Results:
    """Writes the finished results of a job to a file or folder in a bucket. It takes as much room in TMPDIR meanwhile.

    uri: of the file or folder; the others as of `export`. Raises JobError or Stopped.
    """
    uri = uri.rstrip("/")
    name = Path(uri.rpartition("/")[2])
    check_output_path("--to", uri)
    format = format or _format_of(name)
    job = record.job_of(store.at(out))
    if upload.lies_in(uri, out):
        raise JobError(f"{uri}: lies in the output folder, which is a dataset of its own; name another place")
    if uri in [file.path for file in job.plan.files]:
        raise JobError(f"{uri}: is an input of the job; name another file")
    upload.check(uri, format == "hf", overwrite)
    with _scratch() as scratch:
        results = export(out, scratch / name, format, columns, partial, overwrite=False)
        upload.upload(scratch / name, uri)
    return results


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder to make in what is then uploaded. Raises Stopped that says where the room was to be, if it ran out."""
    with tempfile.TemporaryDirectory(prefix="batchgen-export-") as scratch:
        try:
            yield Path(scratch)
        except Stopped as stopped:
            if not (isinstance(why := stopped.__cause__, OSError) and why.errno in (errno.ENOSPC, errno.EDQUOT)):
                raise
            place = tempfile.gettempdir()
            raise Stopped(
                f"{place}: {why.strerror}; what is uploaded is made there first: set TMPDIR to a folder with more "
                "room, and run the same command again"
            ) from None


def export(out: Place, to: Path, format: str, columns: str, partial: bool, overwrite: bool) -> Results:
    """Writes the finished results of a job to a file, or to a folder if `format` is hf. It appears whole or not at all.

    to: `-` is stdout, where lines appear as they are made; format: of export_formats.WRITERS, or empty, if the ending
    of `to` says it; columns: names with commas between, or empty for all; partial: take what is there of an unfinished
    job. Raises JobError or Stopped.
    """
    format = format or _format_of(to)
    if columns and format in OF_RESPONSES:
        raise JobError(f"--columns: lines of {format} have no columns to pick; leave it out")
    if to == STDOUT:
        if format in ("parquet", "hf"):
            raise JobError(f"--to -: stdout takes lines, and {format} has none; name a file")
        results = _asked_of(out, format, columns, partial)
        WRITERS[format](results, to)
        return results
    with on_disk(to.parent):
        check_output_path("--to", str(to), in_bucket=False)
        owners.check_link(f"--to {to}", to)
        if to.exists() and not (to.is_file() or to.is_dir()):
            raise JobError(f"--to {to}: is not a file, which alone can appear whole or not at all; for stdout give -")
        results = _asked_of(out, format, columns, partial)
        place = to.resolve()
        _check_place(results, place, format == "hf", overwrite)
        with _taking_the_place_of(place) as made:
            WRITERS[format](results, made)
    return results


def _asked_of(out: Place, format: str, columns: str, partial: bool) -> Results:
    """Raises JobError where a format cannot hold what the job makes."""
    results = results_of(store.at(out), columns, partial)
    is_translated = bool(results.spec.translate.fields)
    if format in OF_RESPONSES and (is_translated or results.spec.score.mode != "off"):
        what = "translated records" if is_translated else "scores"
        raise JobError(f"--format {format}: {what} are no responses; take jsonl, csv, parquet or hf")
    if format == "openai-batch" and results.spec.sweep.method:
        raise JobError("--format openai-batch: has one answer to a request, and a sweep several; take jsonl or parquet")
    return records_of(results, format, columns) if is_translated else results


def _format_of(to: Path) -> str:
    if to == STDOUT:
        return "jsonl"
    name = to.with_suffix("") if to.suffix in COMPRESSION_BY_ENDING else to
    if to.suffix == ".parquet":
        return "parquet"
    if name.suffix in (".jsonl", ".ndjson"):
        return "jsonl"
    if name.suffix in (".csv", ".tsv"):
        return name.suffix[1:]
    if to.is_dir() or not to.suffix:
        return "hf"
    raise JobError(f"--to {to}: its ending does not tell the format; give --format {', '.join(WRITERS)}")


# --- where to


def _check_place(results: Results, to: Path, wants_folder: bool, overwrite: bool) -> None:
    """Raises JobError where an export would do harm or cannot be."""
    out = Path(results.out.location).resolve()  # of a bucket, nothing that is on this disk
    if not to.parent.is_dir():
        raise JobError(f"{to.parent}: no such folder; make it first")
    if out in (to, *to.parents):
        raise JobError(f"{to}: lies in the output folder, which is a dataset of its own; name another place")
    if str(to) in [file.path for file in results.record.plan.files]:
        raise JobError(f"{to}: is an input of the job; name another file")
    if not to.exists():
        return
    is_other_kind = to.is_dir() != wants_folder or not (to.is_dir() or to.is_file())
    check_taken(to, is_other_kind, wants_folder, overwrite)
    if wants_folder:
        check_ours(to, _names_in(to))


def _names_in(dataset: Path) -> list[str]:
    return [str(path.relative_to(dataset)) for path in [*dataset.iterdir(), *(dataset / "data").glob("*")]]


@contextmanager
def _taking_the_place_of(to: Path) -> Iterator[Path]:
    """Gives a path to make a file or folder at, all of it synced, which then stands at `to`.

    It lies in a hidden folder beside `to`. A kill leaves that behind, and the next export to `to` takes it over.
    """
    hidden = to.with_name(f".{to.name}.batchgen")
    made, replaced = hidden / to.name, hidden / f"{to.name}.replaced"

    def put_back() -> None:
        if replaced.exists() and not to.exists():  # it went wrong between the two renames
            replaced.rename(to)

    with contextlib.suppress(FileExistsError):
        hidden.mkdir(mode=0o700)
    with _locked(hidden) as folder_of_ours:
        _check_left(hidden, folder_of_ours, {made.name, replaced.name})
        put_back()
        _empty(folder_of_ours)
        try:
            yield made
            if to.is_dir():  # a rename replaces a file, but no folder
                to.rename(replaced)
                check_ours(to, _names_in(replaced))  # it became another one, where others may write too
            made.rename(to)
            sync_folder(to.parent)
        finally:
            put_back()
            with contextlib.suppress(OSError):
                _empty(folder_of_ours)
                hidden.rmdir()


def _check_left(hidden: Path, folder: int, ours: set[str]) -> None:
    """Where others may write, one of the user's own folders may have got this name. Raises JobError."""
    left = [name for name in os.listdir(folder) if not stat.S_ISLNK(os.lstat(name, dir_fd=folder).st_mode)]
    if left and not (ours.issuperset(left) and stat.S_IMODE(os.fstat(folder).st_mode) == 0o700):
        raise JobError(f"{hidden}: holds what no export has put there ({left[0]}); move it away")


def _empty(folder: int) -> None:
    """Removes what lies in an open folder. By its descriptor: a name may lead elsewhere by the time it is used."""
    for name in os.listdir(folder):
        if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
            shutil.rmtree(name, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Opens a folder of ours that no other process has locked; gives its descriptor. On a file system without locks
    two exports to one place are not kept apart.

    Raises JobError if another export has it, or if it is not ours alone: in a folder that others may write to,
    whatever stands there under this name may be a link to something that must not be emptied.
    """
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise JobError(f"{path}: is no folder that an export made; remove it, or export to another place") from None
        raise
    try:
        about = os.fstat(file)
        if about.st_uid != os.geteuid() or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise JobError(f"{path}: another user owns it or may write to it; remove it, or export to another place")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(file), os.stat(path))
        except (BlockingIOError, FileNotFoundError):
            ours = False
        except OSError:
            ours = True
        if not ours:
            raise JobError(f"{path}: another export is at work there")
        yield file
    finally:
        os.close(file)
