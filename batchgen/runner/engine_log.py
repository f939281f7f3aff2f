"""What engines log, passed on to whoever asks to see it while it is written."""

from contextlib import suppress
from pathlib import Path

from ..host import events

PART = 1 << 20  # bytes that are read at a time


class EngineLog:
    """Reads on in a worker's log file."""

    def __init__(self, path: Path, begin: int):
        """begin: where what this worker writes begins, in bytes"""
        self._path, self._read, self._begun = path, begin, b""

    def pass_on(self, engine: str) -> None:
        """Tells of the lines that have come since. A log that cannot be read is no reason to stop."""
        if not events.style().verbose:
            return
        with suppress(OSError), open(self._path, "rb") as file:
            file.seek(self._read)
            while part := file.read(PART):
                self._read += len(part)
                *lines, self._begun = (self._begun + part).split(b"\n")
                for line in lines:
                    said = line.decode(errors="replace").expandtabs().rstrip("\r")
                    events.note(events.Level.debug, "vllm", said, engine=engine)
