"""A model in a bucket is downloaded once for each state of it, whole or not at all."""

import threading

import pytest
from conftest import MODEL

from batchgen.errors import JobError
from batchgen.host.bucket import Bucket
from batchgen.model import bucket_models
from batchgen.model.model import load_model


@pytest.fixture
def uri(bucket, monkeypatch, tmp_path) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for file in MODEL.iterdir():
        bucket.write(f"demo/{file.name}", file.read_bytes())
    bucket.write("demo/README.md", b"no part of it")
    bucket.write("demo/more/config.json", b"nor this")
    return f"{bucket.location}/demo"


def asked(monkeypatch) -> list[str]:
    """The objects that are read from now on."""
    names, real = [], Bucket.part

    def part(self, name, begin, end):
        names.append(name)
        return real(self, name, begin, end)

    monkeypatch.setattr(Bucket, "part", part)
    return names


def test_it_is_the_model_that_its_files_are(uri):
    found, here = load_model(uri), load_model(str(MODEL))
    assert (found.digests, found.sha256) == (here.digests, here.sha256)
    assert found.name == "demo"
    assert not (found.folder / "README.md").exists()


def test_it_is_downloaded_once(uri, monkeypatch):
    first = load_model(uri).folder
    names = asked(monkeypatch)
    assert load_model(uri).folder == first
    assert names == []


def test_another_state_of_it_is_another_folder(uri, bucket):
    first = load_model(uri).folder
    bucket.write("demo/generation_config.json", b'{"temperature": 0.5}')
    second = load_model(uri).folder
    assert second != first
    assert [(folder / "generation_config.json").exists() for folder in (first, second)] == [False, True]


def test_a_download_that_ended_early_goes_on(uri, monkeypatch):
    real, names = Bucket.part, []

    def part(self, name, begin, end):
        if names and name != names[0]:
            raise KeyboardInterrupt
        names.append(name)
        return real(self, name, begin, end)

    with monkeypatch.context() as killed:
        killed.setattr(Bucket, "part", part)
        with pytest.raises(KeyboardInterrupt):
            load_model(uri)
    again = asked(monkeypatch)
    load_model(uri)
    assert again
    assert names[0] not in again


def test_of_several_that_want_it_one_downloads_it(uri, monkeypatch):
    names = asked(monkeypatch)
    threads = [threading.Thread(target=bucket_models.folder_of, args=[uri, ["*.json"]]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == len(set(names)) > 0


def test_where_none_is_is_one_line(bucket):
    with pytest.raises(JobError, match=f"^{bucket.location}/none: no model is there; in a bucket it is a folder"):
        load_model(f"{bucket.location}/none")
