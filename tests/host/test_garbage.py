"""The garbage collector, once it works rarely, still bounds what a long run holds."""

import gc
import weakref

import pytest

from batchgen.host import garbage


@pytest.fixture
def collecting_rarely():
    before = gc.get_threshold()
    garbage.collect_rarely()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_objects_that_refer_to_each_other_do_not_pile_up(collecting_rarely):
    class Knot:
        def __init__(self):
            self.itself = self

    alive, most = weakref.WeakSet(), 0
    for number in range(3 * garbage.YOUNG):
        alive.add(Knot())
        if number % 1000 == 0:
            most = max(most, len(alive))
    assert garbage.YOUNG // 10 < most <= garbage.YOUNG


def test_what_is_imported_meanwhile_is_never_looked_at():
    class Module:
        pass

    try:
        with garbage.not_collected():
            assert not gc.isenabled()
            imported = Module()
            assert any(each is imported for each in gc.get_objects())
        assert gc.isenabled()
        assert not any(each is imported for each in gc.get_objects())
    finally:
        gc.unfreeze()


def test_a_failed_import_leaves_the_collector_on():
    try:
        with pytest.raises(ImportError), garbage.not_collected():
            import no_such_module  # noqa: F401
        assert gc.isenabled()
    finally:
        gc.unfreeze()
