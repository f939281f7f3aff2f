"""`batchgen report`: what it refuses, what it replaces, and that it opens what any version has left."""

import shutil
from pathlib import Path

import pytest
from conftest import MODEL
from folders import make
from folders.make import PLACES, put_places
from reported import answered, response

FOLDERS = sorted(path.parent for path in Path(make.__file__).parent.glob("*/*/_job.json"))


@pytest.fixture
def out(tmp_path):
    return answered(tmp_path / "out", [[response(row) for row in range(4)]])


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_folders_of_every_version_have_a_page(folder, batchgen, tmp_path):
    shutil.copytree(folder.parent, tmp_path / "made")
    put_places(tmp_path / "made", PLACES[0], str(tmp_path / "made"))
    put_places(tmp_path / "made", PLACES[1], str(MODEL))
    done = batchgen("report", tmp_path / "made" / folder.name, "--to", tmp_path / "page.html")
    assert (done.exit_code, done.stderr) == (0, "")
    assert (tmp_path / "page.html").read_text("utf-8").endswith("</html>\n")


def test_the_same_folder_gives_the_same_bytes_wherever_it_is(out, batchgen, tmp_path):
    batchgen("report", out, "--to", tmp_path / "one.html")
    (tmp_path / "elsewhere").mkdir()
    out.rename(tmp_path / "elsewhere" / "out")
    batchgen("report", tmp_path / "elsewhere" / "out", "--to", tmp_path / "two.html")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert str(tmp_path) not in (tmp_path / "one.html").read_text("utf-8")


def test_a_page_is_replaced_and_any_other_file_is_not(out, batchgen, tmp_path):
    page, other = tmp_path / "page.html", tmp_path / "other.html"
    batchgen("report", out, "--to", page)
    assert batchgen("report", out, "--to", page).exit_code == 0
    other.write_text("<!DOCTYPE html>mine")
    refused = batchgen("report", out, "--to", other)
    assert refused.exit_code == 2 and "give --overwrite" in refused.stderr and refused.stderr.count("\n") == 1
    assert other.read_text() == "<!DOCTYPE html>mine"
    assert batchgen("report", out, "--to", other, "--overwrite").exit_code == 0
    assert other.read_bytes() == page.read_bytes()


@pytest.mark.parametrize("place", ["out/page.html", "none/page.html", "folder", "link.html"])
def test_a_place_where_no_page_can_be_is_refused(place, out, batchgen, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.html").symlink_to(tmp_path / "elsewhere.html")
    refused = batchgen("report", out, "--to", tmp_path / place)
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1
    assert not (tmp_path / "elsewhere.html").exists()


def test_what_is_no_output_folder_is_told_in_one_line(batchgen, tmp_path):
    (tmp_path / "other").mkdir()
    refused = batchgen("report", tmp_path / "other", "--to", tmp_path / "page.html")
    assert refused.exit_code == 2 and "no batchgen output folder" in refused.stderr and refused.stderr.count("\n") == 1


def test_a_damaged_shard_is_told_in_one_line_and_nothing_is_written(out, batchgen, tmp_path):
    part = out / "part-00000-of-00001.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 3 : len(content) // 2] = b"\0" * (len(content) // 2 - len(content) // 3)
    part.write_bytes(content)
    refused = batchgen("report", out, "--to", tmp_path / "page.html")
    assert refused.exit_code == 2 and "part-00000-of-00001.parquet: " in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (tmp_path / "page.html").exists()
