import base64
import http.server
import os
import threading
import time
from types import SimpleNamespace

import pytest

from batchgen.errors import Reject, Stopped
from batchgen.input.conversation import ASSISTANT, USER, Utterance
from batchgen.input.images import MARK, Images, placed
from batchgen.job.spec import InputTable, LimitsTable


@pytest.fixture
def folder(tmp_path):
    """in/a/one.png and in/two.png, a secret beside it, and links to that."""
    inside = tmp_path / "in"
    (inside / "a").mkdir(parents=True)
    (inside / "a" / "one.png").write_bytes(b"one")
    (inside / "two.png").write_bytes(b"two")
    (tmp_path / "secret").write_bytes(b"secret")
    (inside / "link.png").symlink_to("two.png")
    (inside / "out").symlink_to(tmp_path)
    os.mkfifo(inside / "pipe.png")
    return inside


def images(folder, column="image", limits=None, **table) -> Images:
    inputs = [SimpleNamespace(path=str(folder / "rows.jsonl"), rows=10)]
    return Images(InputTable(path=["x"], image=column, **table), inputs, limits or LimitsTable())


def contents(folder, value, **more) -> list[bytes]:
    return images(folder, **more).read({"text": "x", "image": value}, 0)[1]


def refusal(folder, value, **more) -> str:
    with pytest.raises(Reject) as refused:
        contents(folder, value, **more)
    return str(refused.value)


def test_a_column_holds_bytes_paths_uris_objects_or_a_list_of_them(folder):
    uri = "data:image/png;base64," + base64.b64encode(b"three").decode()
    two = folder / "two.png"
    values = [b"bytes", "a/one.png", "./two.png", str(two), f"file://{two}", uri]
    values += [{"bytes": b"four", "path": "x"}, {"bytes": None, "path": "two.png"}]
    expected = [b"bytes", b"one", b"two", b"two", b"two", b"three", b"four", b"two"]
    assert contents(folder, values) == expected
    assert [contents(folder, value) for value in values] == [[content] for content in expected]
    assert contents(folder, []) == []


def test_the_job_may_name_another_folder(folder, tmp_path):
    assert contents(tmp_path, "two.png", image_folder=str(folder)) == [b"two"]


def test_images_of_rows_in_a_bucket_lie_there_too(bucket):
    for name in ("one.png", "a/two.png"):
        bucket.write(f"in/{name}", name.encode())
    there = f"{bucket.location}/in"
    values = ["one.png", "./a/two.png", f"{there}/a/two.png"]
    inputs = [SimpleNamespace(path=f"{there}/rows.jsonl", rows=10)]
    for paths, table in ((inputs, {}), ([SimpleNamespace(path="/x.jsonl", rows=10)], {"image_folder": there})):
        of_table = Images(InputTable(path=["x"], image="image", **table), paths, LimitsTable())
        assert of_table.read({"image": values}, 0)[1] == [b"one.png", b"a/two.png", b"a/two.png"]
        for value, why in {
            "none.png": "image_missing",
            "../rows.jsonl": "image_un",
            "s3://other/x": "image_un",
        }.items():
            with pytest.raises(Reject, match=why):
                of_table.read({"image": value}, 0)


class Web(http.server.BaseHTTPRequestHandler):
    """Has one image, in two places, and answers in many ways. It does not know ranges."""

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        there = ("one.png", "large.png", "huge.png", "broken.png", "a%20%23b.png")
        other = {"moved.png": 302, "denied.png": 403, "busy.png": 503}
        self.send_response(200 if name in there else other.get(name, 404))
        if name == "moved.png":
            self.send_header("Location", "/in/one.png")
        if name in ("huge.png", "broken.png"):
            self.send_header("Content-Length", str(1 << 40))
        elif name == "one.png":
            self.send_header("Content-Length", "3")
        self.end_headers()
        try:
            pieces = {"large.png": 20, "huge.png": 2000}.get(name, 1) if self.command == "GET" else 0
            for _ in range(pieces):
                self.wfile.write(bytes(1 << 16) if pieces > 1 else b"one")
        except OSError:  # nobody reads on
            self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def web():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/in"
        server.shutdown()


def test_images_of_rows_on_a_web_server_lie_there_too(web):
    inputs = [SimpleNamespace(path=f"{web}/rows.jsonl", rows=10)]
    of_web = Images(InputTable(path=["x"], image="image"), inputs, LimitsTable(row_bytes=10_000_000))

    def read(value) -> list[bytes]:
        return of_web.read({"image": value}, 0)[1]

    assert read(["one.png", f"{web}/one.png", "moved.png", "a #b.png"]) == [b"one"] * 4
    assert read("large.png") == [bytes(20 << 16)]  # which comes in parts
    for value, why in {
        "none.png": "^image_missing: image: 'none.png': no such file$",
        "denied.png": "^image_unreadable: image: 'denied.png': .*the server answers 403",
        "huge.png": "^too_large: image: the row's images have more bytes",
        "../in/one.png": "is not below",
        web.replace("127.0.0.1", "127.0.0.2") + "/one.png": "is not below",
    }.items():
        begin = time.monotonic()
        with pytest.raises(Reject, match=why):
            read(value)
        assert time.monotonic() - begin < 10
    for value in ("busy.png", "broken.png"):  # which may be there later
        with pytest.raises(Stopped, match="cannot be read now"):
            read(value)


