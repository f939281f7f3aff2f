"""Where the input is: files, folders, globs and URIs. Finding them, opening them, and what their errors mean."""

import contextlib
import errno
import fnmatch
import hashlib
import io
import itertools
import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

import pyarrow as pa
from pyarrow import fs

from ..errors import JobError, MissingInput, NoRows, Stopped, is_of_network, shown, warn
from ..host import safeopen
from ..job.spec import recordable_path

GLOB_SIGNS = "*?["  # in a URI only `*` works: `?` begins the query, and `[` is not allowed in a path
LOOPBACK = ("localhost", "127.0.0.1", "::1")

# --- what is data, by name

COMPRESSION_ENDINGS = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".xz", ".lz4", ".snappy")
JSON_ENDINGS = (".jsonl", ".ndjson", ".json", ".jl", ".jsonlines")
CSV_ENDINGS = (".csv", ".tsv")
_DATA_ENDINGS = (*JSON_ENDINGS, *CSV_ENDINGS, *".parquet .pq .parq .arrow .arrows .ipc .feather".split())
# Files that Hugging Face datasets writes next to the data.
_METADATA = frozenset(["dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"])
# Formats in which people keep data and which batchgen does not read: it warns of them in a folder.
_OTHER_DATA = frozenset(
    """
    .txt .yaml .yml .xml .html .htm .xlsx .xls .ods .doc .docx .pdf .zip .tar .tgz .7z .rar .pkl .pickle .npy .npz .h5
    .hdf5 .sqlite .sqlite3 .db .duckdb .orc .avro .tfrecord .msgpack .dta .sav .rtf .po .tmx .srt .vtt
    """.split()
)
_NO_DATA = frozenset(
    """
    .md .rst .py .ipynb .sh .lock .log .toml .ini .cfg .conf .crc .png .jpg .jpeg .gif .webp .svg .wav .mp3 .flac .mp4
    .safetensors .pt .pth .bin .model .bak .tmp .swp .sha256 .md5 .idx
    """.split()
)


def base_ending(name: str) -> str:
    """The ending that tells a file's format, in lower case: `.jsonl` for `A.JSONL.gz`."""
    stem, ending = os.path.splitext(name.lower())
    return os.path.splitext(stem)[1] if ending in COMPRESSION_ENDINGS else ending


def name_of(path: str) -> str:
    """The last part of a path or URI."""
    inner = local(path)
    return PurePosixPath(urlsplit(path).path if inner is None else inner).name


# --- local paths


def local(path: str) -> str | None:
    """The file that a path or file:// URI names; None for another URI. Raises JobError."""
    if path.startswith("file://"):
        host, _, rest = path.removeprefix("file://").partition("/")
        if host not in ("", "localhost"):
            raise JobError(f"{shown(path)}: a file:// URI must name a file on this machine: file:///folder/file")
        return os.fsdecode(unquote_to_bytes("/" + rest))
    return None if "://" in path else os.path.abspath(os.path.expanduser(path))


# --- errors

_PASSING = {
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ENODEV, errno.ENXIO),
    *(errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.EPIPE, errno.ENETDOWN, errno.ENETUNREACH),
    *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EREMOTEIO, errno.ENOTCONN, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
}
_PASSING_WORDS = re.compile(
    r"NETWORK_CONNECTION|curlCode|SLOW_DOWN|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|timed? ?out", re.I
)


def failure(path: str, error: BaseException, running: bool) -> JobError | Stopped:
    """What an error of the file system or the network means. running: the job is under way, so the file was there."""
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200] or type(error).__name__
    where = shown(path)
    if running or _is_passing(error):
        return Stopped(f"{where}: cannot be read now ({reason}); fix that and run the same command again")
    refused = _status(error.__cause__) if isinstance(error, FileNotFoundError) else None
    if refused not in (None, 404, 410):  # fsspec says the same of 401 and 403, and the URL, which may hold a key
        return JobError(f"{where}: cannot be read: the server answers {refused}")
    if isinstance(error, FileNotFoundError):
        return MissingInput(f"{where}: no such file or folder")
    return JobError(f"{where}: cannot be read: {reason}")


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, FileNotFoundError) and error.__cause__:  # fsspec raises it for any failure of a web server
        return _is_passing(error.__cause__)
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING
    if (status := _status(error)) is not None:
        return status >= 500 or status in (408, 429)
    return is_of_network(error) or bool(_PASSING_WORDS.search(str(error)))


