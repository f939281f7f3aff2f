from pathlib import Path

from batchgen.host.spill import Spill


def test_bytes_are_on_the_disk_for_as_long_as_somebody_holds_them(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spill = Spill()
    assert not list(tmp_path.iterdir())
    kept, other = spill.keep(b"abc"), spill.keep(b"xyz")
    assert (kept.read(), other.read()) == (b"abc", b"xyz")
    del other
    assert [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()] == [b"abc"]
    assert all(folder.stat().st_mode & 0o077 == 0 for folder in Path(tmp_path).iterdir())
    del kept, spill
    assert not list(tmp_path.iterdir())
