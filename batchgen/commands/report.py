"""A page about the results of one or more jobs: one HTML file to look at in a browser."""

from collections.abc import Sequence
from pathlib import Path

from ..errors import JobError, on_disk
from ..host import safeopen
from ..host.bucket import Bucket
from ..job.output_path import check_output_path
from ..output import owners
from ..output.store import Place
from ..report import make
from ..report.page import is_page
from . import upload

_HEAD = 4096  # bytes in which a page says that it is one


def report_to_bucket(outs: Sequence[Place], uri: str, overwrite: bool = False) -> int:
    """Puts the page into a bucket. Gives its bytes. The parameters are as of `report`. Raises JobError or Stopped."""
    check_output_path("--to", uri)
    folder, name = upload.folder_and_name(uri)
    for out in outs:
        if upload.lies_in(uri, out):
            raise JobError(f"{uri}: lies in the output folder {out}, which is a dataset; name another place")
    place = Bucket(folder)
    if not overwrite and place.has(name):
        with place.open(name) as file:
            _check_page(uri, file.read(_HEAD))
    content = make.page_of(outs)
    place.put(name, content)
    return len(content)


def report(outs: Sequence[Place], to: Path, overwrite: bool = False) -> int:
    """Writes the page about these output folders to a file, which appears whole or not at all. Gives its bytes.

    overwrite: replace a file that is no such page. Raises JobError or Stopped.
    """
    with on_disk(to.parent):
        check_output_path("--to", str(to), in_bucket=False)
        owners.check_link(f"--to {to}", to)
        _check_place(outs, to, overwrite)
        content = make.page_of(outs)
        safeopen.replace(to, content, durable=True)
    return len(content)


def _check_place(outs: Sequence[Place], to: Path, overwrite: bool) -> None:
    """Raises JobError where a page would do harm or cannot be."""
    place = to.resolve()
    for out in outs:
        if Path(str(out)).resolve() in place.parents:
            raise JobError(f"{to}: lies in the output folder {out}, which is a dataset; name another place")
    if not place.parent.is_dir():
        raise JobError(f"{to.parent}: no such folder; make it first")
    if to.is_symlink() or (to.exists() and not to.is_file()):
        raise JobError(f"--to {to}: is not a file, which alone can appear whole or not at all; name one")
    if to.exists() and not overwrite:
        with safeopen.reading(to) as file:
            _check_page(to, file.read(_HEAD))


def _check_page(place: Place, head: bytes) -> None:
    """Raises JobError if what is there begins as no page does."""
    if not is_page(head):
        raise JobError(f"{place}: is there already, and is no such page; give --overwrite to replace it")
