"""Object stores: S3 and what speaks like it, Google Cloud Storage, Azure. Objects by name, below one place in a bucket.

Credentials and endpoints come from where the services' own tools have them: the environment, a role of the machine, or
a profile of ~/.aws. obstore, which does the talking, is imported when the first bucket is opened.
"""

import contextlib
import datetime
import io
import itertools
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from ..errors import JobError, Stopped, shown
from . import credentials

SCHEMES = ("s3", "gs", "az")
PATIENCE = 15.0  # seconds that a request may take, all its tries together
MANY = 32  # requests that are made side by side
SMALL = 8 << 20  # bytes of an object that is read at once, and of a part of one that is not
LAST = chr(0x10FFFF)  # behind all names
_MOST_PARTS = 9_000  # of an upload; S3 takes 10,000
_SLOW = 120.0  # seconds for a request with a big body
_PAUSE = 0.2  # seconds before a request is made again that obstore does not repeat: a write whose answer did not come
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL", "GOOGLE_ENDPOINT_URL"),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
_KEYS = {"s3": "AWS_ACCESS_KEY_ID", "gs": "GOOGLE_APPLICATION_CREDENTIALS", "az": "AZURE_STORAGE_ACCOUNT_NAME"}
_ALLOW_HTTP = {"s3": "AWS_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP"}
_URI = re.compile(rf"({'|'.join(SCHEMES)})://", re.I)
_ONE_SLASH = re.compile(rf"({'|'.join(SCHEMES)}):/(?!/)", re.I)
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|bucket does not exist|container does not exist", re.I)
_NO_CREDENTIALS = re.compile(r"169\.254\.|metadata\.google|credential|MissingAccessKey|account.*not set", re.I)
_DENIED = re.compile(r"code: 40[13]\b|AccessDenied|SignatureDoesNotMatch|InvalidAccessKeyId|AuthenticationFailed", re.I)
_WRONG = re.compile(r"code: (3\d\d|40[05]|41[0-7])\b|builder error|InvalidBucketName", re.I)

Answer = TypeVar("Answer")


def is_uri(place: object) -> bool:
    """Whether a place that a user names is one in a bucket."""
    return bool(_URI.match(str(place)))


def check_slashes(path: str) -> None:
    """Raises JobError for what was to be a URI and has one slash, as scripts and pathlib make of it. As a path it would
    be a folder `s3:` on this machine, and gone with it."""
    if begun := _ONE_SLASH.match(path):
        raise JobError(f"{shown(path)}: a URI has two slashes; write {begun[1].lower()}://BUCKET/NAME")


def check_uri(uri: str) -> None:
    """Raises JobError if no place in a bucket can be named so."""
    _parsed(uri)


def read(uri: str, most: int) -> bytes:
    """An object by its URI. Raises FileNotFoundError; JobError if it has more than `most` bytes; see Bucket."""
    folder, _, name = uri.rpartition("/")
    return Bucket(folder).get(name, most)[0]


class Found(NamedTuple):
    """An object as a listing or a look shows it. name: relative to the place; modified: seconds since the epoch, by the
    service's clock; version: what a conditional write names it by."""

    name: str
    size: int
    modified: float
    version: dict[str, str]


