"""What is noted of a call, and when torch is asked what it knows itself."""

import threading
from _thread import get_ident

import pytest
import torch
import torch.distributed as dist

from traceml_agent.capture.collective_log import ASYNC_CALL, CALL
from traceml_agent.capture.patches import collective_watch
from traceml_agent.capture.patches.collective_watch import Watch
from traceml_agent.capture.session import Session
from traceml_agent.schema.phases import BACKWARD

BEGUN = (1, 1, -1)


@pytest.fixture
def watch():
    """The watch of a group of one on gloo."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Watch(torch)
    dist.destroy_process_group()


def test_a_call_has_the_group_number_bytes_and_backend(watch):
    for _ in range(2):
        watch.note("all_reduce", None, torch.ones(4), None, BEGUN, 11)
    [(key, number)] = watch.log.keys.items()
    assert key[0] == "all_reduce"
    assert key[2:] == (1, "gloo", 1)
    assert [row[:6] for row in watch.log.rows] == [
        (number, 1, 1, 1, 10, 16),
        (number, 1, 2, 1, 10, 16),
    ]


@pytest.mark.parametrize(("result", "part"), [(None, CALL), (3, CALL), (object(), ASYNC_CALL)])
def test_what_a_call_returns_says_whether_it_blocked(watch, result, part):
    watch.note("all_reduce", None, None, result, BEGUN, 11)
    assert watch.log.rows[0][7] == part


def test_a_call_that_is_only_collected_is_neither_noted_nor_numbered(watch):
    with dist._coalescing_manager():
        watch.note("all_reduce", None, None, None, BEGUN, 11)
        assert not watch.log.rows
        dist.all_reduce(torch.ones(1))
    watch.note("all_reduce", None, None, None, BEGUN, 11)
    assert [row[2] for row in watch.log.rows] == [1]


def test_a_program_that_makes_groups_without_end_is_not_followed(watch, monkeypatch):
    monkeypatch.setattr(collective_watch, "GROUPS_LIMIT", 2)
    for _ in range(4):
        watch.note("barrier", dist.new_group([0]), None, None, BEGUN, 11)
    assert len(watch.groups) == len(watch.log.rows) == 2


def test_torch_is_asked_only_by_the_training_thread_and_only_at_rest():
    session, asked = Session(), []
    session.looks["test"] = lambda at_end: asked.append(at_end) or []
    session.tracker.owner = get_ident()
    session.look()
    session.look(at_end=True)
    assert asked == [False, True]

    watchdog = threading.Thread(target=session.look)
    watchdog.start()
    watchdog.join()
    session.tracker.phase = BACKWARD
    session.look()
    session.tracker.phase = -1
    session.gates["backward"].shut = True  # then nobody knows whether it is in backward
    session.look()
    assert len(asked) == 2
