"""What of a job went wrong: its rejected rows, and the segments of a translation that no try got right."""

from collections.abc import Iterator
from typing import Any

from ..errors import JobError
from ..input.plan import locator
from ..output import segments, shard, store
from ..output.store import Place
from ..task.segment_rows import SegmentRow
from .verify import open_finished


def rejected(out: Place, only: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where the row is, its reject line) of every rejected row, or of those with the given reasons."""
    folder = store.at(out)
    record, _ = open_finished(folder)
    place = locator(record.plan)
    lines = (line for planned in record.plan.shards for line in shard.read_rejects(folder, planned))
    return ((place(line["row"]), line) for line in lines if not only or line["reason"] in only)


def failed_segments(out: Place) -> Iterator[tuple[str, SegmentRow]]:
    """(where the row is that has it first, the segment) of every segment that fails a check, of the shards that are
    there. Raises JobError if the job is no translation."""
    folder = store.at(out)
    record, spec = open_finished(folder)
    if not spec.translate.fields:
        raise JobError(
            f"{out}: is no translation, which alone has segments; responses that fail a check are told by the column "
            "failed_checks"
        )
    place = locator(record.plan)
    rows = (row for planned in record.plan.shards for some in segments.read(folder, planned) for row in some)
    return ((place(row.row), row) for row in rows if row.failed_checks)
