"""The manual: pages of Markdown beside this file, shipped in the wheel, since GPU machines often have no network."""

import re
from importlib.resources import files

# Each with a line on what is in it, in the order in which a reader needs them.
PAGES = {
    "installing": "Python, vLLM and PyTorch on a CPU or a GPU machine",
    "job-file": "every key, its type and default, and whether results depend on it",
    "models": "which models work, prompt formats, the hub",
    "input": "files, shapes of rows, ids, seeds, limits, input that grows",
    "checks": "responses that are checked, and tried again if they fail",
    "scoring": "how likely the model finds given texts: choices, perplexity; lm-eval, the tasks of the model card",
    "sweeping": "the same rows with several settings, compared: [sweep], metrics and how sure they are",
    "translating": "texts inside of records translated, everything else kept; segments, protection, memory",
    "output": "the folder, its columns, how to read it, how much disk it takes",
    "buckets": "results on S3, Google Cloud Storage or Azure; credentials, promises, costs",
    "running": "resume, signals, exit codes, deadlines, several GPUs, which settings to choose",
    "slurm-and-nightly": "job arrays on a cluster, a job every night",
    "clusters": "Kubernetes, SkyPilot and Ray: a file for each, exit codes",
    "scaling": "a thousand workers, by simulation: requests, costs, what gives way first",
    "checking": "plan, status, show, verify, rejects, retry",
    "reporting": "a page to look at in a browser: figures, charts, samples; several outputs side by side",
    "python": "jobs, results and responses from Python and in notebooks",
    "exporting": "one file, or a dataset to publish",
    "performance": "what was measured, and how to measure your machine",
    "troubleshooting": "out of memory, where the logs are, what to send with a report",
    "upgrading": "what a new version may do to a folder of an old one",
    "security": "whom batchgen trusts, and what it withstands",
    "architecture": "the flow, the code, and a glossary",
}


def text(page: str) -> str:
    """A page as Markdown, without the comments, which are for whoever edits it."""
    return re.sub(r"^<!-- .* -->\n", "", (files(__package__) / f"{page}.md").read_text("utf-8"), flags=re.MULTILINE)
