"""StepTracker by hand-made events on a fake clock: boundaries, phases, what cannot be known."""

import pytest

from traceml_agent.capture import bracketed, open_step, steps
from traceml_agent.capture.open_step import IDLE_NS, NONE
from traceml_agent.schema.phases import (
    BACKWARD,
    COMPILE,
    EVAL,
    FORWARD,
    H2D,
    INPUT_WAIT,
    OPTIMIZER,
    PHASES,
)


class Loop:
    """A tracker and a clock that moves only when told to."""

    def __init__(self, monkeypatch):
        self.now = 1_000
        monkeypatch.setattr(open_step, "clock", lambda: self.now)
        monkeypatch.setattr(bracketed, "clock", lambda: self.now)
        monkeypatch.setattr(steps, "clock", lambda: self.now)
        self.closed = []
        self.proofs = 0
        self.tracker = steps.StepTracker(0, self._proof, self._close)

    def _proof(self):
        self.proofs += 1

    def _close(self, step, start, duration, measured, micro_batches):
        self.closed.append((step, start, duration, list(measured.acc), micro_batches))

    def fetch(self, key=7, wait=10, samples=4):
        self.tracker.begin_fetch(key)
        self.now += wait
        self.tracker.end_fetch(samples)

    def exhaust(self, key=7, wait=1):
        self.tracker.begin_fetch(key)
        self.now += wait
        self.tracker.end_fetch_without_batch()

    def forward(self, took=20, training=True):
        previous = self.tracker.enter(FORWARD)
        self.now += took
        self.tracker.end_forward(previous, training)

    def evaluate(self, took=20):
        previous = self.tracker.enter(EVAL)
        self.now += took
        self.tracker.end_eval(previous)

    def backward(self, took=30):
        previous = self.tracker.begin_backward()
        self.now += took
        self.tracker.end_backward(previous)

    def update(self, optimizer=1, took=5):
        self.tracker.begin_update(optimizer)
        self.now += took
        self.tracker.end_update()

    def train(self, **fetch):
        self.fetch(**fetch)
        self.forward()
        self.backward()
        self.update()


@pytest.fixture
def loop(monkeypatch):
    return Loop(monkeypatch)


def test_a_step_spans_from_one_request_to_the_next(loop):
    for _ in range(3):
        loop.train()
        loop.now += 3
    loop.exhaust()
    assert [(s, d, m) for s, _, d, _, m in loop.closed] == [(1, 68, 1), (2, 68, 1), (3, 68, 1)]
    acc = dict(zip(PHASES, loop.closed[1][3], strict=True))
    assert acc == {"input_wait": 10, "h2d": 0, "forward": 20, "backward": 30, "optimizer": 5,
                   "eval": 0, "checkpoint": 0, "compile": 0, "logging": 0}  # fmt: skip


def test_steps_tile_the_time_line(loop):
    for _ in range(5):
        loop.train()
        loop.now += 2
    loop.tracker.finish()
    ends = [start + duration for _, start, duration, _, _ in loop.closed]
    assert [start for _, start, _, _, _ in loop.closed][1:] == ends[:-1]


def test_the_phases_of_a_step_never_exceed_it(loop):
    for _ in range(4):
        loop.train()
        loop.evaluate()
    loop.tracker.finish()
    assert all(sum(acc) <= duration for _, _, duration, acc, _ in loop.closed)


def test_waiting_before_an_evaluation_is_evaluation(loop):
    loop.train()
    loop.exhaust()
    for _ in range(3):
        loop.fetch(key=9)
        loop.evaluate()
    loop.exhaust(key=9, wait=100)
    loop.train()
    loop.exhaust()
    assert len(loop.closed) == 2
    acc = loop.closed[1][3]
    assert acc[EVAL] == 3 * 30 + 100
    assert acc[INPUT_WAIT] == 1 + 10  # its own batch, and the end of the loader before it


def test_an_evaluation_before_training_is_outside_any_step(loop):
    loop.fetch(key=9)
    loop.evaluate()
    loop.now += 1_000
    loop.train()
    loop.exhaust()
    assert loop.closed[0][2] == 65
    assert loop.tracker.outside[EVAL] == 30


def test_moving_the_model_to_its_device_starts_no_step(loop):
    previous = loop.tracker.enter(H2D)
    loop.now += 500
    loop.tracker.end_transfer(previous, to_device=True)
    loop.now += 10_000
    loop.train()
    loop.exhaust()
    assert loop.closed[0][2] == 65
    assert loop.tracker.outside[H2D] == 500


def test_a_closure_inside_the_optimizer_keeps_its_own_phases(loop):
    loop.fetch()
    loop.tracker.begin_update(1)
    loop.now += 2
    for _ in range(4):
        loop.forward()
        loop.backward()
    loop.now += 3
    loop.tracker.end_update()
    loop.exhaust()
    acc = loop.closed[0][3]
    assert (acc[FORWARD], acc[BACKWARD], acc[OPTIMIZER]) == (80, 120, 5)


def test_a_closure_of_which_a_framework_told_is_not_the_optimizer(loop):
    loop.fetch()
    loop.tracker.begin_update(1)
    loop.now += 5
    assert loop.tracker.begin_closure()
    loop.now += 100  # the loop's own work, such as logging
    loop.forward()
    loop.backward()
    loop.now += 100
    loop.tracker.end_closure()
    loop.now += 5
    loop.tracker.end_update()
    loop.tracker.finish()
    ((_, _, duration, acc, _),) = loop.closed
    assert acc[OPTIMIZER] == 10
    assert (acc[FORWARD], acc[BACKWARD]) == (20, 30)
    assert duration - sum(acc) == 200


