"""Which rank, where, why, when and what it costs: jobs whose answer is known."""

import re

import pytest

from tests.ranks.job import Job, folded, stragglers, write_job
from tests.report import synthetic_run as made
from traceml_agent.report.fold import fold
from traceml_agent.spool.digested import read_spool

SLOW_INPUT = {"input_wait": 20.0}


def of_rank(rank, more):
    """`more` on each step of one rank."""
    return lambda r, step: more if r == rank else {}


def only(payload):
    found = stragglers(payload)
    assert len(found) == 1, payload["step_time"]["issues"]
    return found[0]


@pytest.mark.parametrize(
    ("more", "kind", "metric"),
    [
        (SLOW_INPUT, "INPUT_STRAGGLER", "input_wait"),
        ({"h2d": 20.0}, "H2D_STRAGGLER", "h2d"),
        ({"forward": 20.0}, "COMPUTE_STRAGGLER", "forward"),
        ({"input_wait": 10.0, "forward": 10.0}, "STRAGGLER", "backward"),
    ],
)
def test_the_rank_that_waits_least_is_named_with_its_cause(tmp_path, more, kind, metric):
    issue = only(folded(tmp_path, Job(noise=0.05), of_rank(2, more)))
    assert (issue["kind"], issue["metric"], issue["severity"]) == (kind, metric, "crit")
    assert issue["ranks"] == [2]
    assert issue["evidence"]["visible_cost_ms"] == pytest.approx(20, rel=0.1)
    assert issue["score"] == pytest.approx(20 / 40, rel=0.1)


def test_the_verdict_names_rank_node_cost_and_gain(tmp_path):
    payload = folded(tmp_path, Job(nodes=2, noise=0.05), of_rank(3, SLOW_INPUT))
    primary = payload["primary_diagnosis"]
    assert primary["kind"] == "INPUT_STRAGGLER"
    evidence = primary["evidence"]
    assert evidence["type"] == "rank_comparison"
    assert evidence["metric"] == "input_wait_ms"
    assert evidence["worst"] == {"rank": 3, "value_ms": pytest.approx(20.5)}
    assert evidence["median"]["value_ms"] == pytest.approx(0.5)
    assert evidence["culprit"] == {"rank": 3, "hostname": "node-1", "node_rank": 1}
    assert "Rank 3 on node-1 (node 1)" in primary["summary"]
    assert " faster (95%: " in primary["summary"]
    assert evidence["pattern"]["kind"] == "constant"


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.15])
def test_the_gain_is_what_the_job_without_the_slow_rank_gains(tmp_path, noise):
    payload = folded(tmp_path / "slow", Job(noise=noise), of_rank(3, SLOW_INPUT))
    found = only(payload)["evidence"]["what_if"]
    # The twin: the same noise, the slow rank as the others are.
    twin = folded(tmp_path / "twin", Job(noise=noise))
    took, would = (p["step_time"]["global"]["average"]["step_time_ms"] for p in (payload, twin))
    assert found["gain_ms"] == pytest.approx(took - would, rel=0.1)
    assert found["speedup_low"] - 0.03 <= took / would <= found["speedup_high"] + 0.03


@pytest.mark.parametrize("seed", range(20))
def test_a_healthy_job_and_one_with_noise_of_30_percent_raise_no_straggler(tmp_path, seed):
    for steps, ranks, noise in ((200, 4, 0.02), (200, 4, 0.3), (20, 4, 0.3), (30, 2, 0.3)):
        job = Job(ranks, steps, noise, seed)
        assert not stragglers(folded(tmp_path / f"{steps}-{ranks}-{noise}", job))


def test_a_real_straggler_is_found_in_noise_of_30_percent(tmp_path):
    issue = only(folded(tmp_path, Job(noise=0.3, seed=1), of_rank(1, SLOW_INPUT)))
    assert (issue["kind"], issue["ranks"]) == ("INPUT_STRAGGLER", [1])


def test_ranks_that_never_meet_are_no_stragglers_and_nothing_is_gained(tmp_path):
    job = Job(strategy=None, meets=False, noise=0.05)
    for name, by_rank in (
        ("one", lambda rank, step: SLOW_INPUT if rank == 3 else {}),
        ("two", lambda rank, step: {"backward": 30.0} if rank >= 2 else {"forward": 25.0}),
    ):
        payload = folded(tmp_path / name, job, by_rank)
        assert not stragglers(payload)
        assert payload["step_time"]["rank_balance"]["rows"] == {}


@pytest.mark.parametrize(("backward", "forward"), [(20.0, 0.0), (3.0, 1.4)])
def test_ranks_that_never_meet_under_a_wrapper_are_no_stragglers_either(
    tmp_path, backward, forward
):
    """As with `no_sync` around the whole training: the wrapper alone proves nothing."""
    job = Job(meets=False, noise=0.02)
    slow, fast = {"backward": backward}, {"forward": forward}
    payload = folded(tmp_path, job, lambda rank, step: slow if rank >= 2 else fast)
    assert not stragglers(payload)


def test_one_pause_of_one_rank_is_no_straggler(tmp_path):
    pause = {"input_wait": 900.0}
    payload = folded(tmp_path, Job(noise=0.05), lambda r, s: pause if (r, s) == (2, 90) else {})
    assert not stragglers(payload)


