"""Steps whose bounds the program gives, by hand-made events on a fake clock."""

import pytest

from tests.capture.test_steps import Loop
from traceml_agent.capture.open_step import IDLE_NS
from traceml_agent.schema.phases import EVAL, FORWARD, INPUT_WAIT, LOGGING, OPTIMIZER


@pytest.fixture
def loop(monkeypatch):
    return Loop(monkeypatch)


def bracket(loop, body, failed=False):
    loop.tracker.begin_bracket(body)
    body()
    loop.tracker.end_bracket(failed=failed)


def numbers(loop):
    return [(duration, micro) for _, _, duration, _, micro in loop.closed]


def train(loop):
    loop.forward()
    loop.backward()
    loop.update()


def test_the_wait_for_the_batch_belongs_to_the_step_of_the_block(loop):
    for _ in range(3):
        loop.fetch(wait=10)
        bracket(loop, lambda: train(loop))
        loop.now += 3  # logging: of the next step, as between automatic ones
    loop.exhaust()
    loop.tracker.finish()
    assert numbers(loop) == [(65, 1), (68, 1), (68, 1)]
    assert [step[3][INPUT_WAIT] for step in loop.closed] == [10, 10, 10]
    assert [step[3][FORWARD] for step in loop.closed] == [20, 20, 20]


def test_micro_batches_and_several_updates_in_a_block_are_one_step(loop):
    def accumulate():
        for _ in range(4):
            loop.fetch()
            loop.forward()
            loop.backward()
        loop.update(1)
        loop.update(2)
        loop.update(1)

    for _ in range(3):
        bracket(loop, accumulate)
    assert [micro for _, micro in numbers(loop)] == [4, 4, 4]


def test_a_block_ends_an_automatic_step_and_is_followed_by_one(loop):
    for number in range(6):
        loop.fetch()
        if number % 2:
            bracket(loop, lambda: train(loop))
        else:
            train(loop)
    loop.exhaust()
    loop.tracker.finish()
    assert numbers(loop) == [(65, 1)] * 6


def test_without_a_loader_mixed_steps_are_counted_once_each(loop):
    for number in range(6):
        if number % 3 == 0:
            bracket(loop, lambda: train(loop))
        else:
            train(loop)
        loop.now += 2
    loop.tracker.finish()
    assert len(loop.closed) == 6
    assert [acc[OPTIMIZER] for _, _, _, acc, _ in loop.closed] == [5] * 6


def test_an_update_after_the_block_is_no_step_of_its_own(loop):
    def gradients():
        loop.forward()
        loop.backward()

    for _ in range(4):
        loop.fetch()
        bracket(loop, lambda: gradients())
        loop.update(1)
        loop.update(2)
    for _ in range(2):
        loop.fetch()
        train(loop)
    loop.exhaust()
    loop.tracker.finish()
    assert len(loop.closed) == 6


def test_logging_between_the_block_and_its_update_changes_nothing(loop):
    def body():
        loop.fetch()
        loop.forward()
        loop.backward()

    for _ in range(4):
        bracket(loop, body)
        previous = loop.tracker.enter(LOGGING)
        loop.now += 2
        loop.tracker.leave(previous)
        loop.update()
    loop.tracker.finish()
    assert len(loop.closed) == 4


def test_a_block_that_failed_before_its_update_is_no_step(loop):
    loop.fetch()
    bracket(loop, lambda: train(loop))
    loop.fetch()
    bracket(loop, loop.forward, failed=True)
    loop.fetch()
    bracket(loop, lambda: train(loop), failed=True)  # its update is done
    assert numbers(loop) == [(65, 1), (95, 1)]


def test_a_loader_that_is_exhausted_in_the_block_makes_no_step(loop):
    bracket(loop, lambda: (loop.fetch(), train(loop)))
    bracket(loop, loop.exhaust)
    assert len(loop.closed) == 1
    bracket(loop, lambda: None)
    assert len(loop.closed) == 2  # nothing is seen in it: it is what the program says


def test_an_evaluation_in_the_block_is_evaluation(loop):
    def body():
        train(loop)
        loop.fetch(key=9)
        loop.evaluate()

    loop.fetch()
    bracket(loop, body)
    (_, _, duration, acc, _) = loop.closed[0]
    assert (acc[EVAL], acc[INPUT_WAIT], duration) == (30, 10, 95)


def test_a_long_pause_between_two_blocks_belongs_to_no_step(loop):
    for _ in range(2):
        bracket(loop, lambda: train(loop))
        loop.now += IDLE_NS + 1
    train(loop)
    loop.tracker.finish()
    assert [duration for duration, _ in numbers(loop)] == [55, 55, 55]


def test_what_was_measured_before_training_is_in_no_step(loop):
    loop.evaluate()
    loop.now += 1_000
    bracket(loop, lambda: train(loop))
    assert numbers(loop) == [(55, 1)]


def test_a_block_is_the_proof_of_training(loop):
    bracket(loop, lambda: None)
    assert (loop.proofs, len(loop.closed)) == (1, 1)