class Bucket:
    """A place in a bucket. Methods may be called on several threads at once.

    Every method raises JobError if there is no such bucket, or none that these credentials open, and Stopped if it
    cannot be reached for PATIENCE seconds; once it has been reached, whatever is refused raises Stopped: credentials
    expire, and the same command goes on with new ones.
    """

    def __init__(self, uri: str, patience: float = PATIENCE):
        """patience: seconds; the longest that a request for a small object may take is twice that. Raises JobError."""
        scheme, bucket, place = _parsed(uri)
        self._scheme = scheme
        self.uri = f"{scheme}://{bucket}/{place}".rstrip("/")
        self.lists_from_anywhere = scheme != "az"  # whose listings begin at the first name, whatever is asked for
        self._patience = patience
        self._was_reached = False
        self._pool = ThreadPoolExecutor(MANY, thread_name_prefix="bucket")
        self._small, self._big = (_opened(scheme, bucket, place, time, patience) for time in (patience / 2, _SLOW))

    def where(self, name: str) -> str:
        return f"{self.uri}/{name}" if name else self.uri

    # --- looks

    def check(self) -> None:
        """Whether it can be reached at all."""
        self._ask("", lambda: next(iter(self._small.list("_", chunk_size=1)), None))

    def head(self, name: str) -> Found:
        """Raises FileNotFoundError."""
        return _found(self._ask(name, lambda: self._small.head(name)))

    def has(self, name: str) -> bool:
        try:
            self.head(name)
        except FileNotFoundError:
            return False
        return True

    def get(self, name: str, most: int | None = None) -> tuple[bytes, Found]:
        """An object and what it is. Raises FileNotFoundError; JobError if it has more than `most` bytes."""
        client = self._big if most is None or most > SMALL else self._small

        def got() -> tuple[bytes, Found]:
            answer = client.get(name)
            found = _found(answer.meta)
            if most is not None and found.size > most:
                raise JobError(
                    f"{self.where(name)}: has {found.size:,} bytes, but cannot have more than {most:,}; remove it"
                )
            return bytes(answer.bytes()), found

        return self._ask(name, got)

    def open(self, name: str) -> io.BufferedReader:
        """An object as a stream that seeks. Raises FileNotFoundError."""
        found = self.head(name)
        if found.size <= SMALL:
            return io.BufferedReader(io.BytesIO(self.get(name)[0]))  # type: ignore[arg-type]
        return io.BufferedReader(_Ranges(self, found), SMALL)

    def part(self, name: str, begin: int, end: int) -> bytes:
        return self._ask(name, lambda: bytes(self._big.get_range(name, start=begin, end=end)))

    def below(self, folder: str = "") -> Iterator[Found]:
        """All objects below a folder, in order; those of its folders too."""
        return map(_found, itertools.chain.from_iterable(self.pages(folder)))

    def pages(self, folder: str, after: str = "", begin: str = "", last: str = LAST) -> Iterator[list[Any]]:
        """The same of those whose names in it begin with `begin`, come after `after`, and end with `last`; page by page
        as obstore has them: `path`, `size`, `last_modified`. 100,000 of them take a third of the time of `below`."""
        start = f"{folder}/" if folder else ""
        # A listing begins behind the last name that cannot begin so: the services' `offset` is that of the last name
        # before.
        before = after if after >= begin else begin[:-1] + chr(ord(begin[-1]) - 1) + "z" * 9
        offset = f"{start}{before}" if before and self.lists_from_anywhere else None
        begins, low, high = start + begin, start + after, min(start + last, start + begin + LAST)
        pages = iter(self._small.list(folder or None, offset=offset, chunk_size=1000))
        while (page := self._ask(folder, lambda: next(pages, None))) is not None:
            # The object that stands for the folder itself is not above `low`.
            yield [each for each in page if low < each["path"] <= high and each["path"].startswith(begins)]
            if page and self.lists_from_anywhere and page[-1]["path"] >= high:
                return

    def names(self, folder: str = "") -> tuple[list[str], list[Found]]:
        """The folders in a folder, by their whole names, and its objects; not the object that consoles and some
        services make to stand for the folder itself."""
        listed = self._ask(folder, lambda: self._small.list_with_delimiter(folder or None))
        objects = [_found(each) for each in listed["objects"] if each["path"] not in ("", folder)]
        return [str(name).rstrip("/") for name in listed["common_prefixes"]], objects

    def side_by_side(self, work: Callable[[Any], Answer], parts: Iterable[Any]) -> list[Answer]:
        """What `work` gives for each of these, up to MANY at a time. Not to be called by such work itself."""
        return list(self.in_turn(work, parts))

    def in_turn(self, work: Callable[[Any], Answer], parts: Iterable[Any]) -> Iterator[Answer]:
        """The same, each as soon as it and those before it are there."""
        return self._pool.map(work, parts)

    # --- changes

    def put(self, name: str, content: bytes | memoryview) -> None:
        self._put(name, content, None)

    def upload(self, name: str, file: Path) -> None:
        """Puts a file of any length, part by part; the object appears whole."""
        part = max(SMALL, file.stat().st_size // _MOST_PARTS)
        self._ask(name, lambda: self._big.put(name, file, chunk_size=part))

    def create(self, name: str, content: bytes | memoryview) -> bool:
        """Puts an object where nothing has its name; False if something has, unless it has just this content: then it
        was written by us, and the answer got lost on its way."""
        return self._put(name, content, "create") or self._has(name, content)

    def swap(self, name: str, version: dict[str, str], content: bytes) -> bool:
        """Puts an object in the place of a version of it; False if that is not there any more. The same of lost
        answers holds."""
        return self._put(name, content, version) or self._has(name, content)

    def copy(self, name: str, to: str) -> None:
        """Raises FileNotFoundError."""
        self._ask(name, lambda: self._big.copy(name, to))

    def delete(self, names: Iterable[str]) -> None:
        """Removes what is there of these."""
        match list(names):
            case [name]:
                self._delete(name)
            case several:
                self.side_by_side(self._delete, several)

    def _delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._ask(name, lambda: self._small.delete(name))

    def _put(self, name: str, content: bytes | memoryview, mode: Any) -> bool:
        client = self._small if len(content) < SMALL // 8 else self._big
        options = {} if mode is None else {"mode": mode}

        def put() -> bool:
            try:
                client.put(name, bytes(content), use_multipart=False, **options)
            except Exception as error:
                if _kind(error) in ("AlreadyExistsError", "PreconditionError", "NotModifiedError"):
                    return False
                raise
            return True

        try:
            return self._ask(name, put)
        except FileNotFoundError:  # a swap of what is gone, on some services
            if isinstance(mode, dict):
                return False
            raise

    def _has(self, name: str, content: bytes | memoryview) -> bool:
        try:
            return self.head(name).size == len(content) and self.get(name)[0] == content
        except FileNotFoundError:
            return False

    # --- asking

    def _ask(self, name: str, call: Callable[[], Answer]) -> Answer:
        """Asks again as long as there is patience; all that is asked may be asked twice."""
        until = time.monotonic() + self._patience
        while True:
            try:
                answer = call()
                self._was_reached = True
                return answer
            except (JobError, Stopped):
                raise
            except Exception as error:
                kind, text = _kind(error), str(error)
                if kind in ("FileNotFoundError", "NotFoundError") and not _NO_BUCKET.search(text):
                    self._was_reached = True
                    raise FileNotFoundError(self.where(name)) from None
                refused = self._refusal(kind, text)
                if refused is None and not _is_of_obstore(error):
                    raise
                if refused is None and time.monotonic() < until:
                    time.sleep(_PAUSE)
                    continue
                raise self._failure(name, refused or _reason(text), is_refused=refused is not None) from None

    def _refusal(self, kind: str, text: str) -> str | None:
        """Why it is of no use to ask again; None if it may be."""
        if _NO_BUCKET.search(text):
            return "there is no such bucket"
        is_denied = kind in ("PermissionDeniedError", "PermissionError", "UnauthenticatedError") or _DENIED.search(text)
        if is_denied and "169.254." not in text:
            return f"access is denied ({_reason(text)})"
        if not self._was_reached and _NO_CREDENTIALS.search(text):
            return f"no credentials were found; give them in the environment ({_KEYS[self._scheme]}, ...)"
        return _reason(text) if _WRONG.search(text) or kind == "InvalidPathError" else None

    def _failure(self, name: str, why: str, is_refused: bool) -> JobError | Stopped:
        place = shown(self.where(name))
        if is_refused and not self._was_reached:
            return JobError(f"{shown(self.uri)}: {why}; `batchgen manual buckets` says what a bucket needs")
        return Stopped(f"{place}: {why}; fix that and run the same command again")


class _Ranges(io.RawIOBase):
    """An object that is read part by part."""

    def __init__(self, bucket: Bucket, found: Found):
        self._bucket, self._object, self._place = bucket, found, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        begin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._object.size}[whence]
        self._place = max(0, begin + offset)
        return self._place

    def readinto(self, buffer: Any) -> int:
        end = min(self._object.size, self._place + len(buffer))
        if end <= self._place:
            return 0
        part = self._bucket.part(self._object.name, self._place, end)
        buffer[: len(part)] = part
        self._place += len(part)
        return len(part)


