"""The manual's page about the job file is what the types say. `python tests/job_file_page.py` brings it up to date."""

import re

import job_file_page
import pytest

from batchgen.flags import keys
from batchgen.job.spec import TABLES

TEXT = job_file_page.PAGE.read_text(encoding="utf-8")


def test_the_page_is_what_the_types_say():
    assert job_file_page.page(TEXT) == TEXT, "run: python tests/job_file_page.py"


def test_every_part_is_in_the_page():
    assert set(re.findall(r"^<!-- generated: (\w+) -->$", TEXT, flags=re.M)) == set(job_file_page.parts())


@pytest.mark.parametrize("table", TABLES)
def test_every_key_has_a_line_with_its_type_default_and_meaning(table):
    chapter = TEXT.partition(f"\n## [{table}]\n")[2].partition("\n## ")[0]
    for key in keys():
        if key.table == table:
            [line] = [line for line in chapter.splitlines() if line.startswith(f"| `{key.name}` ")]
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            assert len(cells) == 6 and cells[1] and cells[2] and cells[5].startswith(key.description)
            assert cells[4] in ("yes", "no")


def test_units_are_of_keys_that_there_are():
    assert set(job_file_page.UNITS) <= {(key.table, key.name) for key in keys()}
