"""What other samplers ask the watch of the garbage collector."""

import gc
import time
from _thread import get_ident
from types import SimpleNamespace

import pytest

from traceml_agent.capture.gc_watch import GcWatch


@pytest.fixture
def watch():
    found = GcWatch(SimpleNamespace(owner=get_ident(), phase=-1, step=0))
    found.start()
    gc.disable()
    yield found
    gc.enable()
    found.stop()


def test_since_is_what_of_the_last_collection_lies_behind_a_moment(watch):
    kept = [[number] for number in range(50_000)]
    before = time.perf_counter_ns()
    assert watch.since(before) == 0
    gc.collect()
    after = time.perf_counter_ns()
    whole = watch.since(before)
    assert 0 < whole <= after - before
    assert watch.since(after) == 0
    assert watch.since(after - whole // 2) <= whole // 2
    begun, ended = watch._starts[-1], watch._stops[-1][0]
    assert watch.since((begun + ended) // 2) == ended - (begun + ended) // 2
    watch.take()
    assert watch.since(before) == 0  # written down: no longer near
    del kept
