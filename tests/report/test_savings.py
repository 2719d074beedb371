"""What fixing a cause would save: removed from each step anew, over all ranks."""

from random import Random

import pytest

from traceml_agent.report.savings import Cause, Job, interval_saving, saving_of

MS = 1_000_000


def job(*ranks, **known):
    """A job of ranks with these steps in milliseconds, all of them own work."""
    rows = [[round(v * MS) for v in column] for column in ranks]
    return Job(rows, rows, run_ns=sum(rows[0]), run_steps=len(rows[0]), **known)


def cause(*ranks, most=None):
    """What it takes of each step, in milliseconds."""
    rows = [[round(v * MS) for v in column] for column in ranks]
    return Cause("gc", rows, None if most is None else [[round(v * MS) for v in most]])


def saved_ms(saving):
    return saving.step_ms - saving.step_high_ms, saving.step_ms - saving.step_low_ms


def test_a_constant_cause_of_a_single_rank_saves_what_it_takes():
    saving = saving_of(job([10.0] * 100), cause([4.0] * 100), [])
    assert saved_ms(saving) == pytest.approx((4.0, 4.0))
    assert saving.run_s == pytest.approx(1.0)
    assert (saving.run_low_s, saving.run_high_s) == pytest.approx((0.6, 0.6))


def test_the_interval_holds_the_steps_of_another_run_with_the_same_noise():
    random = Random(1)
    base = [10 + random.gauss(0, 1) for _ in range(2000)]
    lost = [4 + random.gauss(0, 0.2) for _ in range(2000)]
    saving = saving_of(job([b + c for b, c in zip(base, lost, strict=True)]), cause(lost), [])
    again = sum(10 + random.gauss(0, 1) for _ in range(2000)) / 2000
    assert saving.step_low_ms - 0.1 <= again <= saving.step_high_ms + 0.1
    assert saving.step_high_ms - saving.step_low_ms < 0.2


def test_of_ranks_that_wait_for_each_other_only_the_slowest_counts():
    # Each rank loses 8 ms in every eighth step, never two in one step: the job loses 8 ms a step.
    lost = [[8.0 if k % 8 == rank else 0.0 for k in range(160)] for rank in range(8)]
    ranks = [[10.0 + value for value in column] for column in lost]
    saving = saving_of(job(*ranks), cause(*lost), [])
    assert saved_ms(saving) == pytest.approx((8.0, 8.0))  # the mean over ranks would say 1 ms


def test_two_causes_that_hide_each_other_save_less_than_they_would_add():
    # One rank is slow by 5 ms, the other by 5 ms: removing one alone saves nothing.
    first = [[5.0] * 100, [0.0] * 100]
    second = [[0.0] * 100, [5.0] * 100]
    both = job([15.0] * 100, [15.0] * 100)
    rows = [[round(v * MS) for v in column] for column in second]
    saving = saving_of(both, cause(*first), [rows])
    assert saved_ms(saving) == pytest.approx((0.0, 5.0))


def test_overlapping_causes_never_take_more_than_the_step():
    whole = [[10 * MS] * 50]
    saving = saving_of(job([10.0] * 50), cause([9.0] * 50), [whole])
    least, most = saved_ms(saving)
    assert 0 <= least <= most <= 10.0


def test_a_cause_known_from_samples_alone_has_an_interval():
    saving = saving_of(job([10.0] * 100), cause([3.0] * 100, most=[5.0] * 100), [])
    assert saved_ms(saving) == pytest.approx((3.0, 5.0))


def test_time_that_the_loader_takes_back_is_not_saved():
    waits = [2 * MS] * 100
    found = Cause("line", [[4 * MS] * 100], hides_ns=waits)
    assert saved_ms(saving_of(job([10.0] * 100), found, [])) == pytest.approx((2.0, 4.0))


def test_price_and_power_turn_time_into_money_and_energy():
    hour = 3600 * 1000.0
    priced = job([hour / 10] * 10, price_per_h=16.0, watts=(100.0, 400.0))
    saving = saving_of(priced, cause([hour / 20] * 10), [])
    assert (saving.money_low, saving.money_high) == pytest.approx((8.0, 8.0))
    assert (saving.kwh_low, saving.kwh_high) == pytest.approx((0.05, 0.2))


def test_without_a_price_or_a_power_reading_they_are_not_measured():
    saving = saving_of(job([10.0] * 10), cause([1.0] * 10), [])
    assert saving.money_low is None
    assert saving.kwh_high is None


def test_a_few_steps_say_nothing():
    assert saving_of(job([10.0] * 4), cause([4.0] * 4), []) is None


def test_a_known_interval_is_cut_to_the_step():
    saving = interval_saving(job([10.0] * 10), -3 * MS, 25 * MS, "told")
    assert saved_ms(saving) == pytest.approx((0.0, 10.0))
    assert saving.run_low_s == pytest.approx(0.0)


def test_a_run_of_shorter_steps_outside_the_window_never_ends_before_it_began():
    short = Job([[10 * MS] * 10], [[10 * MS] * 10], run_ns=50 * MS, run_steps=100)
    saving = interval_saving(short, 4 * MS, 6 * MS, "told")
    assert (saving.run_low_s, saving.run_high_s) == (0.0, 0.0)
