"""Why an engine ended. Where it runs in processes of its own its last word only says "see root cause above": that
stands in the log, where all of them write.
"""

import re
import signal
from pathlib import Path
from typing import NamedTuple

from ..errors import JobError
from ..host import safeopen
from .messages import Ended

# Only SIGKILL, the kernel's when memory is short, may not come again; a build for another processor crashes each time.
CRASHES = {
    signal.SIGILL: "Illegal instruction",
    signal.SIGSEGV: "Segmentation fault",
    signal.SIGBUS: "Bus error",
    signal.SIGABRT: "Aborted",
    signal.SIGFPE: "Floating-point exception",
    signal.SIGSYS: "Bad system call",
    signal.SIGTRAP: "Trace/breakpoint trap",
}
NO_INSTRUCTION = "this build of vLLM needs CPU instructions that this machine lacks"
OUT_OF_MEMORY = (
    "; is the machine out of memory? lower [output] workers, [engine] max_num_seqs or, on a CPU, kv_cache_memory_bytes"
)
CODE = "a .bin file of the model holds code (a pickle), which is never loaded; take the model's safetensors"
ON_A_CPU = "; on a CPU it is [engine] kv_cache_memory_bytes that has to be higher, or max_model_len lower"

_MOST_READ = 1 << 20  # bytes of a log's end
_ELSEWHERE = re.compile(r"root cause|initialization failed|EngineDeadError|EngineCore encountered")
_SIGNAL = re.compile(r"(?:Failed core proc\(s\): .*: |ended with exit code )-(\d+)")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_ERROR = re.compile(
    r"^(?:\(\w+ pid=\d+\) ?)?(?:[A-Z]+ [\d-]+ [\d:]+ \[[^]]+\] )?((?:[A-Za-z_]\w*\.)*\w*(?:Error|Exception): .+)$", re.M
)
_CRASH = re.compile(r"Fatal Python error: (.+)$", re.M)  # written by faulthandler


class Death(NamedTuple):
    """signal: that ended the worker or a part of its engine; 0 if none did, as far as is known."""

    text: str
    signal: int = 0

    @property
    def is_crash(self) -> bool:
        return self.signal in CRASHES


def of_process(code: int) -> Ended:
    """The last word of a process that is gone without any. code: its exit code, of subprocess's kind."""
    return Ended("died", f"exit code {code}" if code >= 0 else f"killed by {_name(-code)}", max(0, -code))


def explain(word: Ended, log: Path, begin: int, on_cpu: bool) -> Death:
    """What ended a worker that said this last. begin: where in its log this worker's part starts."""
    death = _cause(word, log, begin)
    if death.signal == signal.SIGILL:
        return Death(f"{death.text}: {NO_INSTRUCTION}", death.signal)
    if "Weights only load failed" in death.text:  # PyTorch goes on with advice to load it all the same
        return Death(CODE)
    if on_cpu and "gpu_memory_utilization" in death.text:
        return Death(death.text + ON_A_CPU)
    return death


def _cause(word: Ended, log: Path, begin: int) -> Death:
    if word.signal:
        return Death(word.text, word.signal)
    at_start = "initialization failed" in word.text
    if found := _SIGNAL.search(word.text):
        number = int(found[1])
        return Death(f"a process of it was killed by {_name(number)}" if at_start else word.text, number)
    if not _ELSEWHERE.search(word.text) and "ended with exit code" not in word.text:
        return Death(word.text)
    said = _end_of(log, begin)
    if crashes := _CRASH.findall(said):
        for number, name in CRASHES.items():
            if crashes[-1].startswith(name):
                return Death(f"a process of it was killed by {number.name}", number)
    errors = [line for line in _ERROR.findall(said) if not _ELSEWHERE.search(line)]
    if errors:
        return Death(" ".join(errors[-1].split())[:300])
    # An exception would have left a traceback.
    return Death("a process of it was killed", signal.SIGKILL) if at_start else Death(word.text)


def _end_of(log: Path, begin: int) -> str:
    try:
        with safeopen.reading(log) as stream:
            stream.seek(max(begin, log.stat().st_size - _MOST_READ))
            return _COLOUR.sub("", stream.read().decode(errors="replace"))
    except (OSError, JobError):
        return ""


def _name(number: int) -> str:
    known = {each.value: each.name for each in signal.Signals}
    return known.get(number, f"signal {number}")
