"""Models by their name on the hub: downloaded once, then from the cache. The hub is a stub on loopback."""

import hashlib
import json
import os
import re

import pyarrow.parquet as pq
import pytest
from conftest import MODEL
from stub_hub import StubHub, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {path.name: path.read_bytes() for path in MODEL.iterdir()} | {"README.md": b"x", "pytorch_model.bin": b"x"}
# BLIP-2 as transformers has it: in many files, few of which hold its vision.
WHERE = {"vision_model.a": "2", "qformer.b": "2", "query_tokens": "2", "language_model.c": "1", "language_model.d": "3"}
SHARDS = {name: f"model-0000{number}-of-00003.safetensors" for name, number in WHERE.items()}
BLIP2 = {"model.safetensors.index.json": json.dumps({"weight_map": SHARDS}).encode()}
MODELS = {
    "rinna/demo": FILES,
    "rinna/bilingual-gpt-neox-4b": FILES,
    "rinna/some-minigpt4": {"README.md": b"x", "checkpoint.pth": b"x"},
    "org/blip2": BLIP2 | {name: b"x" for name in SHARDS.values()},
}


class Hub(StubHub):
    """What huggingface_hub 1.33 asks for: a revision's commit and files, their sizes, the files themselves."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        api = re.match(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/?]+)", self.path)
        file = re.match(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)", self.path)
        name, revision = (api[1], api[3]) if api else (file[1], file[2])
        files = MODELS.get(name)
        if name == "rinna/gated":
            self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif files is None:
            self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", COMMIT):
            self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif api and api[2] == "revision":
            siblings = [{"rfilename": file} for file in files]
            self._answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())
        elif api:
            tree = [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in files.items()
            ]
            self._answer(200, json.dumps(tree).encode())
        else:
            content = files[file[3]]
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            self._answer(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET


@pytest.fixture
def hub():
    with serving(Hub) as server:
        server.asked = []
        yield server


@pytest.fixture
def command(hub, batchgen_process, tmp_path):
    """batchgen in a process of its own, as huggingface_hub reads its environment once; in a folder of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "hf")}

    def run(*arguments, **variables):
        return batchgen_process(*arguments, env=environment | variables, cwd=tmp_path)

    return run


def refusal(done) -> str:
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    return done.stderr


def test_a_model_is_downloaded_once_and_only_what_is_needed(command, hub):
    first = command("inspect", "rinna/demo")
    assert (first.returncode, first.stderr) == (0, "")
    assert f"revision         {COMMIT}\n" in first.stdout
    loaded = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert loaded == {"config.json", "spiece.model", "tokenizer_config.json", "model.safetensors"}
    hub.asked.clear()
    assert command("inspect", "rinna/demo", "--revision", COMMIT).stdout == first.stdout
    assert hub.asked == []  # a commit never changes


def test_without_a_connection_the_cache_is_used_and_said_so(command, hub):
    first = command("inspect", "rinna/demo")
    offline = command("inspect", "rinna/demo", HF_HUB_OFFLINE="1")
    assert offline.stdout == first.stdout
    assert offline.stderr == f"batchgen: HF_HUB_OFFLINE is set: using rinna/demo from the cache, commit {COMMIT}\n"
    gone = command("inspect", "rinna/demo", HF_ENDPOINT="http://127.0.0.1:9")
    assert gone.stdout == first.stdout
    assert gone.stderr.startswith("batchgen: the hub cannot be reached (")
    assert gone.stderr.count("\n") == 1


def test_a_run_names_the_commit_and_its_worker_asks_nobody(command, hub, tmp_path):
    (tmp_path / "in.jsonl").write_text('{"text": "Monday"}\n')
    flags = ["--revision", "main", "--output", "out", "--max-tokens", "4"]
    done = command("run", "in.jsonl", "--model", "rinna/demo", *flags)
    assert done.returncode == 0, done.stderr
    assert len([path for path in hub.asked if path == "/api/models/rinna/demo/revision/main"]) == 2
    metadata = pq.read_metadata(tmp_path / "out" / "part-00000-of-00001.parquet").metadata
    model = json.loads(metadata[b"batchgen.model"])
    assert (model["name"], model["revision"]) == ("rinna/demo", COMMIT)
    verified = command("verify", "out", HF_HUB_OFFLINE="1")
    assert (verified.returncode, verified.stderr) == (0, "")


def test_not_in_the_cache(command):
    line = refusal(command("inspect", "rinna/demo", HF_HUB_OFFLINE="1"))
    assert "rinna/demo: not a folder; its revision main is not in the hub's cache, and HF_HUB_OFFLINE is set" in line


def test_no_such_model(command):
    line = refusal(command("run", "x.jsonl", "--model", "rinna/none", "--output", "out"))
    assert "rinna/none: neither a folder nor a model on the hub" in line


def test_a_model_for_certain_users_only(command):
    line = refusal(command("inspect", "rinna/gated"))
    assert "rinna/gated: access is restricted; accept its terms on the hub, then `hf auth login`" in line


def test_a_cached_model_is_used_whatever_is_wrong_with_the_connection(command):
    first = command("inspect", "rinna/demo")
    for variables in ({"HTTP_PROXY": "htp://foo"}, {"ALL_PROXY": "socks5://127.0.0.1:9"}, {"HF_ENDPOINT": "nonsense"}):
        again = command("inspect", "rinna/demo", NO_PROXY="", no_proxy="", **variables)
        assert (again.returncode, again.stdout, again.stderr.count("\n")) == (0, first.stdout, 1), again.stderr
        assert "using rinna/demo from the cache" in again.stderr


def test_no_such_revision(command):
    line = refusal(command("inspect", "rinna/demo", "--revision", "v9"))
    assert "rinna/demo: has no revision v9" in line


def test_a_minigpt4_model_s_language_model_and_vision_come_from_the_hub_too(command, hub, tmp_path):
    assert "name its weights in [model] vision" in refusal(command("inspect", "rinna/some-minigpt4"))
    done = command("inspect", "rinna/some-minigpt4", "--vision", "org/blip2")
    assert done.returncode == 0, done.stderr
    assert "vision/model-00002-of-00003.safetensors" in done.stdout
    named = {path.rpartition("/")[2] for path in hub.asked if "org/blip2/resolve" in path}
    assert "model-00002-of-00003.safetensors" in named and "model-00001-of-00003.safetensors" not in named
    asked = len(hub.asked)
    again = command("inspect", "rinna/some-minigpt4", "--vision", "org/blip2", "--revision", COMMIT)
    assert (again.stdout, hub.asked[asked:]) == (done.stdout, [])


@pytest.mark.parametrize("path", ["nowhere", "./rinna/none", "a/b/c", "rinna/a--b"])
def test_what_does_not_look_like_a_name_is_a_missing_folder(command, hub, path):
    assert "no such model folder" in refusal(command("inspect", path))
    assert hub.asked == []
