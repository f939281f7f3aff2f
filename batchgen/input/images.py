"""Images of rows: where a record has them, how their files are found, and where they stand in a conversation.

In the text of a conversation an image is `<Img><ImageHere></Img>`, as MiniGPT-4 writes it, whatever the model. Names of
files come from data, so they lead to files below one folder and nowhere else: not out of it, over no link, and to no
server but the one that the input itself is on.
"""

import base64
import binascii
import errno
import itertools
import os
import re
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from ..errors import JobError, MissingInput, Reject
from ..host import safeopen
from ..job.spec import InputTable, LimitsTable
from . import files, turns
from .conversation import USER, Conversation, Utterance, is_blank, kind_of
from .plan import InputFile
from .shapes import TURNS

HERE = "<ImageHere>"
MARK = f"<Img>{HERE}</Img>"
LLAVA = "<image>"  # how LLaVA's datasets write it
_PLACE = re.compile(f"(?:<Img>)?{HERE}(?:</Img>)?")

# Columns that may hold turns, and objects with turns in `messages`: those of batch files and of preference data.
_LISTS, _OBJECTS = (*TURNS, "prompt", "chosen", "rejected"), ("body", "params", "input")
_KINDS = ("image", "image_url", "input_image")  # types of a message's parts
_KEYS = ("image_url", "image", "source", "url", "path", "bytes", "data", "base64")  # where such a part has the image
_DATA = re.compile(r"data:[\w/+.;=-]*;base64,")

Record = dict[str, Any]


class Images:
    """The images of a job's rows, as files.

    Its own folder is the place of a row's input file, unless the job names another one.
    """

    def __init__(self, table: InputTable, inputs: Sequence[InputFile], limits: LimitsTable):
        self._table, self._limits = table, limits
        self._paths = [file.path for file in inputs]
        self._ends = list(itertools.accumulate(file.rows for file in inputs))

    def read(self, record: Record, row: int) -> tuple[Record, list[bytes]]:
        """A record in which images are marks in texts, and the content of their files, in order.

        Raises Reject: image_missing, image_unreadable, bad_shape or too_large; Stopped or JobError if a file cannot be
        read now.
        """
        column, value = self._table.image, record.get(self._table.image)
        marked = _marked(record)
        if column in marked:
            record, values = marked[column]
        else:
            if value is None:
                raise Reject("image_missing", f"{column} is null or not there; [] is for a row that has no image")
            values = list(value) if isinstance(value, list) else [value]
            for name, (changed, _) in marked.items():
                record = {**record, name: changed[name]}
            record = type(record)((name, part) for name, part in record.items() if name != column)
        if len(values) > self._limits.images:
            raise Reject("too_large", f"{len(values):,} images, and [limits] images allows {self._limits.images:,}")
        folder, contents, left = self._folder(row), [], self._limits.row_bytes
        for position, each in enumerate(values):
            where = f"{column}[{position}]" if len(values) > 1 else column
            contents.append(self._content(each, where, folder, left))
            left -= len(contents[-1])
        return record, contents

    def _folder(self, row: int) -> str:
        return self._table.image_folder or parent(self._paths[bisect_right(self._ends, row)])

    def _content(self, value: Any, where: str, folder: str, most: int) -> bytes:
        """The bytes of one image, at most `most`."""
        if isinstance(value, dict):
            value = _inside(value)
        if isinstance(value, str) and (found := _DATA.match(value)):
            value = _decoded(value[found.end() :], where)
        if isinstance(value, bytes):
            if len(value) > most:
                raise _too_large(where)
            return value
        if is_blank(value):
            raise Reject("image_missing", f"{where} is empty")
        if not isinstance(value, str):
            raise Reject("image_unreadable", f"{where} is {kind_of(value)}, not bytes, a path or a list of them")
        names = _names_below(value, folder)
        if names is None:
            raise Reject(
                "image_unreadable", f"{where}: {value!r:.200} is not below {folder} (see [input] image_folder)"
            )
        inner = files.local(folder)
        try:
            content = _remote(folder, names, most) if inner is None else self._local(inner, names, most)
        except Reject as why:
            raise Reject(why.reason, f"{where}: {value!r:.200}: {why.detail}") from None
        if len(content) > most:
            raise _too_large(where)
        return content

    def _local(self, folder: str, names: list[str], most: int) -> bytes:
        path = os.path.join(folder, *names)
        try:
            if self._table.follow_links:
                path = os.path.realpath(path)
                return safeopen.read_below("/", path.strip("/").split("/"), most + 1)
            return safeopen.read_below(folder, names, most + 1)
        except JobError as error:
            raise Reject("image_unreadable", str(error).removeprefix(f"{path}: ")) from None
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                raise Reject("image_missing", "no such file") from None
            if error.errno == errno.ELOOP:
                raise Reject("image_unreadable", "is, or leads over, a link (see [input] follow_links)") from None
            if error.errno == errno.EACCES:
                raise Reject("image_unreadable", "may not be read") from None
            raise files.failure(path, error, running=True) from error


