"""What a file is stands in its content; all of its formats give the same rows, from any shard on."""

import bz2
import gzip
import io
import json
import lzma
import zlib

import msgspec
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchgen.errors import JobError, Reject
from batchgen.input import compressed, file_formats
from batchgen.input.compressed import decompressed
from batchgen.input.plan import locate, plan_input
from batchgen.input.rows import Reader, read_rows

ROWS = [{"id": f"n{i}", "text": f'{i}: "a\\b" {{[,]}} 月 \\"'} for i in range(25)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def arrow(write) -> bytes:
    sink = pa.BufferOutputStream()
    write(sink, pa.Table.from_pylist(ROWS))
    return sink.getvalue().to_pybytes()


def ipc(sink, table):
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


def stream(sink, table):
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


def squeezed(codec: str, text: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as out:
        out.write(text)
    return sink.getvalue().to_pybytes()


def quoted(sign: str) -> bytes:
    fields = [["id", "text"], *([row["id"], row["text"]] for row in ROWS)]
    return "".join(sign.join('"' + each.replace('"', '""') + '"' for each in row) + "\r\n" for row in fields).encode()


ARRAY = json.dumps(ROWS).encode()
FILES = {
    "lines.jsonl": JSONL,
    "lines of no telling name": JSONL,
    "array.json": ARRAY,
    "array.jsonl": ARRAY,
    "pretty.json": json.dumps(ROWS, indent=2, ensure_ascii=False).encode(),
    "a line an element.json": b"[\n" + b",\n".join(JSONL.splitlines()) + b"\n]\n",
    "array behind a mark.json": b"\xef\xbb\xbf \r\n" + ARRAY,
    "array behind a MiB of blanks.json": b" " * (1 << 20) + ARRAY,
    "objects over several lines.json": b"\n".join(json.dumps(row, indent=1).encode() for row in ROWS),
    "array.json.gz": gzip.compress(ARRAY),
    "parquet.jsonl": arrow(lambda sink, table: pq.write_table(table, sink, row_group_size=7)),
    "X.PARQUET": arrow(lambda sink, table: pq.write_table(table, sink)),
    "x.arrow": arrow(ipc),
    "x.arrows": arrow(stream),
    "x.feather": arrow(lambda sink, table: pyarrow.feather.write_feather(table, sink, chunksize=6)),
    "x.csv": quoted(","),
    "x.tsv": b"\xef\xbb\xbf" + quoted("\t"),
    "x.CSV.GZ": gzip.compress(quoted(",")),
    "gzip without ending": gzip.compress(JSONL),
    "X.JSONL.GZ": gzip.compress(JSONL),
    "really.zst": gzip.compress(JSONL),
    "members.gz": gzip.compress(JSONL[:100]) + gzip.compress(b"") + gzip.compress(JSONL[100:]),
    "zeros behind.gz": gzip.compress(JSONL) + bytes(5000),
    "x.jsonl.bz2": bz2.compress(JSONL[:99]) + bz2.compress(JSONL[99:]),
    "x.jsonl.xz": lzma.compress(JSONL[:99]) + lzma.compress(JSONL[99:]),
    "x.jsonl.lz4": squeezed("lz4", JSONL),
    "frames.zst": squeezed("zstd", JSONL[:200]) + b"\x53\x2a\x4d\x18\3\0\0\0abc" + squeezed("zstd", JSONL[200:]),
    "zeros behind.zst": squeezed("zstd", JSONL) + bytes(99),
}


@pytest.mark.parametrize("shard_rows", [1, 4, 100])
@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_rows_from_any_shard(tmp_path, name, shard_rows):
    (tmp_path / name).write_bytes(FILES[name])
    plan = plan_input([str(tmp_path / name)], shard_rows)
    assert plan.rows == 25
    rows = [row for shard in plan.shards for row in read_rows(plan, shard, ["id", "text"])]  # each opened anew
    assert [row.number for row in rows] == list(range(25))
    assert [row.record() for row in rows] == ROWS
    reader = Reader(plan, ["id", "text"])
    assert [row.record() for shard in plan.shards for row in reader.read(shard)] == ROWS
    some = Reader(plan, ["id", "text"])  # a worker skips what others have
    assert [row.record() for shard in plan.shards[1::3] for row in some.read(shard)] == [
        row for shard in plan.shards[1::3] for row in ROWS[shard.first_row :][: shard.rows]
    ]


def test_without_a_libzstd_of_the_system_a_long_window_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(compressed, "_libzstd", lambda: None)
    (tmp_path / "a.zst").write_bytes(squeezed("zstd", JSONL[:200]) + squeezed("zstd", JSONL[200:]))
    assert plan_input([str(tmp_path / "a.zst")], 10).rows == 25
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3]) + (len(JSONL) << 3 | 1).to_bytes(3, "little")
    (tmp_path / "b.zst").write_bytes(frame + JSONL)
    with pytest.raises(JobError, match=r"b\.zst: .*its window is too large: unpack it with zstd -d --long=31"):
        plan_input([str(tmp_path / "b.zst")], 10)


