"""Why an engine died. If it ran in processes of its own, vLLM's error only says "see root cause above": the cause is
in the log, which all of them write to.
"""

import re
import signal
from pathlib import Path
from typing import NamedTuple

from ..errors import JobError
from ..host import safeopen
from .messages import Exit, ExitKind

# Signals of a crash, by the name that faulthandler writes into the log. A build for another CPU crashes at every start;
# SIGKILL is not among them: the kernel sends it when memory is short, which may pass.
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
CODE = "a .bin file of the model holds code (a pickle), which is never loaded; use the model's safetensors"
ON_A_CPU = "; on a CPU raise [engine] kv_cache_memory_bytes, or lower max_model_len"

_LOG_TAIL = 1 << 20  # bytes of a log that are searched
_CAUSE_ELSEWHERE = re.compile(r"root cause|initialization failed|EngineDeadError|EngineCore encountered")
_SIGNAL = re.compile(r"(?:Failed core proc\(s\): .*: |ended with exit code )-(\d+)")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_ERROR = re.compile(
    r"^(?:\(\w+ pid=\d+\) ?)?(?:[A-Z]+ [\d-]+ [\d:]+ \[[^]]+\] )?((?:[A-Za-z_]\w*\.)*\w*(?:Error|Exception): .+)$", re.M
)
_CRASH = re.compile(r"Fatal Python error: (.+)$", re.M)


class Death(NamedTuple):
    """text: the cause, for the user; signal: that killed the worker or a part of its engine, 0 if none is known."""

    text: str
    signal: int = 0

    @property
    def is_crash(self) -> bool:
        return self.signal in CRASHES


def of_process(code: int) -> Exit:
    """The exit of a process that is gone without a report. code: its returncode, negative if a signal killed it."""
    text = f"exit code {code}" if code >= 0 else f"killed by {_name(-code)}"
    return Exit(ExitKind.DIED, text, signal=max(0, -code))


def explain(end: Exit, log: Path, begin: int, on_cpu: bool) -> Death:
    """The cause of a worker's death. begin: where in the log this worker's part starts, in bytes."""
    death = _cause(end, log, begin)
    if death.signal == signal.SIGILL:
        return Death(f"{death.text}: {NO_INSTRUCTION}", death.signal)
    if "Weights only load failed" in death.text:  # PyTorch goes on with advice to load it all the same
        return Death(CODE)
    if on_cpu and "gpu_memory_utilization" in death.text:
        return Death(death.text + ON_A_CPU)
    return death


def _cause(end: Exit, log: Path, begin: int) -> Death:
    if end.signal:
        return Death(end.text, end.signal)
    at_start = "initialization failed" in end.text
    if found := _SIGNAL.search(end.text):
        number = int(found[1])
        return Death(f"a process of it was killed by {_name(number)}" if at_start else end.text, number)
    if not _CAUSE_ELSEWHERE.search(end.text) and "ended with exit code" not in end.text:
        return Death(end.text)
    said = _end_of(log, begin)
    if crashes := _CRASH.findall(said):
        for number, name in CRASHES.items():
            if crashes[-1].startswith(name):
                return Death(f"a process of it was killed by {number.name}", number)
    errors = [line for line in _ERROR.findall(said) if not _CAUSE_ELSEWHERE.search(line)]
    if errors:
        return Death(" ".join(errors[-1].split())[:300])
    # Neither an exception nor a crash, which would have left a line: SIGKILL.
    return Death("a process of it was killed", signal.SIGKILL) if at_start else Death(end.text)


def _end_of(log: Path, begin: int) -> str:
    try:
        with safeopen.reading(log) as stream:
            stream.seek(max(begin, log.stat().st_size - _LOG_TAIL))
            return _COLOUR.sub("", stream.read().decode(errors="replace"))
    except (OSError, JobError):
        return ""


def _name(number: int) -> str:
    known = {each.value: each.name for each in signal.Signals}
    return known.get(number, f"signal {number}")
