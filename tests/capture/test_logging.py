"""Logging as a phase, and trackers of a shape that nobody knows."""

import os
from _thread import get_ident
from types import ModuleType, SimpleNamespace

import pytest

from traceml_agent.capture.framework import Framework, as_logging
from traceml_agent.capture.open_step import CLOSURE, NONE
from traceml_agent.capture.patches import trackers
from traceml_agent.capture.session import SESSION
from traceml_agent.schema.phases import EVAL, LOGGING


@pytest.fixture
def phases(monkeypatch):
    """The phase in which a call that logs ran, for each phase in which it was made."""
    seen = []
    framework = Framework("tracker")
    log = as_logging(lambda: seen.append(SESSION.tracker.phase), framework, "log")
    monkeypatch.setattr(SESSION, "events", [])
    monkeypatch.setattr(SESSION, "looks", {})
    monkeypatch.setattr(SESSION.tracker, "owner", get_ident())

    def ran_in(phase):
        monkeypatch.setattr(SESSION.tracker, "phase", phase)
        log()
        assert SESSION.tracker.phase == phase
        return seen[-1]

    return ran_in


def test_logging_is_a_part_of_another_phase_but_not_of_the_closure_of_an_optimizer(phases):
    assert (phases(NONE), phases(CLOSURE), phases(EVAL)) == (LOGGING, LOGGING, EVAL)


def test_a_forked_process_counts_its_own_logs(phases, monkeypatch):
    framework = Framework("other tracker")
    log = as_logging(lambda: None, framework, "log")
    monkeypatch.setattr(SESSION.tracker, "phase", NONE)
    log()
    log()
    pid = os.fork()
    if pid == 0:
        at_first = dict(framework.counts)
        log()
        os._exit(at_first == {} and framework.counts == {"logs": 1})
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert framework.counts == {"logs": 2}


def test_short_logs_are_gathered_and_long_ones_noted(monkeypatch):
    monkeypatch.setattr(SESSION, "events", [])
    monkeypatch.setattr(SESSION, "looks", {})
    framework = Framework("busy tracker")
    for elapsed_ns in [*[500_000] * 41, 1_500_000]:
        framework.logged(elapsed_ns, "log", None)
    noted = [(event.duration_ns, event.detail["sum_ns"]) for event in SESSION.events]
    assert noted == [
        (500_000, 500_000), (500_000, 10_000_000), (500_000, 10_000_000), (1_500_000, 1_500_000)
    ]  # fmt: skip


def test_a_tracker_of_another_shape_does_not_speak_for_the_others(monkeypatch):
    monkeypatch.setattr(SESSION, "statuses", {"logging": "active"})
    module = ModuleType("aim.sdk.run")
    module.__spec__ = SimpleNamespace(_initializing=False)
    assert trackers.install(module) == "not in: aim has another shape here"
    module.BasicRun = type("BasicRun", (), {})
    assert trackers.install(module) == "not in: aim has another shape here"
    assert SESSION.statuses == {"logging": "active"}
