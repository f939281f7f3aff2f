"""The demo model, its data and its job, as shipped in the package."""

from importlib.resources import as_file, files
from pathlib import Path

from ..host import safeopen


def write(folder: Path) -> Path:
    """Copies model, data and job file into `folder`; returns the job file's path."""
    with as_file(files(__package__)) as package:
        for path in (*(package / "model").iterdir(), *(package / "data").iterdir(), package / "job.toml"):
            to = folder / path.relative_to(package)
            to.parent.mkdir(parents=True, exist_ok=True)
            safeopen.replace(to, path.read_bytes())
    return folder / "job.toml"
