import pytest
from bench.report import made, measured


@pytest.mark.slow
def test_a_million_rows_take_little_time_and_memory(tmp_path):
    figures = measured([made(tmp_path, 1_000_000)], tmp_path / "page.html")
    assert figures["seconds"] < 30 and figures["peak_mb"] < 300 and figures["page_mb"] < 5
