"""A check of the user's own: a function of a Python file, `checks = ["my.py:check"]`.

    def check(row, response): return "what is wrong", or None

row is the input record as a dict, response the text. Whatever it raises rejects the row, with the line that raised it.
"""

import ast
import functools
import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import JobError, Reject, in_one_line
from ..host import safeopen
from ..job.own_check import OwnCheck

if TYPE_CHECKING:
    from .checks import Judged

LARGEST = 1 << 20  # bytes of a file of checks


def digest(file: Path) -> str:
    """SHA-256 of a file of checks. Raises JobError."""
    return hashlib.sha256(_read(file)).hexdigest()


def load(own: OwnCheck) -> "Callable[[Judged], str | None]":
    """A check that runs the file when it is first needed: only a worker needs it. Raises JobError if there is no such
    function."""
    path, function = own
    _require_function(path, function)

    def check(answer: "Judged") -> str | None:
        try:
            said = _function(str(path), function)(answer.row, answer.text)
        except MemoryError:
            raise
        except Exception as error:
            raise Reject(
                "check_error", f"{_place(error, path)}: {type(error).__name__}: {in_one_line(error)}"
            ) from None
        if said is None or isinstance(said, str):
            return said or None
        raise Reject(
            "check_error", f"{path.name}: {function} returned {type(said).__name__}, which must be str or None"
        )

    return check


def _read(path: Path) -> bytes:
    """Raises JobError if it cannot be read, or if somebody else may have written it."""
    try:
        with safeopen.reading(path, LARGEST) as file:
            owner = os.fstat(file.fileno()).st_uid
            text = file.read()
    except OSError as error:
        raise JobError(f"[check] checks: {path}: {error.strerror or error}") from None
    if owner not in (0, os.geteuid()):
        raise JobError(f"[check] checks: {path}: is another user's, whose code is not run; copy it if you trust it")
    return text


def _require_function(path: Path, name: str) -> None:
    try:
        tree = ast.parse(_read(path), str(path))
    except (SyntaxError, ValueError) as error:
        at = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise JobError(
            f"[check] checks: {path}{at}: {error.msg if isinstance(error, SyntaxError) else error}"
        ) from None
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    if name not in names:
        raise JobError(f"[check] checks: {path}: has no function {name}: write def {name}(row, response)")


@functools.cache
def _function(path: str, name: str) -> Callable[[Any, Any], Any]:
    spec = importlib.util.spec_from_file_location(f"batchgen_check_{hashlib.md5(path.encode()).hexdigest()}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(path).parent))  # so that it may import what lies beside it
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(Path(path).parent))
    function: Callable[[Any, Any], Any] = getattr(module, name)
    return function


def _place(error: Exception, path: Path) -> str:
    """The line of the user's file that an error came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path.name}:{lines[-1]}" if lines else path.name