def _status(error: BaseException | None) -> int | None:
    """What a web server answered, if the error is about that."""
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


@contextlib.contextmanager
def reading(path: str, running: bool = False) -> Iterator[None]:
    """Wraps calls of a file system: what they raise becomes JobError or Stopped."""
    try:
        yield
    except (JobError, Stopped):
        raise
    except Exception as error:  # aiohttp and the hub raise classes of their own, which are not OSErrors
        if isinstance(error, OSError | pa.ArrowException) or local(path) is None:
            raise failure(path, error, running) from error
        raise


# --- opening


def open_raw(path: str, running: bool = False) -> Any:
    """A file's bytes, as an object with read(size), seek and close. Raises JobError or Stopped."""
    inner = local(path)
    with reading(path, running):
        if inner is not None:
            return _open_regular(path, inner)
        system, inner = _open_system(path)
        return _open_stream(system, inner) if _is_without_ranges(system, inner) else system.open_input_file(inner)


def open_arrow(path: str, running: bool = False) -> pa.NativeFile:
    """The same for pyarrow's readers, which need to seek. Raises JobError or Stopped."""
    inner = local(path)
    with reading(path, running):
        if inner is not None:
            _open_regular(path, inner).close()
            return pa.OSFile(os.fsencode(inner))
        system, inner = _open_system(path)
        if _is_without_ranges(system, inner):
            return pa.BufferReader(_open_stream(system, inner).read())
        return system.open_input_file(inner)


def _open_regular(path: str, inner: str) -> io.FileIO:
    """Opened without blocking: if the file has been replaced by a pipe, open() would wait for a writer."""
    file = io.FileIO(os.open(inner, os.O_RDONLY | os.O_NONBLOCK))
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise _no_regular_file(path)


def _is_without_ranges(system: fs.FileSystem, inner: str) -> bool:
    """Whether it is on a web server that does not support range requests."""
    return inner.startswith("http") and not system.handler.fs.info(inner).get("partial")


def _open_stream(system: fs.FileSystem, inner: str) -> Any:
    return system.handler.fs.open(inner, "rb", block_size=0)


def facts(path: str, running: bool = False) -> tuple[int, int]:
    """(size in bytes, modification time in ns). A remote file without a time has a hash of its ETag in place of it."""
    inner = local(path)
    with reading(path, running):
        if inner is not None:
            info = os.stat(inner)
            return info.st_size, info.st_mtime_ns
        system, inner = _open_system(path)
        if isinstance(system, fs.PyFileSystem):
            return _remote_facts(system.handler.fs.info(inner))
        found = system.get_file_info(inner)
        if found.type == fs.FileType.NotFound:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return found.size, found.mtime_ns or 0


def _remote_facts(info: dict[str, Any]) -> tuple[int, int]:
    tag = next((info[key] for key in ("blob_id", "ETag", "Last-Modified", "mtime") if info.get(key)), None)
    stamp = hashlib.blake2b(str(tag).encode(), digest_size=7).digest() if tag else b""
    return info.get("size") or 0, int.from_bytes(stamp, "little")