# --- opening one


def _parsed(uri: str) -> tuple[str, str, str]:
    parts = urlsplit(uri)
    if parts.query or parts.fragment or "?" in uri or "#" in uri:
        raise JobError(
            f"{shown(credentials.redacted(uri))}: has a `?` or `#` in it; endpoint and region come from the "
            "environment (AWS_ENDPOINT_URL, AWS_REGION)"
        )
    if parts.username:
        raise JobError(f"{shown(credentials.redacted(uri))}: contains a key or token; {credentials.WAY_OUT}")
    if not parts.netloc:
        raise JobError(f"{shown(uri)}: names no bucket; write {parts.scheme}://BUCKET/FOLDER")
    names = [name for name in parts.path.split("/") if name]
    if any(name in (".", "..") or not re.fullmatch(r"[\w.,=+@:()!' -]+", name, re.ASCII) for name in names):
        raise JobError(
            f"{shown(uri)}: has a name of other signs than letters, digits and - _ . = in it; choose another"
        )
    return parts.scheme.lower(), parts.netloc, "/".join(names)


def _opened(scheme: str, bucket: str, place: str, seconds: float, patience: float) -> Any:
    try:
        from obstore import store
    except ImportError as error:
        raise JobError(f"{scheme}://{bucket}: buckets need obstore ({error}); pip install obstore") from None
    options: dict[str, Any] = {
        "prefix": place or None,
        "client_options": {
            "allow_http": _allows_http(scheme),
            "connect_timeout": datetime.timedelta(seconds=min(5.0, patience / 2)),
            "timeout": datetime.timedelta(seconds=seconds),
        },
        "retry_config": {
            "max_retries": 10,
            "retry_timeout": datetime.timedelta(seconds=patience / 2),
            "backoff": {"max_backoff": datetime.timedelta(seconds=2)},
        },
    }
    try:
        if scheme == "gs":
            return store.GCSStore(bucket, **options)
        if scheme == "az":
            return store.AzureStore(container_name=bucket, **options)
        return store.S3Store(bucket, **options, **_profile())
    except Exception as error:
        why = f"{_reason(str(error))}; `batchgen manual buckets` says what a bucket needs"
        raise JobError(f"{scheme}://{bucket}: cannot be opened: {why}") from None