def test_work_of_rank_0_every_50_steps_is_told_as_what_it_is(tmp_path):
    for name, said in (("eval", "evaluates"), ("residual", "in no phase")):
        every = {name: 400.0}
        payload = folded(
            tmp_path / name,
            Job(steps=500, noise=0.05),
            lambda rank, step, every=every: every if rank == 0 and step % 50 == 49 else {},
        )
        issue = only(payload)
        assert (issue["kind"], issue["ranks"]) == ("STRAGGLER", [0])
        assert issue["evidence"]["component"] == name
        pattern = issue["evidence"]["pattern"]
        assert (pattern["kind"], pattern["every"]) == ("recurring", 50)
        assert said in issue["summary"] and "every 50" in issue["summary"]
        assert payload["primary_diagnosis"]["kind"] == "STRAGGLER"


def test_a_rank_that_was_slow_for_a_while_is_told_with_its_steps(tmp_path):
    payload = folded(
        tmp_path,
        Job(steps=400, noise=0.05),
        lambda rank, step: SLOW_INPUT if rank == 2 and 100 <= step < 220 else {},
    )
    pattern = only(payload)["evidence"]["pattern"]
    assert pattern["kind"] == "transient"
    assert pattern["first_step"] == pytest.approx(101, abs=25)
    assert pattern["last_step"] == pytest.approx(220, abs=25)


def test_a_slow_node_is_told_by_all_its_ranks_and_the_gain_is_theirs(tmp_path):
    payload = folded(
        tmp_path,
        Job(ranks=8, nodes=4, noise=0.05),
        lambda rank, step: SLOW_INPUT if rank in (4, 5) else {},
    )
    issue = only(payload)
    assert issue["ranks"] == [4, 5]
    assert "Ranks 4-5 are as slow, all on node-2." in issue["summary"]
    assert issue["evidence"]["what_if"]["speedup"] == pytest.approx(40.5 / 20.5, rel=0.1)


def test_all_ranks_that_wait_for_input_are_input_bound_and_no_stragglers(tmp_path):
    payload = folded(tmp_path, Job(noise=0.05), lambda rank, step: SLOW_INPUT)
    assert payload["primary_diagnosis"]["kind"] == "INPUT_BOUND"
    assert not stragglers(payload)


def test_of_two_ranks_a_slow_one_is_no_input_bound_job(tmp_path):
    payload = folded(tmp_path, Job(ranks=2, noise=0.05), of_rank(1, SLOW_INPUT))
    assert [i["kind"] for i in payload["step_time"]["issues"]] == ["INPUT_STRAGGLER"]


def test_collectives_of_the_users_own_are_no_residual_of_the_job(tmp_path):
    job = Job(strategy=None, waits_in="residual", noise=0.05)
    payload = folded(tmp_path, job, of_rank(3, SLOW_INPUT))
    issue = only(payload)
    assert (issue["kind"], issue["ranks"]) == ("INPUT_STRAGGLER", [3])
    assert issue["evidence"]["waits_in"] == ["residual"]
    assert [i["kind"] for i in payload["step_time"]["issues"]] == ["INPUT_STRAGGLER"]


def test_a_barrier_after_the_checkpoint_of_rank_0_is_no_residual_of_the_others(tmp_path):
    every = {"checkpoint": 400.0}
    payload = folded(
        tmp_path,
        Job(steps=500, noise=0.05, barrier=True),
        lambda rank, step: every if rank == 0 and step % 50 == 49 else {},
    )
    issue = only(payload)
    assert (issue["kind"], issue["ranks"]) == ("STRAGGLER", [0])
    assert issue["evidence"]["component"] == "checkpoint"
    assert [i["kind"] for i in payload["step_time"]["issues"]] == ["STRAGGLER"]


def test_fsdp_waits_in_forward_and_backward(tmp_path):
    issue = only(folded(tmp_path, Job(strategy="fsdp2"), of_rank(3, SLOW_INPUT)))
    assert issue["kind"] == "INPUT_STRAGGLER"
    assert issue["evidence"]["visible_metric"] == "forward_backward"


def test_missing_ranks_are_said_and_the_others_compared(tmp_path):
    write_job(tmp_path, Job(noise=0.05), of_rank(3, SLOW_INPUT))
    next(
        s.path for s in map(read_spool, tmp_path.glob("*.jsonl")) if s.header.identity.rank == 1
    ).unlink()
    payload = fold(tmp_path).payload
    issue = only(payload)
    assert issue["ranks"] == [3]
    assert "3 of 4 ranks were compared." in issue["summary"]
    assert payload["step_time"]["rank_balance"]["ranks_compared"] == 3


def test_a_rank_without_a_step_is_left_out_of_the_comparison(tmp_path):
    job = Job(ranks=3, steps=60, strategy=None)
    write_job(tmp_path, job, of_rank(1, SLOW_INPUT))
    made.run_of(tmp_path, header=made.rank_header(3, 4))
    balance = fold(tmp_path).payload["step_time"]["rank_balance"]
    assert (balance["ranks_compared"], balance["ranks_expected"]) == (3, 4)


def test_folding_twice_gives_the_same_bytes(tmp_path):
    job = Job(noise=0.1)
    first = folded(tmp_path, job, of_rank(3, SLOW_INPUT))
    again = fold(tmp_path).payload
    for payload in (first, again):
        payload.pop("generated_at")
    assert first == again


def test_the_text_shows_all_of_four_ranks_and_four_of_more(tmp_path):
    four = folded(tmp_path / "4", Job(nodes=2), of_rank(3, SLOW_INPUT))["text"]
    assert [line.split()[:2] for line in four.splitlines() if line.startswith("  3 ")] == [
        ["3", "node-1"]
    ]
    many = folded(tmp_path / "16", Job(ranks=16, nodes=2), of_rank(3, SLOW_INPUT))["text"]
    rows = [line for line in many.splitlines() if re.match(r"  \d+ node-", line)]
    assert len(rows) == 4
    assert rows[0].startswith("  3 node-0, slowest")
    assert len(many.splitlines()) <= 40
