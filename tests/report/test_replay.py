"""The replay of torch's loader against closed forms."""

import random

import pytest

from traceml_agent.report.replay import replay

MS = 1_000_000
STEADY = 200
"""Steps after which a pipeline of this size is full."""


def mean_ms(steps):
    steady = steps[STEADY:]
    return sum(steady) / len(steady) / MS


@pytest.mark.parametrize("in_order", [True, False])
@pytest.mark.parametrize(
    ("workers", "batch_ms", "main_ms", "expected_ms"),
    [
        (1, 30, 10, 30),  # one worker, one batch after another
        (1, 10, 30, 30),  # the loop is slower: nothing is waited for
        (2, 30, 10, 15),  # two of them: a batch each 15 ms
        (3, 30, 10, 10),
        (8, 30, 10, 10),
    ],
)
def test_constant_costs_take_the_slower_of_the_workers_together_and_the_loop(
    workers, batch_ms, main_ms, expected_ms, in_order
):
    steps = replay([batch_ms * MS] * 1000, [main_ms * MS] * 1000, workers, 2, in_order)
    assert mean_ms(steps) == pytest.approx(expected_ms, rel=0.01)


def test_without_workers_the_loop_makes_its_batches_itself():
    assert replay([30, 20, 10], [1, 2, 3], workers=0) == [31, 22, 13]


def test_a_rare_slow_batch_holds_the_others_up_only_in_order():
    # 4 workers, 8 batches ahead; each 40th batch takes 400 ms, the others 4, the loop 5.
    batches = [(400 if number % 40 == 0 else 4) * MS for number in range(4000)]
    main = [5 * MS] * len(batches)
    behind = mean_ms(replay(batches, main, 4, 2, in_order=True))
    passed = mean_ms(replay(batches, main, 4, 2, in_order=False))
    # In order the 7 batches ahead hide 35 ms of 400: 365 ms once in 40 steps.
    assert behind == pytest.approx(5 + 365 / 40, rel=0.03)
    assert passed < 8


def test_more_prefetch_hides_a_burst_that_few_batches_ahead_do_not():
    # The loop takes 10 batches at once and then works for 100 ms: 2 workers make 20 meanwhile.
    main = [(100 if number % 10 == 9 else 0) * MS for number in range(4000)]
    batches = [10 * MS] * len(main)
    few = mean_ms(replay(batches, main, 2, prefetch=1))
    many = mean_ms(replay(batches, main, 2, prefetch=8))
    assert few > 12
    assert many == pytest.approx(10, rel=0.02)


def test_the_sum_of_the_steps_is_the_time_of_the_last_batch_and_what_followed():
    source = random.Random(0)
    batches = [source.randrange(1, 50) * MS for _ in range(500)]
    main = [source.randrange(1, 20) * MS for _ in range(500)]
    for workers in (1, 2, 3, 7):
        for in_order in (True, False):
            steps = replay(batches, main, workers, 2, in_order)
            assert len(steps) == 500
            assert sum(steps) >= max(sum(main), sum(batches) / workers)
            assert sum(steps) <= sum(main) + sum(batches)


def test_the_order_in_which_tasks_are_handed_out_is_that_of_torch():
    """By hand: two workers, one batch ahead each. The second is slow, and the loop waits for it
    although the first has made two batches meanwhile."""
    batches = [10, 100, 10, 10]
    assert replay(batches, [0, 0, 0, 0], 2, prefetch=1, in_order=True) == [10, 90, 0, 10]
    assert replay(batches, [0, 0, 0, 0], 2, prefetch=1, in_order=False) == [10, 10, 10, 70]
