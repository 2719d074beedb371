"""When a sample counts, what it stands for, and that the sampler keeps to its part of a core."""

import threading
import time

import pytest

from traceml_agent.capture.open_step import IDLE_NS, NONE
from traceml_agent.capture.samplers import stacks
from traceml_agent.capture.samplers.stacks import LATE_NS, StackSampler
from traceml_agent.capture.session import Session
from traceml_agent.schema.phases import BACKWARD, PHASES
from traceml_agent.schema.stacks import OUTSIDE, RESIDUAL, UNKNOWN

MS = 1_000_000


@pytest.fixture
def sampler():
    session = Session()
    session.tracker.owner = threading.get_ident()
    session.tracker.segment.start = 1
    return StackSampler(session, 20.0)


def tracker(sampler):
    return sampler._session.tracker


def phases(sampler):
    """Samples and time by phase, as they are in the table."""
    found = {}
    for row in sampler.table().rows:
        samples, weight_ns = found.get(row.phase, (0, 0))
        found[row.phase] = samples + row.samples, weight_ns + row.weight_ns
    return found


def close_step(sampler):
    tracker(sampler).step += 1
    sampler._settle()


def test_a_sample_counts_once_its_step_is_closed(sampler):
    sampler._sample(0, 0, 0)
    assert phases(sampler) == {}
    close_step(sampler)
    assert phases(sampler) == {RESIDUAL: (1, 50 * MS)}


def test_what_follows_the_last_step_is_outside(sampler):
    sampler._sample(0, 0, 0)
    close_step(sampler)
    sampler._sample(0, 0, 0)
    sampler._settle(at_end=True)
    assert phases(sampler) == {RESIDUAL: (1, 50 * MS), OUTSIDE: (1, 50 * MS)}


def test_a_pause_that_is_in_no_step_is_outside_and_a_long_step_is_not(sampler):
    count = IDLE_NS // (50 * MS) + 1
    for _ in range(count):
        sampler._sample(0, 0, 0)
    tracker(sampler).last_duration = 30 * MS
    close_step(sampler)
    assert phases(sampler) == {OUTSIDE: (count, count * 50 * MS)}
    for _ in range(count):
        sampler._sample(0, 0, 0)
    tracker(sampler).last_duration = count * 50 * MS
    close_step(sampler)
    assert phases(sampler)[RESIDUAL] == (count, count * 50 * MS)


def test_a_sample_that_comes_late_stands_for_the_delay_too(sampler):
    sampler._sample(0, 30 * MS, 0)
    close_step(sampler)
    (row,) = sampler.table().rows
    assert (row.weight_ns, row.late) == (80 * MS, 0)  # for want of a core, not of the lock


def test_a_sample_that_waited_for_the_lock_in_one_phase_is_late(sampler):
    tracker(sampler).since = 5
    sampler._sample(10, LATE_NS, LATE_NS)
    close_step(sampler)
    (row,) = sampler.table().rows
    assert (row.phase, row.late, row.before) == (RESIDUAL, 1, False)


@pytest.mark.parametrize(("phase", "filed"), [(BACKWARD, RESIDUAL), (NONE, UNKNOWN)])
def test_a_phase_that_began_while_the_sample_waited_for_the_lock_is_not_the_one(
    sampler, phase, filed
):
    tracker(sampler).phase, tracker(sampler).since = phase, 20
    sampler._sample(10, LATE_NS, LATE_NS)
    close_step(sampler)
    (row,) = sampler.table().rows
    assert (row.phase, row.before) == (filed, True)


def test_the_open_phase_is_that_of_the_sample(sampler):
    for number in range(len(PHASES)):
        tracker(sampler).phase = number
        sampler._sample(0, 0, 0)
    tracker(sampler).phase, tracker(sampler).segment.start = NONE, 0
    sampler._sample(0, 0, 0)
    close_step(sampler)
    assert set(phases(sampler)) == {*PHASES, OUTSIDE}


def test_a_thread_that_has_ended_is_not_sampled(sampler):
    thread = threading.Thread(target=int)
    thread.start()
    tracker(sampler).owner = thread.ident
    thread.join()
    sampler._sample(0, 0, 0)
    close_step(sampler)
    assert phases(sampler) == {}


def test_it_samples_half_as_often_where_it_takes_too_much_of_a_core(sampler, monkeypatch):
    monkeypatch.setattr(stacks, "MOST_CPU_SHARE", 0.0)
    monkeypatch.setattr(stacks, "CHECK_EVERY", 3)
    monkeypatch.setattr(sampler, "_interval_ns", MS)
    sampler.start()
    deadline = time.monotonic() + 30
    while sampler._interval_ns < 8 * MS and time.monotonic() < deadline:
        time.sleep(0.01)
    sampler.stop()
    assert sampler._interval_ns >= 8 * MS
    assert sampler.cpu_ns > 0


def test_the_pace_comes_back_once_samples_are_cheap_again(sampler):
    paces = []
    for share in (0.006, 0.006, 0.003, 0.001, 0.001, 0.001):
        sampler._pace(share)
        paces.append(sampler._interval_ns // MS)
    assert paces == [100, 200, 200, 100, 50, 50]


def test_many_samples_of_one_step_are_not_kept_back_for_ever(sampler, monkeypatch):
    monkeypatch.setattr(stacks, "MOST_OPEN", 10)
    for _ in range(25):
        sampler._sample(0, 0, 0)
    assert phases(sampler) == {RESIDUAL: (20, 20 * 50 * MS)}
    assert len(sampler._open) == 5