def _allows_http(scheme: str) -> bool:
    """Keys would be read by whoever is on the way: only on this machine, or where the user says so."""
    endpoint = next((os.environ[name] for name in _ENDPOINTS[scheme] if os.environ.get(name)), "")
    if os.environ.get(_ALLOW_HTTP[scheme], "").lower() in ("1", "true") or (scheme == "az" and _is_emulator()):
        return True
    if endpoint.startswith("http://") and urlsplit(endpoint).hostname not in _LOOPBACK:
        raise JobError(
            f"{shown(credentials.redacted(endpoint))}: http:// works for this machine only; use https://, or set "
            f"{_ALLOW_HTTP[scheme]}=true in a network that you trust"
        )
    return endpoint.startswith("http://")


def _is_emulator() -> bool:
    return os.environ.get("AZURE_STORAGE_USE_EMULATOR", os.environ.get("AZURE_USE_EMULATOR", "")).lower() in (
        "1",
        "true",
    )


def _profile() -> dict[str, Any]:
    """Credentials of a profile in ~/.aws, SSO too: boto3 reads them, if it is there."""
    files = ("~/.aws/credentials", "~/.aws/config")
    if os.environ.get("AWS_ACCESS_KEY_ID") or os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return {}
    if not (os.environ.get("AWS_PROFILE") or any(os.path.exists(os.path.expanduser(file)) for file in files)):
        return {}
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider

        return {"credential_provider": Boto3CredentialProvider()}
    except ImportError as error:
        if os.environ.get("AWS_PROFILE"):
            raise JobError(
                f"AWS_PROFILE: profiles need boto3 ({error}); install it, or give AWS_ACCESS_KEY_ID"
            ) from None
        return {}


def _found(meta: Any) -> Found:
    version = {key: meta[key] for key in ("e_tag", "version") if meta.get(key) is not None}  # obstore takes no None
    return Found(meta["path"], meta["size"], meta["last_modified"].timestamp(), version)


# --- what went wrong


def _kind(error: BaseException) -> str:
    return type(error).__name__


def _is_of_obstore(error: BaseException) -> bool:
    return any(kind.__module__.startswith("obstore") for kind in type(error).__mro__)


def _reason(text: str) -> str:
    """An error of obstore's in a few words: it comes with the server's answer in XML, and with a dump of itself. No key
    is in it, but for what an endpoint may have."""
    text = text.partition("\n\nDebug source")[0]
    if message := re.search(r"<Message>([^<]+)</Message>", text):
        code = re.search(r"<Code>([^<]+)</Code>", text)
        said = f"{message[1].rstrip('.')}{f', {code[1]}' if code else ''}"
    elif status := re.search(r"status code: (\d{3}[^:\n]*)", text):
        said = status[1]
    elif problem := re.search(r"HTTP error: (.+)", text):
        said = f"it cannot be reached: {problem[1]}"
    else:
        said = text
    return shown(credentials.redacted(" ".join(said.split())[:200]))
