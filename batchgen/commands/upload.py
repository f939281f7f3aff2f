"""An export in a bucket: made on this machine, and uploaded when it is whole."""

from pathlib import Path

from ..errors import JobError
from ..host.bucket import Bucket
from ..output.store import Place
from .export_formats import check_ours, check_taken


def check(uri: str, wants_folder: bool, overwrite: bool) -> None:
    """Raises JobError if an upload would be refused, before anything is made for it."""
    folder, name = folder_and_name(uri)
    beside, inside = Bucket(folder), [found.name for found in Bucket(uri).below()]
    is_file = beside.has(name)
    if not is_file and not inside:
        return
    check_taken(uri, wants_folder == is_file, wants_folder, overwrite)
    if wants_folder:
        check_ours(uri, inside)


def upload(made: Path, uri: str) -> None:
    """Puts a file, or all files of a folder, in the place of what an earlier export has put there. Of a folder the
    card comes last, and what is left of the earlier one goes. Raises JobError or Stopped."""
    if made.is_file():
        folder, name = folder_and_name(uri)
        Bucket(folder).upload(name, made)
        return
    place = Bucket(uri)
    names = sorted((str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()), reverse=True)
    for name in names:  # `data` before `README.md`
        place.upload(name, made / name)
    place.delete([found.name for found in place.below() if found.name not in names])


def lies_in(uri: str, out: Place) -> bool:
    """Whether a place in a bucket is an output folder or in it."""
    return f"{uri}/".startswith(f"{str(out).rstrip('/')}/")


def folder_and_name(uri: str) -> tuple[str, str]:
    """The folder of an object, and its name there. Raises JobError."""
    folder, _, name = uri.rpartition("/")
    if folder.endswith("/") or not name:
        raise JobError(f"--to {uri}: names no file or folder in a bucket")
    return folder, name