def _open_system(path: str) -> tuple[fs.FileSystem, str]:
    """The file system of a URI, and the path inside it. Raises JobError."""
    scheme = path.partition("://")[0]
    if scheme in ("hf", "http", "https"):
        return _fsspec(path, scheme)
    try:
        return fs.FileSystem.from_uri(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and _is_passing(error):
            raise failure(path, error, running=False) from None
        raise JobError(f"{shown(path)}: not a URI that can be opened: {error}") from None


def _fsspec(path: str, scheme: str) -> tuple[fs.FileSystem, str]:
    if scheme == "http" and urlsplit(path).hostname not in LOOPBACK:
        raise JobError(f"{shown(path)}: http:// works for this machine only; use https://")
    try:
        import fsspec

        system = fsspec.filesystem(scheme)
    except ImportError as error:
        raise JobError(f"{shown(path)}: {scheme}:// needs a package that is not installed ({error})") from None
    return fs.PyFileSystem(fs.FSSpecHandler(system)), path.removeprefix("hf://")


# --- finding


class _Found(NamedTuple):
    path: str
    identity: tuple[int, int] | None = None  # device and inode of a local file
    is_link: bool = False


class _Asked(NamedTuple):
    """Settings of a search.

    Attributes:
        out: the job's own output folder, which is never input.
        follow_links: whether to follow links in folders and globs.
        known: files that the job has read before (through links too), and the folders above them.
    """

    out: str | None = None
    follow_links: bool = False
    known: Collection[str] = ()

    def follows(self, link: str) -> bool:
        """Whether a link in a folder or glob is followed."""
        return self.follow_links or recordable_path(link) in self.known


def find(
    paths: Iterable[str],
    out: str | None = None,
    follow_links: bool = False,
    known: Iterable[str] = (),
    may_be_empty: bool = False,
) -> list[str]:
    """All input files, in the order of `paths`; those of one folder or glob by name.

    Args:
        paths: files, folders, globs and URIs.
        out: the job's own output folder, which is never input.
        follow_links: whether to follow links in folders and globs.
        known: files that the job has read before: links that lead to them are followed anyway.
        may_be_empty: folders may have no files.

    Raises:
        JobError, Stopped
    """
    above = {str(each) for path in known for each in (path, *PurePosixPath(path).parents)}
    asked = _Asked(out, follow_links, above)
    listings = []
    for path in (path for given in paths for path in _braces(given)):
        try:
            listings.append(_find_one(path, asked))
        except NoRows:
            if not may_be_empty:
                raise
    seen: dict[Any, _Found] = {}
    found = []
    for listing in listings:
        for file in _once(listing):
            key = file.identity or file.path
            if key in seen:
                twice = seen[key].path
                same = "named twice in the input" if twice == file.path else f"the same file as {shown(twice)}"
                raise JobError(f"{shown(file.path)}: {same}; name each file once")
            seen[key] = file
            found.append(file.path)
    return found


def _once(listing: list[_Found]) -> list[_Found]:
    """A folder's files, each under one name only: one that is not a link, if there is one."""
    kept: dict[Any, _Found] = {}
    for file in sorted(listing, key=lambda file: (file.is_link, file.path)):
        key = file.identity or file.path
        if key in kept:
            warn(f"{shown(file.path)}: the same file as {shown(kept[key].path)}; its rows are read once")
        else:
            kept[key] = file
    return sorted(kept.values(), key=lambda file: file.path)


def _braces(path: str) -> list[str]:
    """`{a,b}` expanded as in a shell, unless a file has exactly this name."""
    match = re.search(r"\{([^{}]*,[^{}]*)\}", path)
    inner = local(path)
    if not match or (inner is not None and os.path.lexists(inner)):
        return [path]
    ways = (path[: match.start()] + way + path[match.end() :] for way in match[1].split(","))
    return [each for way in ways for each in _braces(way)]


def _find_one(path: str, asked: _Asked) -> list[_Found]:
    inner = local(path)
    links: list[str] = []
    if inner is None:
        files = _find_remote(path, asked.out)
    else:
        with reading(path):
            files = _find_local(path, inner, asked, links)
    if not files:
        what = "no file matches" if _is_glob(path) else f"folder without {', '.join(_DATA_ENDINGS)} files"
        is_there = inner is not None and os.path.isdir(_fixed(inner)[0] if _is_glob(path) else inner)
        kind = NoRows if is_there and not links else JobError  # a folder in which nothing is yet, or a wrong name
        raise kind(f"{shown(path)}: {what}{f'; {_passed_over(links)}' if links else ''}")
    if links:
        warn(f"{shown(path)}: {_passed_over(links)}")
    return files


def _passed_over(links: list[str]) -> str:
    """Links are not followed, because whoever can create one in the folder could have us read any file that we can."""
    number = "1 link" if len(links) == 1 else f"{len(links):,} links"
    return f"{number} skipped ({shown(min(links))}): name the files, or give --follow-links ([input] follow_links)"


def _is_glob(path: str) -> bool:
    return any(sign in path for sign in GLOB_SIGNS)


def _find_local(path: str, inner: str, asked: _Asked, links: list[str]) -> list[_Found]:
    """Links that are skipped are appended to `links`."""
    if not os.path.exists(inner):
        if _is_glob(inner):
            return _glob(inner, asked, links)
        if os.path.islink(inner):
            raise JobError(f"{shown(path)}: a link to {shown(os.readlink(inner))}, which is not there")
        if os.path.basename(inner) == "-":
            raise _no_regular_file(path)
        raise JobError(f"{shown(path)}: no such file or folder")
    if os.path.isdir(inner):
        return _data_of(inner, _walk(inner, ["**", "*"], asked, links))
    if not os.path.isfile(inner) or inner.startswith(("/dev/", "/proc/")):
        raise _no_regular_file(path)
    return [_found(inner)]


def _no_regular_file(path: str) -> JobError:
    return JobError(
        f"{shown(path)}: needs a regular file, as input is read more than once; write it to one first "
        "(zcat x.gz > x.jsonl) or name the compressed file"
    )


def _found(path: str) -> _Found:
    info = os.stat(path)
    return _Found(recordable_path(path), (info.st_dev, info.st_ino), os.path.islink(path))


def _walk(folder: str, patterns: list[str], asked: _Asked, passed_over: list[str]) -> Iterator[str]:
    """The files in and below a folder that match the patterns.

    Output folders of batchgen are skipped, and so are names that begin with `.` or `_` unless a pattern asks for them.
    No folder is entered twice.
    """
    above = itertools.accumulate(folder.split("/")[1:], lambda left, part: f"{left}/{part}", initial="")
    seen = {_identity(part or "/") for part in above}
    own = _identity(asked.out) if asked.out and os.path.isdir(asked.out) else None
    folders, links, outputs = [folder], list[str](), list[str]()
    while folders or links:
        here = folders.pop() if folders else links.pop(0)
        if here is not folder:
            if (identity := _identity(here)) in seen:
                continue
            seen.add(identity)
            if identity == own or _is_output(here):
                outputs += [here] * (identity != own)
                continue
        parts = _saved_parts(here)
        names = os.path.relpath(here, folder).split("/") if here is not folder else []
        for entry in sorted(os.scandir(here), key=lambda entry: entry.name, reverse=True):
            if entry.is_symlink() and not asked.follows(entry.path):
                if _may_be_meant([*names, entry.name], patterns):
                    passed_over.append(entry.path)
            elif entry.is_dir():
                if _may_match_below([*names, entry.name], patterns):
                    (links if entry.is_symlink() else folders).append(entry.path)
            elif not _matches([*names, entry.name], patterns):
                continue
            elif entry.is_file():
                if parts is None or entry.name in parts:
                    yield entry.path
            elif entry.is_symlink() and _may_be_data(entry.name):
                warn(f"{shown(entry.path)}: a broken link; skipped")
    _tell(folder, "an output folder of batchgen in the input; skipped", outputs)


def _identity(path: str) -> tuple[int, int]:
    info = os.stat(path)
    return info.st_dev, info.st_ino


def _is_output(folder: str) -> bool:
    """Whether batchgen made the folder: its shards would become rows of the next run."""
    return os.path.isfile(f"{folder}/_job.json") and os.path.isdir(f"{folder}/_state")


def _saved_parts(folder: str) -> set[str] | None:
    """The data files of a folder that `datasets.save_to_disk` wrote, which may hold caches too; None for others."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, JobError, RecursionError):
        state = json.loads(safeopen.read(f"{folder}/state.json"))
        return {str(part["filename"]) for part in state["_data_files"]}
    return None


def _glob(pattern: str, asked: _Asked, links: list[str]) -> list[_Found]:
    folder, patterns = _fixed(pattern)
    return _data_of(folder, _walk(folder, patterns, asked, links)) if os.path.isdir(folder) else []


def _fixed(pattern: str) -> tuple[str, list[str]]:
    """The folder that a glob searches, and the patterns for the path below it, one per segment."""
    parts = pattern.split("/") + ["*"] * pattern.endswith("/**")
    fixed = next(number for number, part in enumerate(parts) if _is_glob(part))
    return "/".join(parts[:fixed]) or "/", parts[fixed:]


def _matches(names: list[str], patterns: list[str]) -> bool:
    """Whether a path matches, segment by segment; `**` matches any number of folders."""
    if not patterns or not names:
        return names == patterns
    if patterns[0] == "**":
        return _matches(names, patterns[1:]) or (names[0][:1] not in "._" and _matches(names[1:], patterns))
    return _matches_name(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def _matches_name(name: str, pattern: str) -> bool:
    """As in a shell, a name that begins with `.` (here `_` too) only matches a pattern that begins with the same."""
    return (name[:1] not in "._" or pattern[:1] == name[:1]) and fnmatch.fnmatchcase(name, pattern)


def _may_match_below(folders: list[str], patterns: list[str]) -> bool:
    """Whether a file in this folder, or below it, may match."""
    for name, pattern in itertools.zip_longest(folders, patterns[: len(folders)]):
        if pattern == "**":
            return name[:1] not in "._"
        if pattern is None or not _matches_name(name, pattern):
            return False
    return len(patterns) > len(folders)


def _may_be_meant(names: list[str], patterns: list[str]) -> bool:
    """Whether a link could lead to something that the patterns ask for, a file or a folder."""
    is_file = _matches(names, patterns) and _may_be_data(names[-1])
    return is_file or (not os.path.splitext(names[-1])[1] and _may_match_below(names, patterns))


def _data_of(folder: str, files: Iterable[str]) -> list[_Found]:
    """The data files of a listing. Warns once of files that may be data in a format that is not read."""
    found, others = [], []
    for file in files:
        if _is_data(file):
            found.append(_found(file))
        elif base_ending(file) in _OTHER_DATA:
            others.append(os.path.basename(file))
    _tell_of_others(folder, others, bool(found))
    return found


def _tell_of_others(folder: str, names: list[str], is_more: bool) -> None:
    """is_more: there are files that are read; if there are none, an error follows anyway."""
    if is_more:
        _tell(folder, "batchgen does not read such files; skipped", names)


def _tell(folder: str, what: str, names: list[str]) -> None:
    if names:
        some = ", ".join(shown(os.path.relpath(name, folder) if name[0] == "/" else name) for name in sorted(names)[:3])
        more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
        warn(f"{shown(folder)}: {some}{more}: {what}")


def _is_data(path: str) -> bool:
    name = os.path.basename(path)
    return _may_be_data(name) and (base_ending(name) in _DATA_ENDINGS or _looks_like_data(path))


def _may_be_data(name: str) -> bool:
    ending = base_ending(name)
    return name not in _METADATA and ending not in _OTHER_DATA and ending not in _NO_DATA


def _looks_like_data(path: str) -> bool:
    """For a file whose name has no known ending, such as Spark's part-00000 or the hub's blobs."""
    from .file_formats import looks_like_data

    with open(path, "rb") as stream:
        return looks_like_data(stream.read(4096))


# --- other file systems


def _find_remote(path: str, out: str | None = None) -> list[_Found]:
    """out: the job's own output, which is never input; nor are those of others."""
    with reading(path):
        system, inner = _open_system(path)
        if path.startswith(("http://", "https://")):  # a link, which names one file
            facts(path)
            return [_Found(path)]
        info = system.get_file_info(inner)
        if info.type == fs.FileType.File:
            return [_Found(_full_name(path, inner, info.path))]
        if info.type == fs.FileType.Directory:
            listed = _list(system, inner)
            outputs = [os.path.dirname(file) for file in listed if os.path.basename(file) == "_job.json"]
            outputs += [out.partition("://")[2]] if out and "://" in out else []
            files = [
                file
                for file in listed
                if not _is_hidden(file[len(inner) :]) and not any(file.startswith(f"{each}/") for each in outputs)
            ]
        elif _is_glob(inner):
            files = _remote_glob(system, inner)
        else:
            raise JobError(f"{shown(path)}: no such file or folder")
        names = [PurePosixPath(file).name for file in files]
        data = [file for file, name in zip(files, names, strict=True) if is_named_like_data(name)]
        _tell_of_others(path, [name for name in names if base_ending(name) in _OTHER_DATA], bool(data))
    return [_Found(_full_name(path, inner, file)) for file in sorted(data)]


def _is_hidden(relative: str) -> bool:
    return any(part[:1] in (".", "_") for part in relative.strip("/").split("/"))


def is_named_like_data(name: str) -> bool:
    """Of a bucket's files it is all that is looked at: to look into each may cost as much as reading it."""
    return _may_be_data(name) and base_ending(name) in _DATA_ENDINGS


def _list(system: fs.FileSystem, folder: str, recursive: bool = True) -> list[str]:
    infos = system.get_file_info(fs.FileSelector(folder, recursive=recursive))
    return [info.path for info in infos if info.type == fs.FileType.File]


def _remote_glob(system: fs.FileSystem, pattern: str) -> list[str]:
    folder, patterns = _fixed(pattern)
    if system.get_file_info(folder).type != fs.FileType.Directory:
        return []
    files = _list(system, folder, recursive=len(patterns) > 1)
    return [file for file in files if _matches(file.removeprefix(folder).strip("/").split("/"), patterns)]


def _full_name(path: str, inner: str, file: str) -> str:
    """The URI of `file`, found in the file system of `path`, with the query that is needed to open it."""
    if path.startswith("hf://"):
        return f"hf://{file}"
    before, _, query = path.partition("?")
    return unquote(before).removesuffix("/").removesuffix(inner) + quote(file) + (f"?{query}" if query else "")
