"""The demo model, its data and its job, as shipped in the package."""

import shutil
from importlib.resources import as_file, files
from pathlib import Path


def write(folder: Path) -> Path:
    """Copies model, data and job file into `folder`; returns the job file's path."""
    with as_file(files(__package__)) as package:
        for part in ("model", "data"):
            shutil.copytree(package / part, folder / part, dirs_exist_ok=True)
        return Path(shutil.copy2(package / "job.toml", folder))
