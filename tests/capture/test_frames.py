"""Reading the frames of other threads leaves the garbage collector and what they hold alone."""

import gc
import sys
import threading
import weakref

import pytest

from traceml_agent.capture import frames
from traceml_agent.capture.frames import _without_collection, why_unsafe


@pytest.mark.parametrize("is_on", [True, False])
def test_the_collector_is_as_it_was(is_on):
    current_frames = _without_collection()
    (gc.enable if is_on else gc.disable)()
    try:
        for _ in range(3):
            assert current_frames()[threading.get_ident()].f_back is sys._getframe()
            assert gc.isenabled() == is_on
    finally:
        gc.enable()


def test_nothing_that_a_thread_holds_lives_longer():
    class Held:
        pass

    current_frames = _without_collection()

    def hold():
        held = Held()
        current_frames()
        return weakref.ref(held)

    assert hold()() is None


def test_it_is_off_while_frames_are_read(monkeypatch):
    states = []
    monkeypatch.setattr(frames.sys, "_current_frames", lambda: states.append(gc.isenabled()) or {})
    assert _without_collection()() == {}
    assert states == [False]
    assert gc.isenabled()


def test_without_an_interpreter_lock_frames_are_not_read(monkeypatch):
    assert why_unsafe() is None
    monkeypatch.setattr(frames.sys, "_is_gil_enabled", lambda: False, raising=False)
    assert "no interpreter lock" in why_unsafe()