def parent(path: str) -> str:
    """The folder of a file, by its path or URI."""
    before, _, query = path.partition("?") if files.local(path) is None else (path, "", "")
    folder = before.rpartition("/")[0]
    return f"{folder}?{query}" if query else folder


def _remote(folder: str, names: list[str], most: int) -> bytes:
    before, _, query = folder.partition("?")
    inner = "/".join(names) if before.startswith("hf://") else quote("/".join(names))
    uri = f"{before.rstrip('/')}/{inner}" + (f"?{query}" if query else "")
    try:
        with files.open_raw(uri) as stream, files.reading(uri):
            content = bytearray()
            while len(content) <= most and (part := stream.read(most + 1 - len(content))):  # the web gives what it has
                content += part
            return bytes(content)
    except MissingInput:
        raise Reject("image_missing", "no such file") from None
    except JobError as error:
        raise Reject("image_unreadable", str(error)) from None


def _names_below(path: str, folder: str) -> list[str] | None:
    """The parts of a path below the folder; None if it leads elsewhere."""
    root = files.local(folder)
    if path.startswith("file:///"):
        path = files.local(path) or path
    if root is not None and path.startswith("/"):
        path = os.path.relpath(path, root) if os.path.isabs(path) else path
    elif root is None and path.startswith(before := f"{folder.partition('?')[0].rstrip('/')}/"):
        path = path.removeprefix(before)
    names = [name for name in path.split("/") if name not in ("", ".")]
    is_elsewhere = "://" in path or path.startswith("/") or "\0" in path or ".." in names or not names
    return None if is_elsewhere else names


def _decoded(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Reject("image_unreadable", f"{where} is a data: URI that is not base64") from None


def _too_large(where: str) -> Reject:
    return Reject("too_large", f"{where}: the row's images have more bytes than [limits] row_bytes allows")


def _inside(value: dict[str, Any]) -> Any:
    """What an object says of one image: Hugging Face's {bytes, path}, or a part of a message."""
    for key in ("bytes", *_KEYS):
        found = value.get(key)
        if isinstance(found, dict):
            return _inside(found)
        if found is not None and key in ("data", "base64") and isinstance(found, str):
            return f"data:;base64,{found}"
        if found is not None:
            return found
    return None


# --- where they stand


def _marked(record: Record) -> dict[str, tuple[Record, list[Any]]]:
    """By each column with messages that have images: the record with marks in their place, and what the messages say of
    them. Raises Reject(bad_shape)."""
    found = {}
    for name in (*_LISTS, *_OBJECTS):
        value = record.get(name)
        said = value.get("messages") if name in _OBJECTS and isinstance(value, dict) else value
        if turns.looks_like_turns(said):
            marked, images = _marked_turns(said, name)
            changed = marked if said is value else {**(value or {}), "messages": marked}
            found[name] = type(record)({**record, name: changed}), images
    return found


def _marked_turns(value: Any, where: str) -> tuple[Any, list[Any]]:
    images: list[Any] = []
    listed = turns.as_list(value) or []
    marked = [_marked_turn(turn, f"{where}[{position}]", images) for position, turn in enumerate(listed)]
    return (marked if images else value), images


def _marked_turn(value: Any, where: str, images: list[Any]) -> Any:
    """A turn whose images are marks; they are appended to `images`."""
    turn = turns.as_turn(value) or {}
    what = turns.keys_of(turn)[1]
    parts = turn.get(what) if what else None
    if not isinstance(parts, list) or not any(map(_is_image, parts)):
        return value
    pieces: list[str] = []
    for part in parts:
        if _is_image(part):
            images.append(_inside(turns.as_turn(part) or {}))
            pieces.append(MARK)
        elif text := turns.joined([part], where):
            pieces += ["\n", text] if pieces and pieces[-1] != MARK else [text]
    return {**turn, what: "".join(pieces)}


def _is_image(part: Any) -> bool:
    part = turns.as_turn(part)
    return part is not None and part.get("type") in _KINDS


def placed(prefix: Conversation, said: Conversation, count: int, gap: str) -> Conversation:
    """A conversation with a mark for each of its images: where its texts have them, or else ahead of the user's first
    utterance, with `gap` behind. Raises Reject(image_missing | bad_shape) if the numbers differ."""
    marks = sum(turn.text.count(HERE) for turn in (*prefix, *said))
    if count and not marks:
        if sum(turn.text.count(LLAVA) for turn in said) == count:
            said = [Utterance(turn.speaker, turn.text.replace(LLAVA, MARK)) for turn in said]
        else:
            first = next(place for place, turn in enumerate(said) if turn.speaker == USER)
            ahead = Utterance(USER, f"{MARK * count}{gap}{said[first].text}")
            said = [*said[:first], ahead, *said[first + 1 :]]
        marks = count
    if marks != count:
        raise Reject(
            "bad_shape" if count else "image_missing",
            f"the text has {marks} places for images ({HERE}), and the row {count} images",
        )
    return said


def split(text: str) -> list[str]:
    """The texts before, between and behind the images of an utterance."""
    return _PLACE.split(text)
