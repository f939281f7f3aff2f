"""`batchgen export --to hf://datasets/ORG/NAME`: results on a hub, which is a stub on loopback."""

import base64
import hashlib
import io
import json
import os
import re

import pyarrow.parquet as pq
import pytest
from conftest import demo_records
from stub_hub import StubHub, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(StubHub):
    """What huggingface_hub 2.4 asks for to push: a repository, how files are uploaded, large ones, and the commit."""

    def do_GET(self) -> None:
        match = re.match(r"/api/datasets/([^/]+/[^/]+)", self.path)
        name = match[1] if match else ""
        if name not in self.server.repositories:
            self._tell(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"} if match else {})
        elif "/tree/" in self.path:
            files = self.server.repositories[name]["files"]
            tree = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ]
            self._tell(200, tree)
        else:
            siblings = [{"rfilename": path} for path in self.server.repositories[name]["files"]]
            self._tell(200, {"id": name, "sha": COMMIT, "siblings": siblings})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.server.tokens.add(self.headers["Authorization"])
        if self.server.refuses:
            self._tell(403, {"error": "You don't have the rights to create a dataset under this namespace"})
        elif self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.server.repositories:
                self._tell(409, {"error": "there already", "url": self._url(name)})
                return
            visibility = asked.get("visibility") or ("private" if asked["private"] else "public")  # from 2.0 on; before
            self.server.repositories[name] = {"visibility": visibility, "files": {".gitattributes": b""}}
            self._tell(200, {"url": self._url(name)})
        elif self.path == "/api/validate-yaml":
            self._tell(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {"path": each["path"], "uploadMode": "lfs" if each["path"].endswith(".parquet") else "regular"}
                for each in json.loads(body)["files"]
            ]
            self._tell(200, {"files": [{**each, "shouldIgnore": False, "oid": None} for each in files]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            base = f"http://127.0.0.1:{self.server.server_port}/upload/"
            objects = [
                {**each, "actions": {"upload": {"href": base + each["oid"]}}} for each in json.loads(body)["objects"]
            ]
            self._tell(200, {"transfer": "basic", "objects": objects})
        else:
            self._commit(re.match(r"/api/datasets/([^/]+/[^/]+)/commit/main", self.path)[1], body)

    def _commit(self, name: str, body: bytes) -> None:
        files = self.server.repositories[name]["files"]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.uploaded[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        self._tell(200, {"success": True, "commitUrl": f"{self._url(name)}/commit/{COMMIT}", "commitOid": COMMIT})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.uploaded[self.path.rpartition("/")[2]] = content
        self._tell(200, {})

    def _url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/datasets/{name}"

    def _tell(self, code: int, content: object, headers: dict[str, str] | None = None) -> None:
        self._answer(code, json.dumps(content).encode(), headers)


@pytest.fixture
def hub():
    with serving(Hub) as server:
        server.repositories, server.uploaded, server.tokens, server.refuses = {}, {}, set(), False
        yield server


@pytest.fixture
def out(instantly, write_rows):
    return instantly([write_rows(demo_records(5))], output={"shard_rows": 2})


@pytest.fixture
def push(hub, batchgen_process, out, tmp_path):
    """Runs export in a process of its own, as huggingface_hub reads its environment once."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "hf")}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_ofatest"}

    def run(*flags, to="hf://datasets/org/answers", **variables):
        return batchgen_process("export", out, "--to", to, *flags, env=environment | variables)

    return run


def refusal(done) -> str:
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    return done.stderr


def test_a_dataset_is_pushed_with_its_card_and_is_private(push, hub):
    done = push()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "exported: 5 rows, 5 responses, 0 rejects to hf://datasets/org/answers\n"
    repository = hub.repositories["org/answers"]
    assert repository["visibility"] == "private"
    assert sorted(repository["files"]) == [".gitattributes", "README.md", "data/train-00000-of-00001.parquet"]
    table = pq.read_table(io.BytesIO(repository["files"]["data/train-00000-of-00001.parquet"]))
    assert table["row"].to_pylist() == [0, 1, 2, 3, 4]
    assert repository["files"]["README.md"].startswith(b"---\n") and b"# answers\n" in repository["files"]["README.md"]
    assert hub.tokens == {"Bearer hf_ofatest"}


def test_a_dataset_that_is_there_is_replaced_only_if_told(push, hub):
    push()
    hub.repositories["org/answers"]["files"] |= {"data/train-00000-of-00002.parquet": b"old", "notes.md": b"mine"}
    assert "is there already; give --overwrite" in refusal(push())
    assert push("--overwrite", "--columns", "id,response").returncode == 0
    files = hub.repositories["org/answers"]["files"]
    assert sorted(files) == [".gitattributes", "README.md", "data/train-00000-of-00001.parquet", "notes.md"]
    assert pq.read_table(io.BytesIO(files["data/train-00000-of-00001.parquet"])).column_names == ["id", "response"]


def test_a_public_dataset_has_to_be_asked_for(push, hub):
    assert push("--public").returncode == 0
    assert hub.repositories["org/answers"]["visibility"] == "public"


def test_what_the_hub_refuses_is_one_line(push, hub):
    hub.refuses = True
    assert "You don't have the rights" in refusal(push())
    assert "no connection to the hub" in refusal(push(HF_ENDPOINT="http://127.0.0.1:9"))


@pytest.mark.parametrize(
    ("flags", "to", "error"),
    [
        ([], "hf://datasets/answers", "write hf://datasets/ORG/NAME"),
        ([], "hf://datasets/org/answers/data.parquet", "write hf://datasets/ORG/NAME"),
        (["--format", "csv"], "hf://datasets/org/answers", "--format csv: on the hub results are a dataset"),
        (["--public"], "x.parquet", "--public: is for --to hf://datasets/ORG/NAME"),
    ],
)
def test_what_cannot_be_pushed_is_told(push, hub, flags, to, error):
    assert error in refusal(push(*flags, to=to))
    assert not hub.repositories


def test_without_a_token_nothing_is_made(push, hub):
    assert "you are not logged in; run `hf auth login`, or set HF_TOKEN" in refusal(push(HF_TOKEN=""))
    assert not hub.repositories