def test_a_window_of_two_gibibytes(tmp_path):
    """What `zstd --long=31` writes of a pipe: a frame without its size, of one block."""
    block = (len(JSONL) << 3 | 1).to_bytes(3, "little") + JSONL  # raw and the last
    (tmp_path / "long.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd" + b"\x00" + bytes([(31 - 10) << 3]) + block)
    if not compressed._libzstd():  # pyarrow's own has a smaller window
        with pytest.raises(JobError, match=r"its window is too large: unpack it with zstd -d --long=31"):
            plan_input([str(tmp_path)], 10)
        return
    plan = plan_input([str(tmp_path)], 10)
    assert [row.record() for shard in plan.shards for row in read_rows(plan, shard, [])] == ROWS


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.recursive(
        st.none() | st.booleans() | st.integers(-9, 9) | st.text('"\\[]{},: \na月', max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\[]{}', max_size=3), inner, max_size=3),
        max_leaves=8,
    ), min_size=1, max_size=8),
    st.sampled_from([None, 0, 2]),
    st.integers(1, 9),
    st.booleans(),
)  # fmt: skip
def test_elements_of_any_array_are_found_whatever_the_chunks_and_from_any_element_on(values, indent, size, ascii):
    text = json.dumps(values, indent=indent, ensure_ascii=ascii).encode()

    def pieces(begin):
        return iter([text[at : at + size] for at in range(begin, len(text), size)])

    found = list(file_formats.elements(pieces(0), "json", 0))
    assert [msgspec.json.decode(element) for _, _, element in found] == values
    for number, (begin, following, _) in enumerate(found):
        again = file_formats.elements(pieces(begin), "json", begin)
        assert [msgspec.json.decode(element) for _, _, element in again] == values[number:]
        assert number + 1 == len(found) or following == found[number + 1][0]