@pytest.mark.parametrize("path", ["../secret", "a/../../secret", "/etc/passwd", "out/secret", "file:///etc/passwd"])
def test_no_path_leads_out_of_the_folder(folder, path):
    assert refusal(folder, path).startswith("image_unreadable: image")


@pytest.mark.parametrize(
    "uri", ["https://example.org/a.png", "http://169.254.169.254/", "s3://bucket/a.png", "hf://datasets/a/b/c.png"]
)
def test_no_uri_leads_to_a_server_that_the_input_is_not_on(folder, uri):
    assert "is not below" in refusal(folder, uri)


def test_links_are_followed_only_if_the_job_says_so(folder):
    assert "over, a link" in refusal(folder, "link.png")
    assert contents(folder, "link.png", follow_links=True) == [b"two"]


def test_what_is_missing_or_no_file_says_so(folder):
    assert refusal(folder, None).startswith("image_missing: image is null or not there")
    assert refusal(folder, "") == "image_missing: image is empty"
    assert refusal(folder, ["two.png", "no.png"]) == "image_missing: image[1]: 'no.png': no such file"
    assert refusal(folder, "two.png/x").startswith("image_missing")
    assert "a folder" in refusal(folder, "a") and "a pipe" in refusal(folder, "pipe.png")
    assert "is a number, not bytes" in refusal(folder, 7)
    assert "not base64" in refusal(folder, "data:image/png;base64,???")
    assert refusal(folder, "a\0b").startswith("image_unreadable")


def test_limits_hold_for_all_images_of_a_row_together(folder):
    few, small = LimitsTable(images=2), LimitsTable(row_bytes=5)
    assert "too_large: 3 images, and [limits] images allows 2" in refusal(folder, [b"x"] * 3, limits=few)
    assert contents(folder, ["two.png"], limits=small) == [b"two"]
    assert "too_large: image[1]" in refusal(folder, ["two.png", b"too"], limits=small)
    assert refusal(folder, ["two.png", "a/one.png"], limits=small).startswith("too_large: image[1]")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "two.png"}},
        {"type": "image_url", "image_url": "two.png"},
        {"type": "input_image", "image_url": "data:image/png;base64,dHdv"},
        {"type": "image", "image": "two.png", "text": None},
        {"type": "image", "path": "two.png"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "dHdv"}},
    ],
)
def test_messages_may_have_images_among_their_parts(folder, part):
    said = [{"role": "user", "content": [{"type": "text", "text": "Look:"}, part, {"type": "text", "text": "What?"}]}]
    record, found = images(folder, column="messages").read({"messages": said}, 0)
    assert found == [b"two"]
    assert record["messages"] == [{"role": "user", "content": f"Look:{MARK}What?"}]


def test_parts_may_leave_it_to_a_column_which_images_they_are(folder):
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Differ?"}]}]
    record, found = images(folder, column="images").read({"messages": said, "images": ["two.png", b"x"]}, 0)
    assert found == [b"two", b"x"]
    assert record == {"messages": [{"role": "user", "content": f"{MARK}{MARK}Differ?"}]}


def test_the_request_of_a_batch_file_may_have_them(folder):
    said = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "two.png"}}]}]
    record, found = images(folder, column="body").read({"custom_id": "a", "body": {"messages": said, "seed": 1}}, 0)
    assert found == [b"two"]
    assert record["body"] == {"messages": [{"role": "user", "content": MARK}], "seed": 1}
    assert images(folder, column="body").read({"body": {"messages": [{"role": "user", "content": "x"}]}}, 0)[1] == []


SAID = [Utterance(USER, "What?"), Utterance(ASSISTANT, "A cat."), Utterance(USER, "Sure?")]


def test_images_stand_where_the_text_says_or_ahead_of_the_first_utterance():
    assert placed([], SAID, 0, " ") == SAID
    assert placed([], SAID, 2, " ")[0].text == f"{MARK}{MARK} What?"
    there = [Utterance(USER, f"Is {MARK} a cat?")]
    assert placed([], there, 1, " ") == there
    assert placed([], [Utterance(USER, "<image>\nWhat?")], 1, " ")[0].text == f"{MARK}\nWhat?"


def test_places_and_images_are_as_many():
    there = [Utterance(USER, f"Is {MARK} a cat?")]
    for count, why in ((2, "bad_shape: the text has 1 places"), (0, "image_missing: the text has 1 places")):
        with pytest.raises(Reject, match=why):
            placed([], there, count, " ")
    with pytest.raises(Reject, match="bad_shape: the text has 2 places"):
        placed(there, there, 1, " ")
