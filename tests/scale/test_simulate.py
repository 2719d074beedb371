"""The simulator writes what the agent would have left: real spools with a known truth."""

from dataclasses import replace

import numpy as np
import pytest

from tests.scale.job import Job, Straggler, attempt_steps, slowest, what_it_costs_ns
from tests.scale.simulate import write_job
from traceml_agent.report.fold import fold
from traceml_agent.report.view import load_run
from traceml_agent.spool.reader import read_spool


def files(run_dir):
    return {path.name: path.read_bytes() for path in sorted(run_dir.iterdir())}


def durations(run_dir):
    """Rank to the duration of each step."""
    return {rank.rank: np.array(rank.series.duration_ns) for rank in load_run(run_dir).ranks}


def test_the_same_job_gives_the_same_bytes_and_another_seed_others(tmp_path):
    job = Job(ranks=4, steps=60, checkpoint_every=20, on_device=True)
    first = files(write_job(job, tmp_path / "a" / "run"))
    assert first == files(write_job(job, tmp_path / "b" / "run"))
    assert first != files(write_job(replace(job, seed=1), tmp_path / "c" / "run"))


def test_no_record_is_refused_by_the_reader(tmp_path):
    job = Job(ranks=4, steps=60, ranks_per_node=2, checkpoint_every=20, on_device=True)
    view = load_run(write_job(job, tmp_path / "run"))
    assert view.problems == []
    assert view.complete
    assert [len(rank.series.steps) for rank in view.ranks] == [60] * 4
    assert all(rank.series.device_duration_ns for rank in view.ranks)
    assert len(view.ranks[0].spool.gpu_samples) == 2 * len(view.ranks[0].spool.process_samples)
    assert {event.step for event in view.ranks[3].spool.events} == {20, 40, 60}


def test_ranks_leave_the_backward_pass_together_and_all_wait_for_the_straggler(tmp_path):
    job = Job(ranks=4, steps=100, stragglers=(Straggler(2, "input_wait", 20.0),))
    run_dir = write_job(job, tmp_path / "run")
    means = [column.mean() for column in durations(run_dir).values()]
    assert means == pytest.approx([means[0]] * 4, rel=0.001)
    series = {rank.rank: rank.series.phase_ns for rank in load_run(run_dir).ranks}
    waits = {rank: np.mean(phases["input_wait"]) / 1e6 for rank, phases in series.items()}
    assert waits == pytest.approx({0: 5.0, 1: 5.0, 2: 25.0, 3: 5.0}, rel=0.02)
    assert np.mean(series[0]["backward"]) > np.mean(series[2]["backward"]) + 10e6


def test_the_cost_of_a_straggler_is_what_the_job_gains_without_it(tmp_path):
    job = Job(ranks=4, steps=100, stragglers=(Straggler(2, "input_wait", 20.0),))
    slow = durations(write_job(job, tmp_path / "slow"))
    healthy = durations(write_job(replace(job, stragglers=()), tmp_path / "healthy"))
    saved = slow[0].sum() - healthy[0].sum()
    assert saved == pytest.approx(what_it_costs_ns(job), rel=0.02)
    assert 10e6 < saved / job.steps < 20e6  # the fastest of the others would still have waited


def test_an_independent_job_hides_nothing_and_waits_for_nobody(tmp_path):
    job = Job(ranks=3, steps=50, is_synchronous=False, stragglers=(Straggler(1, "forward", 50.0),))
    means = {
        r: column.mean() / 1e6 for r, column in durations(write_job(job, tmp_path / "r")).items()
    }
    assert means == pytest.approx({0: 100, 1: 150, 2: 100}, rel=0.02)


def test_dead_ranks_torn_tails_and_restarts_are_what_a_reader_finds(tmp_path):
    job = Job(ranks=4, steps=90, dead=((1, 25),), torn=(2,), restarts=(50,))
    run_dir = write_job(job, tmp_path / "run")
    view = load_run(run_dir)
    assert attempt_steps(job) == [50, 40]
    assert len(list(run_dir.iterdir())) == 8
    assert {r.rank: (r.status, r.series.steps[-1]) for r in view.ranks} == {
        0: ("finished", 40),
        1: ("killed", 25),
        2: ("killed", 35),
        3: ("finished", 40),
    }
    assert view.attempt == 1
    assert any("last line is torn" in problem for problem in view.problems)


def test_a_small_size_cap_thins_as_in_a_long_run_and_keeps_the_sums(tmp_path):
    job = Job(ranks=1, steps=20_000, step_ms=20.0, spool_max_mb=0.5, restarts=())
    (path,) = write_job(job, tmp_path / "thin").iterdir()
    spool = read_spool(path)
    assert spool.sums
    steps = [batch.count for batch in spool.batches] + [sums.count for sums in spool.sums]
    assert sum(steps) == spool.end.steps == 20_000
    total = sum(sum(b.duration_ns) for b in spool.batches) + sum(s.duration_ns for s in spool.sums)
    assert total == spool.end.duration_ns


def test_digests_fold_to_what_the_spools_fold_to_whoever_was_killed(tmp_path):
    job = Job(ranks=4, steps=900, dead=((1, 700),), torn=(2,), restarts=(400,), has_digests=True)
    run_dir = write_job(job, tmp_path / "run")
    digests = list(run_dir.glob("*.digest"))
    assert len(digests) == 8
    by_digests = fold(run_dir).payload
    for path in digests:
        path.unlink()
    by_spools = fold(run_dir).payload
    del by_digests["generated_at"], by_spools["generated_at"]
    assert by_digests == by_spools


def test_clocks_of_nodes_differ_as_they_are_told_to(tmp_path):
    job = Job(ranks=4, steps=20, ranks_per_node=2, clock_ahead_s=((1, 3600.0),))
    headers = [rank.spool.header for rank in load_run(write_job(job, tmp_path / "run")).ranks]
    assert headers[2].wall_ns - headers[0].wall_ns == 3600 * 10**9
    assert headers[0].boot_id == headers[1].boot_id != headers[2].boot_id


def test_a_rank_does_the_same_work_in_a_larger_job():
    small, large = Job(ranks=2, steps=30), Job(ranks=5, steps=30)
    assert (slowest(large, 0) >= slowest(small, 0)).all()


@pytest.mark.parametrize("on_device", [False, True])
def test_a_simulated_job_folds_with_every_rank(tmp_path, on_device):
    payload = fold(write_job(Job(ranks=6, steps=40, on_device=on_device), tmp_path / "run")).payload
    assert payload["meta"]["world_size"] == 6
    assert payload["traceml_agent"]["complete"] is True
    clock = payload["step_time"]["global"]["window"]["diagnosis_clock"]
    assert clock == ("gpu" if on_device else "cpu")
