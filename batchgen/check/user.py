"""A check of the user's own: a function of a Python file, `checks = ["my.py:check"]`.

    def check(row, response): return "what is wrong", or None

row is the input record as a dict, response the text. Whatever it raises rejects the row, with the line that raised it.
Metrics of the user's own are found, trusted and called in the same way.
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
CHECKS = "[check] checks"  # the key that names them


def digest(file: Path) -> str:
    """SHA-256 of a file of checks. Raises JobError."""
    return hashlib.sha256(_read(file, CHECKS)).hexdigest()


def load(own: OwnCheck) -> "Callable[[Judged], str | None]":
    """A check that runs the file when it is first needed: only a worker needs it. Raises JobError if there is no such
    function."""
    path, name = own
    require(own, CHECKS)

    def check(answer: "Judged") -> str | None:
        try:
            said = function(own)(answer.row, answer.text)
        except MemoryError:
            raise
        except Exception as error:
            raise Reject("check_error", fault(error, path)) from None
        if said is None or isinstance(said, str):
            return said or None
        raise Reject("check_error", f"{path.name}: {name} returned {type(said).__name__}, which must be str or None")

    return check


def require(own: OwnCheck, key: str) -> None:
    """Raises JobError if there is no such function. key: of the job file, that names it. The file is not run."""
    path, name = own
    try:
        tree = ast.parse(_read(path, key), str(path))
    except (SyntaxError, ValueError) as error:
        at = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise JobError(f"{key}: {path}{at}: {error.msg if isinstance(error, SyntaxError) else error}") from None
    if name not in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]:
        raise JobError(f"{key}: {path}: has no function {name}: write def {name}(row, response)")


def function(own: OwnCheck) -> Callable[[dict[str, Any], str], Any]:
    """The function itself. Its file is run when it is first asked for. Raises whatever that raises."""
    return _function(str(own.file), own.function)


def fault(error: BaseException, path: Path) -> str:
    """What a file raised, with the line of it that an error came from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    place = f"{path.name}:{lines[-1]}" if lines else path.name
    return f"{place}: {type(error).__name__}: {in_one_line(error)}"


def _read(path: Path, key: str) -> bytes:
    """Raises JobError if it cannot be read, or if somebody else may have written it."""
    try:
        with safeopen.reading(path, LARGEST) as file:
            owner = os.fstat(file.fileno()).st_uid
            text = file.read()
    except OSError as error:
        raise JobError(f"{key}: {path}: {error.strerror or error}") from None
    if owner not in (0, os.geteuid()):
        raise JobError(f"{key}: {path}: is another user's, whose code is not run; copy it if you trust it")
    return text


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
