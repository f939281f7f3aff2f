"""Keys and tokens do not belong in a job, because a job is written to records, logs and dataset cards. One that is
given is refused, with a hint where to put it; one that turns up anyway is not shown.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

WAY_OUT = (
    "it would be written into the job's records; pass it in the environment (AWS_ACCESS_KEY_ID, HF_TOKEN, ...), in the "
    "service's own credentials file, or by `hf auth login`"
)

# The authority of a URI up to its last @; an unescaped secret key may contain slashes.
_USER = re.compile(r"(?<=://)(?P<user>[^/?#\s@'\"]*(?::(?!\d+/)[^?#\s@'\"]*)?)@")
# Schemes whose URIs have a container or an account before the @: only a password is a secret there.
_PLAIN_USERS = re.compile(r"(abfss?|wasbs?|hdfs|viewfs|sftp|ssh)://$", re.I)
_PARAMETER = re.compile(r"(?<=[?&#;])(?P<name>[\w.%-]+)=(?P<value>[^&#;\s'\"]+?)(?=[:,.)]*(?:[&#;\s'\"]|$))")
_SECRET_PARAMETER = re.compile(
    r"token$|secret|passw|pwd|credential|signature|^sig$|^sas$|(api|access|private|account)[-_]?key|^key$|accessid"
    r"|^auth(orization|[-_]?key)?$|jwt|^x-(amz|goog)-",
    re.I,
)
_SECRET_KEY = re.compile(
    r"^((hf|auth|access|api|bearer|session|security|refresh)[_-]?)?token$"  # and not eos_token
    r"|(^|[_-])(api_?key|secret|passw(or)?d|credentials?|(access|private|account)_?key|jwt)$",
    re.I,
)
_SECRET_VARIABLE = re.compile(r"(KEY|KEY_ID|TOKENS?|SECRET|PASSWORD|PASSWD|CREDENTIALS?|AUTH|JWT|TOKEN_PATH)$", re.I)
# Tokens by their issuers' prefixes: Hugging Face, AWS, GitHub, OpenAI and similar.
_TOKEN = re.compile(
    r"\b(hf_[A-Za-z0-9]{30,}|(AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{30,}|sk-(proj-|ant-)?[A-Za-z0-9_]{30,})"
)
_HIDDEN = "***"


def in_uris(paths: Any) -> str:
    """The first of these paths and URIs that contains credentials, with them hidden; "" if none does."""
    uris = (path for path in (paths if isinstance(paths, list) else [paths]) if isinstance(path, str) and "://" in path)
    return next((redacted(uri) for uri in uris if redacted(uri) != uri), "")


def in_settings(settings: Any) -> str:
    """The first key of a table, or of a nested one, that holds a secret; "" if none does."""
    return next(_secret_names(settings), "")


def is_secret_name(name: str) -> bool:
    """Whether an environment variable's name looks like that of a secret."""
    return bool(_SECRET_VARIABLE.search(name))


def _secret_names(value: Any, name: str = "") -> Iterator[str]:
    """Names of the settings that hold secrets. JSON inside a string is searched too."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, dict):
        for key, part in value.items():
            path = f"{name}.{key}" if name else str(key)
            if _SECRET_KEY.search(str(key)) and part not in (None, "", False, True):
                yield path
            else:
                yield from _secret_names(part, path)
    elif isinstance(value, list):
        for part in value:
            yield from _secret_names(part, name)
    elif isinstance(value, str) and redacted(value) != value:
        yield name


def redacted(text: str) -> str:
    """A text with the secrets of its URIs, and anything that looks like a token, hidden."""
    text = _USER.sub(lambda found: _without_user(text, found), text)
    text = _PARAMETER.sub(_without_value, text)
    return _TOKEN.sub(_HIDDEN, text)


def _without_user(text: str, found: re.Match[str]) -> str:
    if ":" not in found["user"] and _PLAIN_USERS.search(text[: found.start()]):
        return found[0]
    return f"{_HIDDEN}@"


def _without_value(found: re.Match[str]) -> str:
    name, value = unquote(found["name"]), unquote(found["value"])
    is_secret = _SECRET_PARAMETER.search(name) and not (name.lower() == "key" and re.search(r"[./]|^.{0,19}$", value))
    if is_secret:
        return f"{found['name']}={_HIDDEN}"
    hidden = _USER.sub(f"{_HIDDEN}@", value)
    return found[0] if hidden == value else f"{found['name']}={hidden}"


def stripped(path: str) -> str:
    """A URI without its credentials, in a form that still opens if they are supplied another way."""
    if "://" not in path or redacted(path) == path:
        return path
    bare = redacted(path).replace(f"{_HIDDEN}@", "")
    return re.sub(rf"(?<=[?&#;])[^=&#;]+={re.escape(_HIDDEN)}[&;]?", "", bare).rstrip("?&#;")


def without_secrets(settings: dict[str, Any]) -> dict[str, Any]:
    """A table without the settings that hold secrets."""
    return {name: value for name, value in settings.items() if not next(_secret_names({name: value}), "")}