@pytest.mark.parametrize(
    ("text", "elements"),
    [
        (b'[{"a":1}, oops, {"b":2}]', [b'{"a":1}', b"oops", b'{"b":2}']),
        (b'[{"a":1},,{"b":2}]', [b'{"a":1}', b"", b'{"b":2}']),
        (b'[{"a":1},]', [b'{"a":1}']),
        (b'[{"a":1}, {"b":', [b'{"a":1}', b'{"b":']),
        (b'[{"a":1}] and more', [b'{"a":1}', b"and more"]),
        (b'[{"a":1}]]]},{"b":2}', [b'{"a":1}', b"", b'{"b":2}']),
        (b"[ ]", []),
    ],
)
def test_what_is_wrong_in_an_array_costs_its_own_element(text, elements):
    assert [element for _, _, element in file_formats.elements(iter([text]), "json", 0)] == elements


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS pointer"),
        ("a.jsonl", '{"text": "月"}\n'.encode("utf-16"), "UTF-16"),
        ("a.jsonl", '{"text": "x"}\n'.encode("utf-16-le"), "UTF-16"),
        ("a.tsv", "text\tid\nMonday\t1\n".encode("utf-16"), "UTF-16"),
        ("a.orc", b"ORC\x08\x01", "ORC"),
        ("a.txt", b"Monday\nFriday\n", "jq -Rc"),
        ("a.yaml", b"- text: Monday\n", "is not JSONL"),
        ("a.xlsx", b"PK\x03\x04xx", "Excel"),
        ("a.parquet.gz", gzip.compress(FILES["X.PARQUET"], mtime=0), "parquet inside gzip; unpack it"),
        ("a.tar.gz", gzip.compress(b"x".ljust(257, b"\0") + b"ustar".ljust(300, b"\0"), mtime=0), "tar archive"),
        ("a.csv", b"text,text\na,b\n", "two columns named 'text'"),
        ("a.jsonl.gz", gzip.compress(JSONL, mtime=0)[:-9], "cut off or damaged gzip"),
        ("a.jsonl.gz", gzip.compress(JSONL, mtime=0) + b"more", "cut off or damaged gzip"),
        ("a.jsonl.xz", lzma.compress(JSONL) + b"more", "cut off or damaged xz"),
        ("a.parquet", FILES["X.PARQUET"][:-9], "not a Parquet file, or a damaged one"),
        ("a.arrow", FILES["x.arrow"][:-60], "not an Arrow file, or a damaged one"),
    ],
)
def test_what_is_not_read_is_refused_by_name_in_one_line(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(JobError) as refused:
        plan_input([str(tmp_path / name)], 4)
    assert str(refused.value).startswith(f"{tmp_path / name}: ")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_rows_of_csv_that_do_not_fit_are_rejected_alone(tmp_path):
    (tmp_path / "in.csv").write_bytes(b'id,text\n7,"one,\ntwo"\n\n8\n9,b\xff\n007,ok\n1,2,3\n')
    plan = plan_input([str(tmp_path)], 2)
    rows = [row for shard in plan.shards for row in read_rows(plan, shard, [])]
    seen = []
    for row in rows:
        try:
            seen.append((row.record()["id"], row.record()["text"]))
        except Reject as why:
            seen.append(why.reason)
    assert seen == [("7", "one,\ntwo"), "bad_shape", "invalid_utf8", ("007", "ok"), "bad_shape"]
    assert [locate(plan, row) for row in (0, 4)] == [f"{tmp_path}/in.csv row {row}" for row in (0, 4)]


def test_a_csv_of_orchids_is_no_orc(tmp_path):
    (tmp_path / "in.csv").write_text("ORCHID,text\n1,Monday\n")
    assert plan_input([str(tmp_path)], 2).rows == 1


class Counting(io.BytesIO):
    """Bytes that count what is read of them."""

    taken = 0

    def read(self, size=-1):
        data = super().read(size)
        self.taken += len(data)
        return data


@pytest.mark.parametrize("make", [gzip.compress, bz2.compress, lzma.compress, lambda text: squeezed("zstd", text)])
def test_a_bomb_is_unpacked_bit_by_bit(make):
    raw = Counting(make(bytes(200 << 20)))
    first = next(decompressed(raw, compressed.compression_of(raw.getvalue()[:64])))
    assert len(first) <= 1 << 20


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.json.gz", "x.csv.gz", "one group.parquet", "x.arrow", "x.jsonl"])
def test_one_pass_over_all_shards_opens_and_decodes_a_file_once(tmp_path, monkeypatch, name):
    """Of 60 shards, all of them in order, and every third as a worker among others has them."""
    rows = [{"text": f"row {number}"} for number in range(6000)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    content = {
        "x.jsonl.gz": lambda: gzip.compress(text),
        "x.json.gz": lambda: gzip.compress(json.dumps(rows).encode()),
        "x.csv.gz": lambda: gzip.compress(b"text\n" + "".join(row["text"] + "\n" for row in rows).encode()),
        "one group.parquet": lambda: arrow(lambda sink, _: pq.write_table(pa.Table.from_pylist(rows), sink)),
        "x.arrow": lambda: arrow(lambda sink, _: ipc(sink, pa.Table.from_pylist(rows))),
        "x.jsonl": lambda: text,
    }
    (tmp_path / name).write_bytes(content[name]())
    plan = plan_input([str(tmp_path / name)], 100)
    size = plan.files[0].end if name.endswith(".gz") else 0
    opened, decoded = [], []
    for module, opener in ((file_formats, "open_raw"), (file_formats, "open_arrow")):
        real = getattr(module, opener)
        monkeypatch.setattr(module, opener, lambda *given, real=real: opened.append(given[0]) or real(*given))
    inflate = zlib.decompressobj

    class Inflating:
        def __init__(self, **options):
            self._real = inflate(**options)

        def decompress(self, data, most):
            text = self._real.decompress(data, most)
            decoded.append(len(text))
            return text

        def __getattr__(self, name):
            return getattr(self._real, name)

    monkeypatch.setattr(compressed.zlib, "decompressobj", Inflating)
    for shards in (plan.shards, plan.shards[::3]):
        opened.clear(), decoded.clear()
        reader = Reader(plan, ["text"])
        read = [row.record() for shard in shards for row in reader.read(shard)]
        assert read == [row for shard in shards for row in rows[shard.first_row :][: shard.rows]]
        assert len(opened) == 1
        assert sum(decoded) <= size
