"""The manual's tables are what the types say. `python tests/manual_tables.py` brings them up to date."""

import re

import manual_tables
import pytest

from batchgen.flags import keys
from batchgen.job.spec import TABLES

TEXTS = {name: path.read_text(encoding="utf-8") for name, path in manual_tables.PAGES.items()}


@pytest.mark.parametrize("name", TEXTS)
def test_a_page_is_what_the_types_say(name):
    assert manual_tables.page(name, TEXTS[name]) == TEXTS[name], "run: python tests/manual_tables.py"


@pytest.mark.parametrize("name", TEXTS)
def test_every_part_is_in_its_page(name):
    found = re.findall(r"^<!-- generated: (\w+) -->$", TEXTS[name], flags=re.M)
    assert sorted(found) == sorted(manual_tables.parts(name))


@pytest.mark.parametrize("table", TABLES)
def test_every_key_has_a_line_with_its_type_default_and_meaning(table):
    chapter = TEXTS["job-file"].partition(f"\n## [{table}]\n")[2].partition("\n## ")[0]
    for key in keys():
        if key.table == table:
            [line] = [line for line in chapter.splitlines() if line.startswith(f"| `{key.name}` ")]
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            assert len(cells) == 6 and cells[1] and cells[2] and cells[5].startswith(key.description)
            assert cells[4] in ("yes", "no")


def test_units_are_of_keys_that_there_are():
    assert set(manual_tables.UNITS) <= {(key.table, key.name) for key in keys()}
