"""An exported dataset folder on the Hugging Face hub, in one commit: it is there as a whole or not at all."""

import re
from pathlib import Path

from ..errors import JobError, in_one_line, is_of_network

URI = "hf://datasets/"
_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_OF_EVERY_REPOSITORY = {".gitattributes"}


def name_of(uri: str) -> str:
    """ORG/NAME of hf://datasets/ORG/NAME. Raises JobError."""
    name = uri.removeprefix(URI).rstrip("/")
    if not _NAME.fullmatch(name):
        raise JobError(f"--to {uri}: write {URI}ORG/NAME; a dataset on the hub is pushed as a whole")
    return name


def check(name: str, overwrite: bool) -> None:
    """Raises JobError if a push would be refused, before anything is made for it."""
    try:
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.errors import RepositoryNotFoundError
    except ImportError:
        raise JobError(
            f"--to {URI}{name}: needs huggingface_hub, which is not installed: pip install huggingface_hub"
        ) from None
    if not get_token():
        raise JobError(f"--to {URI}{name}: you are not logged in; run `hf auth login`, or set HF_TOKEN")
    try:
        there = HfApi().dataset_info(name).siblings or []
    except RepositoryNotFoundError:
        return
    except Exception as error:
        raise _refused(name, error) from error
    if {file.rfilename for file in there} - _OF_EVERY_REPOSITORY and not overwrite:
        raise JobError(f"{URI}{name}: is there already; give --overwrite to replace its data and its card")


def push(folder: Path, name: str, public: bool) -> None:
    """Uploads what `export` made for Hugging Face to a repository, in the place of what an earlier one has put there.
    public: whether everybody sees a repository that is made for it. Raises JobError."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    api = HfApi()
    try:
        api.create_repo(name, repo_type="dataset", private=not public, exist_ok=True)
        api.upload_folder(
            folder_path=folder,
            repo_id=name,
            repo_type="dataset",
            commit_message="Results of batchgen",
            delete_patterns=["data/train-*.parquet"],
        )
    except Exception as error:
        raise _refused(name, error) from error


def _refused(name: str, error: Exception) -> Exception:
    """What a push ends with. Nothing has changed then, but for an empty repository: the same command may be run
    again. What is neither the hub's nor the network's is ours."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return JobError(f"{URI}{name}: {in_one_line(error)}")
    return JobError(f"{URI}{name}: no connection to the hub: {in_one_line(error)}") if is_of_network(error) else error
