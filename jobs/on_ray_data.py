"""batchgen as a step of a Ray Data pipeline: rows come from where Ray Data reads them, and responses go on from here.

    python jobs/on_ray_data.py job.toml rows/*.parquet out/ --rows 50000

A sketch to copy. Each call generates for some 10,000 rows, with an engine of its own: its start is lost each time.
What is lost with a node is the batch. For a dataset that is read from files and written to files `batchgen run` is
better, on Ray too (on_ray.py): it keeps what has finished, and the order of the rows. The job names the column with ids
(`[input] id`), by which seeds are drawn: a row's number is that in its batch.
"""

import argparse
import subprocess
import tempfile

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import ray


def generate(rows: pa.Table, job: str) -> pa.Table:
    """The output rows of these rows; those that are rejected have none."""
    with tempfile.TemporaryDirectory() as folder:
        pa.parquet.write_table(rows, f"{folder}/rows.parquet")
        command = ["batchgen", "run", job, f"{folder}/rows.parquet", "--output", f"{folder}/out", "--workers", "1"]
        subprocess.run(command, check=True)
        return pa.dataset.dataset(f"{folder}/out").to_table()


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("job", help="job file, without [input] path and [output] path; every node can read it")
    flags.add_argument("rows", nargs="+", help="Parquet files")
    flags.add_argument("out", help="folder for Parquet files")
    flags.add_argument("--rows", dest="batch", type=int, default=50_000, help="of a batch")
    flags.add_argument("--gpus", type=int, default=1, help="of an engine")
    flags.add_argument("--address", default=None, help="of the cluster; auto: the one that this is started in")
    asked = flags.parse_args()
    ray.init(address=asked.address)
    ray.data.read_parquet(asked.rows).map_batches(
        generate,
        fn_kwargs={"job": asked.job},
        batch_size=asked.batch,
        batch_format="pyarrow",
        num_gpus=asked.gpus,
    ).write_parquet(asked.out)


if __name__ == "__main__":
    main()
