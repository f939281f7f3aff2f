"""The manual: pages of Markdown beside this file, shipped in the wheel, since GPU machines often have no network."""

from importlib.resources import files

# In the order in which a reader needs them.
PAGES = (
    "installing",
    "job-file",
    "models",
    "input",
    "output",
    "running",
    "slurm-and-nightly",
    "checking",
    "exporting",
    "performance",
    "security",
)


def text(page: str) -> str:
    return (files(__package__) / f"{page}.md").read_text(encoding="utf-8")
