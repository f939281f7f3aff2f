"""Finished shards as another sampler would have left them."""

from pathlib import Path

import pyarrow.parquet as pq

from batchgen.output import layout, shard
from batchgen.output.record import read_job
from batchgen.output.sealed import sealed
from batchgen.output.store import at


def say(part: Path, **facts: str | None) -> None:
    """Has a finished shard say other things of itself, its checksums too. facts: None takes one out."""
    out = at(part.parent)
    [planned] = [each for each in read_job(out).plan.shards if layout.part(each) == part.name]
    table, footer = pq.read_table(part), pq.read_metadata(part)
    about = {name: text for name, text in (shard.facts(footer) | facts).items() if text is not None}
    with pq.ParquetWriter(part, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({shard.PREFIX + name: text for name, text in about.items()})
    sums = shard.read_checksums(out, planned)
    sums.parquet, sums.size = shard._digest(part.read_bytes()), part.stat().st_size
    sums.sampler = [about[name] for name in shard.DRAWN if name in about]
    sums.device = about["device"]
    (part.parent / layout.checksums(planned)).write_bytes(sealed(sums))
