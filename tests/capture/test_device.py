"""DeviceTimer at the edge of torch.cuda: never waits, never guesses. No GPU is needed."""

import signal
from _thread import get_ident

import pytest

from traceml_agent.capture.device import PENDING_LIMIT, DeviceTimer
from traceml_agent.capture.steps import StepTracker
from traceml_agent.schema.phases import BACKWARD, FORWARD


class Cuda:
    """The part of torch.cuda that the timer uses: a queue whose time passes when told to."""

    def __init__(self):
        self.queue_ms = 0.0
        self.reached_ms = 0.0
        self.capturing = False
        self.made = 0

    def Event(self, enable_timing):
        assert enable_timing
        self.made += 1
        return Event(self)

    def is_current_stream_capturing(self):
        return self.capturing


class Event:
    def __init__(self, cuda):
        self.cuda = cuda

    def record(self):
        self.at_ms = self.cuda.queue_ms

    def query(self):
        return self.cuda.reached_ms >= self.at_ms

    def elapsed_time(self, other):
        return other.at_ms - self.at_ms

    def synchronize(self):
        raise AssertionError("the timer waited for the device")


class Torch:
    def __init__(self):
        self.cuda = Cuda()


@pytest.fixture
def torch():
    return Torch()


def step(timer, cuda, number, forward_ms=2.0, backward_ms=3.0, rest_ms=1.0):
    timer.switch(-1, FORWARD)
    cuda.queue_ms += forward_ms
    timer.switch(FORWARD, -1)
    timer.switch(-1, BACKWARD)
    cuda.queue_ms += backward_ms
    timer.switch(BACKWARD, -1)
    cuda.queue_ms += rest_ms
    timer.close_step(number)


def test_times_come_when_the_device_has_reached_them_and_not_before(torch):
    timer = DeviceTimer(torch)
    for number in range(1, 4):
        step(timer, torch.cuda, number)
    assert [s.step for s in timer.resolved] == [1]  # began before the timer: unknown
    assert timer.resolved[0].duration_ns is None
    torch.cuda.reached_ms = 12.0
    timer.resolve()
    second = timer.resolved[1]
    assert (second.step, second.duration_ns) == (2, 6_000_000)
    assert second.phase_ns == {FORWARD: 2_000_000, BACKWARD: 3_000_000}
    assert len(timer.resolved) == 2


def test_nothing_is_recorded_while_a_stream_is_captured_and_that_step_is_unknown(torch):
    timer = DeviceTimer(torch)
    step(timer, torch.cuda, 1)
    torch.cuda.capturing = True
    made = torch.cuda.made
    timer.switch(-1, FORWARD)
    timer.switch(FORWARD, -1)
    assert torch.cuda.made == made
    torch.cuda.capturing = False
    timer.close_step(2)
    step(timer, torch.cuda, 3)
    torch.cuda.reached_ms = 100.0
    timer.resolve()
    assert [(s.step, s.duration_ns) for s in timer.resolved] == [(1, None), (2, None),
                                                                (3, 6_000_000)]  # fmt: skip


def test_a_device_that_never_catches_up_bounds_the_memory(torch):
    timer = DeviceTimer(torch)
    for number in range(1, 2 * PENDING_LIMIT):
        step(timer, torch.cuda, number)
    assert torch.cuda.made <= 5 * (PENDING_LIMIT + 3) + 5 * PENDING_LIMIT
    assert all(s.duration_ns is None for s in timer.resolved)
    assert len(timer.resolved) >= PENDING_LIMIT - 2


def test_events_are_used_again(torch):
    timer = DeviceTimer(torch)
    for number in range(1, 200):
        step(timer, torch.cuda, number)
        torch.cuda.reached_ms = torch.cuda.queue_ms
        timer.resolve()
    assert torch.cuda.made < 20


def test_events_of_two_devices_give_no_time(torch):
    timer = DeviceTimer(torch)
    step(timer, torch.cuda, 1)

    def refuse(self, other):
        raise RuntimeError("both events must be of one device")

    step(timer, torch.cuda, 2)
    torch.cuda.reached_ms = 100.0
    original, Event.elapsed_time = Event.elapsed_time, refuse
    try:
        timer.resolve()
    finally:
        Event.elapsed_time = original
    assert timer.resolved[1].duration_ns is None


class Interrupted(DeviceTimer):
    """A timer in the midst of which a signal comes."""

    def switch(self, left, entered):
        signal.raise_signal(signal.SIGUSR1)
        return super().switch(left, entered)


def test_the_error_of_a_signal_handler_passes_and_leaves_the_timer_in(torch):
    def late(number, frame):
        raise TimeoutError("late")

    tracker = StepTracker(get_ident(), lambda: None, lambda *step: None)
    tracker.device = Interrupted(torch)
    before = signal.signal(signal.SIGUSR1, late)
    try:
        with pytest.raises(TimeoutError):
            tracker.enter(FORWARD)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert tracker.device is not None
