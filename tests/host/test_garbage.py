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
