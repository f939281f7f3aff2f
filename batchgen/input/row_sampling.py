"""A row's own sampling: parameters, number of responses, and seed."""

import difflib
import math
import re
from functools import lru_cache
from itertools import islice
from typing import Any

import msgspec
import msgspec.inspect

from ..errors import Reject, plain
from ..job.sampling import NAMES, PARAMETERS, Number, Sampling, Seed
from .batch_requests import Request, parameters
from .conversation import is_blank, kind_of
from .turns import as_turn

DEFAULT_SEED, DEFAULT_SAMPLING = "seed", "sampling"
MOST_NAMES = 64  # names of an object that are looked at to tell whether it holds sampling parameters
_WHOLE = (*(each.name for each in PARAMETERS if isinstance(each.kind, msgspec.inspect.IntType)), "n", "seed")


def of_row(
    job: Sampling,
    n: int,
    record: dict[str, Any],
    request: Request | None = None,
    seed: str = DEFAULT_SEED,
    sampling: str = DEFAULT_SAMPLING,
    known: tuple[str, ...] = NAMES,
) -> tuple[Sampling, int, int | None]:
    """The sampling parameters of one row, its number of samples, and its seed if it has one of its own.

    Args:
        job: parameters for rows without their own.
        n: number of samples for rows without their own.
        record: the row's record.
        request: the row's request, if it is a line of a batch file.
        seed: column of the row's own seed, which overrides the request's.
        sampling: column of the row's own parameters, which override the request's.
        known: the parameters that there are: fewer in output folders of earlier formats.

    A column with a default name may hold something unrelated, which is ignored; in a column that the user named, such a
    value rejects the row.

    Raises:
        Reject: bad_sampling
    """
    changes = parameters(request, known) if request else {}
    changes |= _own_parameters(record.get(sampling), sampling, known) if sampling else {}
    own = _own_seed(record.get(seed), seed) if seed else None
    if not changes and own is None:
        return job, n, None
    values = {name: _plain(name, value) for name, value in changes.items()}
    if "logprobs" in values and job.logprobs is None:
        most = values["logprobs"]
        hint = f"; set logprobs = {most} there (--logprobs {most})" if isinstance(most, int) else ""
        raise Reject("bad_sampling", f"logprobs: a row can only ask for them if the job's [sampling] does{hint}")
    own = _checked("seed", values.pop("seed", own), Seed)
    n = _checked("n", values.pop("n", n), Number)
    if not values:
        return job, n, own
    merged = {name: getattr(job, name) for name in NAMES} | {name: values[name] for name in values if name in known}
    try:
        params = msgspec.convert(merged, Sampling, str_keys=True)
    except msgspec.ValidationError as error:
        raise Reject("bad_sampling", _readable(str(error), values)) from None
    if unknown := [name for name in values if name not in known]:
        raise Reject("bad_sampling", f"object contains unknown field {unknown[0]}")
    return params, n, own


def _own_parameters(value: Any, column: str, known: tuple[str, ...]) -> dict[str, Any]:
    """The parameters in a row's column, by vLLM's names. Nulls are left out and mean "as in the job": in a Parquet
    struct every row has every field."""
    if is_blank(value):
        return {}
    given = _as_object(value)
    if column == DEFAULT_SAMPLING and (given is None or not _is_meant(tuple(islice(given, MOST_NAMES)), known)):
        return {}
    if given is None:
        raise Reject("bad_sampling", f"{column} is {kind_of(value)}, not an object")
    return {name: part for name, part in given.items() if part is not None}


def _as_object(value: Any) -> dict[str, Any] | None:
    """An object; it may come as JSON text, as in a CSV file. None otherwise."""
    if isinstance(value, str | bytes):
        try:
            value = msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return None
    return as_turn(value)


@lru_cache(maxsize=1024)
def _is_meant(names: tuple[str, ...], known: tuple[str, ...]) -> bool:
    """Whether an object holds sampling parameters: one of its names is that of a parameter, or close to one."""
    known = (*known, "n", "seed")
    return any(name in known or difflib.get_close_matches(name, known, n=1, cutoff=0.8) for name in names)


def _own_seed(value: Any, column: str) -> int | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas' null
        return None
    whole = _plain("seed", value)
    if isinstance(whole, int) and not isinstance(whole, bool):
        return whole
    if column == DEFAULT_SEED:
        return None
    raise Reject("bad_sampling", f"{column} {value!r:.80} is not a whole number")


def _plain(name: str, value: Any) -> Any:
    """A value in vLLM's form: 64.0 becomes an integer, a single stop text a list, and a list of pairs (an Arrow map, or
    the column `sampling` of our own shards) an object."""
    if name in _WHOLE:
        return _plain_whole(value)
    if name == "stop" and isinstance(value, str):
        return [value]
    if name == "repetition_detection" and isinstance(value, dict):
        return {key: _plain_whole(part) for key, part in value.items() if part is not None}
    if name == "logit_bias" and isinstance(value, list):
        pairs = [tuple(pair.values()) if isinstance(pair, dict) else tuple(pair) for pair in value if _is_pair(pair)]
        return dict(pairs) if len(pairs) == len(value) else value
    return value


def _plain_whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_pair(value: Any) -> bool:
    if isinstance(value, dict):
        return list(value) == ["token_id", "bias"]
    return isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], int | str)


def _readable(error: str, values: dict[str, Any]) -> str:
    """msgspec's "Expected `float` <= 2.0 - at `$.temperature`", with the name and the value in front."""
    message, _, path = error.partition(" - at ")
    place = re.search(r"\$\.(\w+)", path)
    name = place[1] if place else ""
    message = plain(message)
    if name == "top_p" and values.get("top_p") == 0:
        message += " (temperature 0 is greedy)"
    return f"{name} {values[name]!r:.80}: {message}" if name in values else message


def _checked(name: str, value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind | None)
    except msgspec.ValidationError as error:
        raise Reject("bad_sampling", f"{name} {value!r:.80}: {_readable(str(error), {})}") from None
