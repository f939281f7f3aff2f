"""What is damaged is moved away, and nothing that was moved before is lost."""

import pytest

from batchgen.output import layout
from batchgen.output.quarantine import quarantine

DAMAGED = layout.journal(0, "w")


def test_two_of_one_name_lie_side_by_side(store):
    kept = {}
    for content in (b"one", b"two"):
        store.write(DAMAGED, content)
        kept[quarantine(store, DAMAGED)] = content
    assert {name: store.read(name) for name in kept} == kept
    assert all(name.startswith("_state/quarantine/part-00000.w.journal.") for name in kept)
    assert not store.exists(DAMAGED)


def test_what_another_process_has_moved_is_not_there(store):
    with pytest.raises(FileNotFoundError):
        quarantine(store, DAMAGED)