def test_a_closure_outside_the_optimizer_changes_nothing(loop):
    loop.fetch()
    assert not loop.tracker.begin_closure()
    assert loop.tracker.phase == NONE
    loop.tracker.end_closure()
    assert loop.tracker.phase == NONE


def test_the_last_micro_batch_may_be_in_the_closure_of_its_optimizer(loop):
    loop.train()
    for _ in range(3):
        for _ in range(3):
            loop.fetch()
            loop.forward()
            loop.backward()
        loop.fetch()
        loop.tracker.begin_update(1)
        for _ in range(2):  # more than once, as in LBFGS
            loop.forward()
            loop.backward()
        loop.tracker.end_update()
    loop.exhaust()
    assert [micro_batches for *_, micro_batches in loop.closed] == [1, 4, 4, 4]


def test_a_compilation_is_taken_out_of_the_forward_that_it_interrupts(loop):
    loop.fetch()
    outer = loop.tracker.enter(FORWARD)
    loop.now += 5
    inner = loop.tracker.enter(COMPILE)
    loop.now += 700
    loop.tracker.leave(inner)
    loop.now += 5
    loop.tracker.end_forward(outer, True)
    loop.backward()
    loop.update()
    loop.exhaust()
    acc = loop.closed[0][3]
    assert (acc[COMPILE], acc[FORWARD]) == (700, 10)


def test_an_optimizer_that_raised_does_not_swallow_what_follows(loop):
    loop.train()
    loop.fetch()
    loop.forward()
    loop.backward()
    loop.tracker.begin_update(1)
    loop.now += 4  # raises: no end_update
    loop.train()
    loop.exhaust()
    assert len(loop.closed) == 3
    assert loop.closed[2][3][OPTIMIZER] == 5


def test_an_optimizer_inside_another_is_one_update(loop):
    for _ in range(2):
        loop.fetch()
        loop.forward()
        loop.backward()
        loop.tracker.begin_update(1)
        loop.tracker.begin_inner_update()
        loop.now += 5
        loop.tracker.end_update()
        loop.tracker.end_update()
    loop.exhaust()
    assert [acc[OPTIMIZER] for _, _, _, acc, _ in loop.closed] == [5, 5]


def test_a_long_pause_between_two_loops_is_idle_and_in_no_step(loop):
    for _ in range(2):
        loop.train()
    loop.exhaust()
    loop.now += 2 * IDLE_NS
    loop.train()
    loop.exhaust()
    assert loop.closed[-1][2] == 65


def test_a_long_pause_without_a_loader_is_idle_too(loop):
    for pause in (1, 2 * IDLE_NS, 1):
        loop.forward()
        loop.backward()
        loop.update()
        loop.now += pause
    loop.tracker.finish()
    assert max(duration for _, _, duration, _, _ in loop.closed) < 100


def test_without_any_proof_of_training_nothing_is_announced(loop):
    for _ in range(5):
        loop.fetch()
        loop.evaluate()
    loop.exhaust()
    loop.tracker.finish()
    assert (loop.proofs, loop.closed) == (0, [])


def test_the_first_proof_comes_before_any_step_closes(loop):
    loop.train()
    assert loop.proofs == 1
    assert loop.closed == []


def test_an_unfinished_step_at_the_end_is_no_step(loop):
    loop.train()
    loop.fetch()
    loop.forward()
    loop.tracker.finish()
    assert len(loop.closed) == 1
    assert loop.tracker.outside[FORWARD] == 20


def test_the_last_step_ends_with_its_last_event_and_not_with_the_program(loop):
    loop.train()
    loop.now += 10_000
    loop.tracker.finish()
    assert loop.closed[0][2] == 65


def test_a_batch_of_unknown_size_makes_the_samples_of_its_step_unknown(loop):
    seen = []
    loop.tracker.on_close = lambda *args: seen.append(args[3].samples)
    for samples in (4, None, 4):
        loop.train(samples=samples)
    loop.exhaust()
    assert seen == [4, None, 4]


def test_the_phase_between_phases_is_none(loop):
    loop.train()
    assert loop.tracker.phase == NONE


def test_a_framework_that_says_its_training_ended_ends_the_step_with_it(loop):
    for optimizer, key in ((1, 7), (2, 8)):  # a second training, with a loader and optimizer anew
        for _ in range(3):
            loop.fetch(key=key)
            loop.forward()
            loop.backward()
            loop.update(optimizer)
        loop.now += 1_000  # saves, or evaluates
        loop.tracker.end_training()
        loop.now += 1_000
    assert [(step, duration) for step, _, duration, _, _ in loop.closed] == [
        (1, 65), (2, 65), (3, 65), (4, 65), (5, 65), (6, 65),
    ]  # fmt: skip


def test_samples_of_a_batch_fetched_ahead_count_where_it_was_fetched(loop):
    sizes = []
    loop.tracker.on_close = lambda *closed: sizes.append(closed[3].samples)
    loop.fetch(samples=4)
    loop.fetch(samples=3)
    for _ in range(2):  # the second one fetches nothing: the loader is at its end
        loop.forward()
        loop.backward()
        loop.update()
        loop.exhaust()
    assert sizes == [7, 0]
