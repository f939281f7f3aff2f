"""The manual: pages of Markdown beside this file, shipped in the wheel, since GPU machines often have no network."""

from importlib.resources import files

# Each with a line on what is in it, in the order in which a reader needs them.
PAGES = {
    "installing": "Python, vLLM and PyTorch on a CPU or a GPU machine",
    "job-file": "every key, its type and default, and what changing it does to a job",
    "models": "which models work, prompt formats, the hub",
    "input": "files, shapes of rows, ids, seeds, limits, input that grows",
    "output": "the folder, its columns, how to read it",
    "running": "resuming, signals, exit codes, deadlines, several GPUs",
    "slurm-and-nightly": "job arrays on a cluster, a job every night",
    "checking": "plan, status, verify, rejects, retry",
    "exporting": "one file, or a dataset to publish",
    "performance": "what was measured, and how to measure it here",
    "security": "whom batchgen trusts, and what it withstands",
}


def text(page: str) -> str:
    return (files(__package__) / f"{page}.md").read_text(encoding="utf-8")
