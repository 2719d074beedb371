"""The arithmetic of collectives, on ranks with known calls."""

from dataclasses import replace

import pytest

from tests.report import synthetic_run as made
from traceml_agent.report.fold import fold
from traceml_agent.schema.collectives import (
    DENSE_STEPS,
    SPARSE,
    Arrivals,
    CollectiveKey,
    Collectives,
    CollectiveSums,
    DdpTimes,
)
from traceml_agent.spool.call_sums import without_calls
from traceml_agent.spool.format import BadRecord
from traceml_agent.spool.plausible import check

STATUSES = {**made.ACTIVE, "collectives": "active"}
ALL_REDUCE = CollectiveKey("all_reduce", "0-abc", 2, "gloo", 1)
STEPS = 40


def calls(durations_ms, key=ALL_REDUCE, first_step=1, sums=(), part=0, **columns):
    """One call a step of these durations, in no phase."""
    count = len(durations_ms)
    step = list(range(first_step, first_step + count))
    return Collectives(
        keys=[key],
        key=[0] * count,
        step=columns.get("step", step),
        seq=columns.get("seq", step),
        start_ns=[
            made.FIRST_STEP_NS
            + (s - 1) * 10 * made.MS
            + round(columns.get("after_ms", 0) * made.MS)
            for s in columns.get("within", step)
        ],
        duration_ns=[round(ms * made.MS) for ms in durations_ms],
        bytes=columns.get("bytes", [400] * count),
        phase=[columns.get("phase")] * count,
        part=[part] * count,
        sums=list(sums),
        lost=0,
        cost_ns=0,
    )


def communication(run_dir, *ranks, steps=STEPS, world_size=None):
    """The section of a run whose ranks left these records."""
    for rank, records in enumerate(ranks):
        header = made.rank_header(rank, world_size or len(ranks))
        made.run_of(run_dir, made.steps(steps), statuses=STATUSES, more=records, header=header)
    return fold(run_dir).payload


def test_the_rank_that_comes_last_tells_the_transfer_and_the_other_waited(tmp_path):
    found = communication(tmp_path, [calls([3.0] * STEPS)], [calls([1.0] * STEPS)])["communication"]
    assert found["ranks"]["0"]["transfer_ms"] == pytest.approx([1.0, 1.0])
    assert found["ranks"]["0"]["waiting_ms"] == pytest.approx([2.0, 2.0])
    assert found["ranks"]["1"]["waiting_ms"] == pytest.approx([0.0, 0.0])
    assert found["last_arrival"] == {
        "rank": 1, "share": 1.0, "chance": 0.5, "calls": STEPS, "wait_ms": pytest.approx(2.0),
        "costly_rank": 1, "costly_share": 1.0,
    }  # fmt: skip
    assert found["what_if_no_transfer"]["without_transfer_ms"] == pytest.approx([9.0, 9.0])
    assert found["ranks"]["0"]["operations"][0]["bytes_per_step"] == 400


@pytest.mark.parametrize(("transfer", "severity"), [(0.9, None), (1.1, "warn"), (2.1, "crit")])
def test_a_finding_rests_on_the_least_that_transfers_took(tmp_path, transfer, severity):
    own = [calls([transfer] * STEPS)]
    payload = communication(tmp_path, own, [calls([transfer + 5.0] * STEPS)])
    found = [f["severity"] for f in payload["findings"] if f["kind"] == "COMMUNICATION_BOUND"]
    assert found == ([] if severity is None else [severity])


def test_transfers_of_changing_length_give_an_interval(tmp_path):
    times = [1.0] * 10 + [3.0] * 30
    found = communication(tmp_path, [calls(times)], [calls(times)])["communication"]
    assert found["ranks"]["0"]["transfer_ms"] == pytest.approx([1.0, 2.5])
    assert found["ranks"]["0"]["waiting_ms"] == pytest.approx([0.0, 1.5])


@pytest.mark.parametrize(
    "second",
    [
        None,
        [calls([1.0] * STEPS, CollectiveKey("broadcast", "0-abc", 2, "gloo", 1))],
        [calls([1.0] * STEPS, seq=[n + 1 for n in range(1, STEPS + 1)])],
        [calls([1.0] * (STEPS // 2))],
        [calls([1.0] * STEPS), calls([0.1] * STEPS, seq=[n + 100 for n in range(STEPS)])],
        [],
    ],
    ids=["missing rank", "another operation", "shifted numbers", "half", "twice", "no calls"],
)
def test_what_cannot_be_aligned_is_an_interval_and_no_finding(tmp_path, second):
    ranks = [[calls([6.0] * STEPS)]] + ([] if second is None else [second])
    payload = communication(tmp_path, *ranks, world_size=2)
    row = payload["communication"]["ranks"]["0"]
    assert row["transfer_ms"] == pytest.approx([0.0, 6.0])
    assert row["waiting_ms"] == pytest.approx([0.0, 6.0])
    assert "rank" in row["operations"][0]["reason"]
    assert payload["communication"]["issues"] == []


def test_calls_that_are_only_enqueued_say_nothing_about_transfer(tmp_path):
    key = CollectiveKey("all_reduce", "0-abc", 2, "nccl", 0)
    found = communication(tmp_path, *[[calls([6.0] * STEPS, key)]] * 2)["communication"]
    row = found["ranks"]["0"]
    assert row["enqueue_ms"] == pytest.approx(6.0)
    assert (row["host_ms"], row["share"]) == (None, None)
    assert (row["transfer_ms"], row["waiting_ms"]) == (None, None)
    assert "on this backend" in row["operations"][0]["reason"]
    assert found["what_if_no_transfer"] is None


def test_calls_kept_as_sums_count_with_the_shares_of_those_kept_one_by_one(tmp_path):
    def rank(ms):
        sums = CollectiveSums(0, 0, 21, 40, 20, round(20 * ms * made.MS), 20 * 400)
        return [calls([ms] * 20, sums=[sums])]

    found = communication(tmp_path, rank(4.0), rank(1.0))["communication"]
    row = found["ranks"]["0"]
    assert row["calls_per_step"] == pytest.approx(1.0)
    assert row["host_ms"] == pytest.approx(4.0)
    assert row["transfer_ms"] == pytest.approx([1.0, 1.0])


def test_an_async_call_counts_with_the_wait_for_its_handle(tmp_path):
    def rank(ms):
        return [calls([0.1] * STEPS, part=1), calls([ms - 0.1] * STEPS, part=2)]

    found = communication(tmp_path, rank(5.0), rank(2.0))["communication"]
    row = found["ranks"]["0"]
    assert row["calls_per_step"] == pytest.approx(1.0)
    assert row["host_ms"] == pytest.approx(5.0)
    assert row["transfer_ms"] == pytest.approx([2.0, 2.0])


@pytest.mark.parametrize(
    ("calls_ms", "kind"), [((5.4, 0.5), "RESIDUAL_HEAVY"), ((5.0, 5.0), "COMMUNICATION_BOUND")]
)
def test_time_in_no_phase_that_was_collectives_is_named_in_the_verdict(tmp_path, calls_ms, kind):
    phases = {"forward": 2.0, "backward": 2.0, "optimizer": 0.5}
    for rank, ms in enumerate(calls_ms):
        batch = made.steps(STEPS, phases=phases)
        header = made.rank_header(rank, 2)
        records = [calls([ms] * STEPS)]
        made.run_of(tmp_path, batch, statuses=STATUSES, more=records, header=header)
    primary = fold(tmp_path).payload["primary_diagnosis"]
    assert primary["kind"] == kind
    if kind == "RESIDUAL_HEAVY":
        assert "waiting for another rank" in primary["summary"]
        assert primary["evidence"]["collectives_ms"] == pytest.approx(2.95)


def run_of_compute(run_dir, *ranks):
    """Ranks whose steps are compute alone, by their phases."""
    for rank, records in enumerate(ranks):
        batch = made.steps(STEPS, phases={"forward": 5.0, "backward": 4.5, "optimizer": 0.5})
        header = made.rank_header(rank, len(ranks))
        made.run_of(run_dir, batch, statuses=STATUSES, more=records, header=header)
    return fold(run_dir).payload["primary_diagnosis"]


def test_collectives_inside_forward_and_backward_are_not_called_compute(tmp_path):
    gather = CollectiveKey("all_gather_into_tensor", "0-abc", 2, "gloo", 1)
    busy = [calls([5.0] * STEPS, gather, phase=2)]
    found = run_of_compute(tmp_path / "transfer", busy, busy)
    assert (found["kind"], found["severity"]) == ("COMMUNICATION_BOUND", "crit")
    assert "reshard_after_forward" in found["action"]
    waits = run_of_compute(tmp_path / "waits", busy, [calls([0.5] * STEPS, gather, phase=2)])
    assert waits["kind"] == "COMPUTE_BOUND"
    assert "2.8 ms are communication" in waits["summary"]
    quiet = run_of_compute(tmp_path / "quiet", [calls([0.5] * STEPS, gather, phase=2)])
    assert "communication" not in quiet["summary"]


def test_the_reduction_of_ddp_is_not_called_compute(tmp_path):
    times = DdpTimes(1, 0, 40, 10, "gloo", 80, 1, 10**6, 9 * 10**6, 4 * 10**6, 10**6)
    found = run_of_compute(tmp_path, [times], [times])
    assert found["kind"] == "COMPUTE_BOUND"
    assert "3.0 ms are communication" in found["summary"]


def test_a_spool_at_its_cap_keeps_exact_sums_of_calls():
    single = calls([1.0, 2.0, 3.0], sums=[CollectiveSums(0, 0, 9, 10, 4, 40, 8)])
    [sums] = without_calls(single).sums
    assert sums == CollectiveSums(0, 0, 1, 10, 7, 6 * made.MS + 40, 3 * 400 + 8)
    check(without_calls(single))


def test_what_ddp_measured_is_bounded_by_the_rank_that_waited_least(tmp_path):
    def ddp(exposed_ms):
        return DdpTimes(1, 0, 40, 10, "gloo", 80, 1, 10**6, 9 * 10**6,
                        round((exposed_ms + 2) * 1e6), 2 * 10**6)  # fmt: skip

    found = communication(tmp_path, [ddp(7.0)], [ddp(3.0)])["communication"]
    assert [row["exposed_ms"] for row in found["ddp"]["rows"]] == pytest.approx([7.0, 3.0])
    assert found["ddp"]["exposed_transfer_ms"] == pytest.approx([0.0, 3.0])


def several_a_step(durations_ms, first_seq=1):
    """As many calls a step as durations, one after the other."""
    rows = [(step, ms) for step in range(1, STEPS + 1) for ms in durations_ms]
    return calls(
        [ms for _, ms in rows],
        step=[step for step, _ in rows],
        within=[step for step, _ in rows],
        seq=list(range(first_seq, first_seq + len(rows))),
    )


def test_a_call_more_on_one_rank_shifts_the_others_and_nothing_is_said_of_them(tmp_path):
    times = [0.1] * 19 + [4.0]
    alike = communication(tmp_path / "a", [several_a_step(times)], [several_a_step(times)])
    assert alike["communication"]["ranks"]["0"]["transfer_ms"] == pytest.approx([2.0, 5.9])
    assert alike["communication"]["aligned_calls"] == STEPS * 20
    # 19 of 20 calls still meet one of the same step and kind, but not the one they belong to.
    shifted = communication(tmp_path / "b", [several_a_step(times)], [several_a_step(times, 2)])
    row = shifted["communication"]["ranks"]["0"]
    assert shifted["communication"]["aligned_calls"] == 0
    assert row["transfer_ms"] == pytest.approx([0.0, 5.9])
    assert shifted["communication"]["last_arrival"] is None


def overlapped(call_ms, work_ms, wait_ms):
    """An async call in each step, some work, and the wait for its handle."""
    started = calls([call_ms] * STEPS, part=1)
    waits = calls([wait_ms] * STEPS, part=2, after_ms=call_ms + work_ms)
    return [started, waits]


def test_work_between_an_async_call_and_its_wait_hides_the_transfer_on_that_rank_alone(tmp_path):
    # All come at once, and transfer for 5 ms. Rank 0 works for 6 ms meanwhile, rank 1 does not.
    found = communication(tmp_path, overlapped(0.0, 6.0, 0.01), overlapped(0.0, 0.0, 5.0))
    rows = found["communication"]["ranks"]
    assert rows["0"]["host_ms"] == pytest.approx(0.01)
    assert rows["1"]["transfer_ms"][1] == pytest.approx(5.0)
    assert rows["1"]["waiting_ms"] == pytest.approx([0.0, 5.0 - rows["1"]["transfer_ms"][0]])


def test_the_least_transfer_of_an_async_call_is_without_what_the_own_work_hid(tmp_path):
    # All come at once, and transfer for 5 ms; rank 0 works for 2 ms of that.
    found = communication(tmp_path, overlapped(0.0, 2.0, 3.0), overlapped(0.0, 0.0, 5.0))
    assert found["communication"]["ranks"]["0"]["transfer_ms"] == pytest.approx([1.0, 3.0])


def test_a_late_rank_is_waited_for_in_an_async_call_too(tmp_path):
    # Rank 1 comes 4 ms late, then all transfer for 1 ms; rank 0 works for 2 ms of that.
    found = communication(tmp_path, overlapped(0.0, 2.0, 3.0), overlapped(0.0, 0.0, 1.0))
    section = found["communication"]
    assert section["ranks"]["0"]["transfer_ms"] == pytest.approx([0.0, 0.0])
    assert section["ranks"]["0"]["waiting_ms"] == pytest.approx([3.0, 3.0])
    assert section["ranks"]["1"]["transfer_ms"] == pytest.approx([1.0, 1.0])
    assert section["last_arrival"]["rank"] == 1
    assert section["last_arrival"]["wait_ms"] == pytest.approx(3.0)


def test_an_async_call_whose_wait_was_not_seen_tells_nothing(tmp_path):
    started = [calls([6.0] * STEPS, part=1)]
    row = communication(tmp_path, started, started)["communication"]["ranks"]["0"]
    assert row["transfer_ms"] == pytest.approx([0.0, 6.0])
    assert "handles" in row["operations"][0]["reason"]


def test_each_part_of_an_async_call_counts_in_the_phase_it_was_in(tmp_path):
    started = calls([0.5] * STEPS, part=1, phase=3)
    waits = calls([1.5] * STEPS, part=2, after_ms=4)
    row = communication(tmp_path, *[[started, waits]] * 2)["communication"]["ranks"]["0"]
    assert row["operations"][0]["phases"] == pytest.approx({"backward": 0.5, "none": 1.5})


def test_a_wait_kept_as_a_sum_is_time_and_no_call(tmp_path):
    sums = [CollectiveSums(0, 1, 1, 40, 40, 0, 0), CollectiveSums(0, 2, 1, 40, 40, 40_000_000, 0)]
    row = communication(tmp_path, *[[calls([], sums=sums)]] * 2)["communication"]["ranks"]["0"]
    assert row["calls_per_step"] == pytest.approx(1.0)
    assert row["host_ms"] == pytest.approx(1.0)


def test_phases_add_up_to_the_time_of_all_calls_and_not_of_those_kept_one_by_one(tmp_path):
    sums = CollectiveSums(0, 0, 21, 40, 20, 20 * 4 * made.MS, 20 * 400)
    records = [calls([4.0] * 20, sums=[sums], phase=2)]
    row = communication(tmp_path, records, records)["communication"]["ranks"]["0"]
    assert row["operations"][0]["phases"] == pytest.approx({"forward": 4.0})


def test_a_wait_whose_call_was_not_kept_leaves_the_bytes_known(tmp_path):
    records = [calls([1.0] * STEPS), calls([1.0], part=2, seq=[99], within=[9])]
    row = communication(tmp_path, records, records)["communication"]["ranks"]["0"]
    assert row["operations"][0]["bytes_per_step"] == 400
    assert row["calls_per_step"] == 1.0
    assert row["host_ms"] == pytest.approx(1.0 + 1.0 / STEPS)


def test_a_call_of_a_long_run_stands_for_those_between(tmp_path):
    steps = DENSE_STEPS + 16 * SPARSE
    early = list(range(1, DENSE_STEPS + 1))
    late = list(range(DENSE_STEPS + SPARSE, steps + 1, SPARSE))

    def rank(early_ms, late_ms):
        times = [early_ms] * len(early) + [late_ms] * len(late)
        single = calls(times, step=early + late, within=early + late, seq=early + late)
        rest = steps - len(times)
        sums = CollectiveSums(0, 0, DENSE_STEPS + 1, steps, rest, round(rest * late_ms * 1e6), None)
        return [single, calls([], sums=[sums])]

    found = communication(tmp_path, rank(4.0, 4.0), rank(4.0, 1.0), steps=steps)["communication"]
    # In half of all steps 4 ms were transfer, in the other half 1 ms.
    assert found["ranks"]["0"]["transfer_ms"][1] == pytest.approx(2.5, rel=0.01)


def test_of_very_many_calls_some_steps_are_aligned_and_that_is_enough(tmp_path, monkeypatch):
    monkeypatch.setattr("traceml_agent.report.calls.ALIGNED_ROWS", STEPS // 2)
    found = communication(tmp_path, [calls([3.0] * STEPS)], [calls([1.0] * STEPS)])["communication"]
    assert found["ranks"]["0"]["transfer_ms"] == pytest.approx([1.0, 1.0])
    assert found["aligned_calls"] < STEPS / 2


def entered(late_ms, clock_ms=0.0, op="all_reduce"):
    """Two collectives in each step that C++ called, the second one by all ranks at once."""
    steps = [step for step in range(1, STEPS + 1) for _ in range(2)]
    key = CollectiveKey(op, "0-abc", 2, "gloo", 0)
    offsets = [late_ms, 6.0] * STEPS
    moments = [
        made.FIRST_STEP_NS + (step - 1) * 10 * made.MS + round((ms + clock_ms) * made.MS)
        for step, ms in zip(steps, offsets, strict=True)
    ]
    return Arrivals(1, [key], [0] * len(steps), list(range(1, len(steps) + 1)), moments)


def test_who_comes_last_in_what_no_patch_sees_is_told_by_the_flight_recorder(tmp_path):
    found = communication(tmp_path, [entered(1.0)], [entered(4.0)])["communication"]
    recorded = found["flight_recorder"]
    assert recorded["ahead_ms"] == pytest.approx({"0": 3.0, "1": 0.0})
    assert recorded["last_arrival"]["rank"] == 1
    assert recorded["last_arrival"]["wait_ms"] == pytest.approx(3.0)
    assert (recorded["steps"], recorded["clock_error_ms"]) == (STEPS, 0.0)


def test_moments_of_two_machines_are_compared_within_the_error_of_their_clocks(tmp_path):
    for rank, late_ms in enumerate((1.0, 4.0)):
        header = made.rank_header(rank, 2, boot_id=f"boot-{rank}", hostname=f"node-{rank}")
        # The second one booted 1 s later, and its wall clock is an hour ahead.
        shifted = replace(
            header,
            monotonic_ns=header.monotonic_ns - rank * 10**9,
            wall_ns=header.wall_ns + rank * 3600 * 10**9,
        )
        batch = made.steps(STEPS, start_ns=made.FIRST_STEP_NS - rank * 10**9)
        more = [entered(late_ms, clock_ms=-1000.0 * rank)]
        made.run_of(tmp_path, batch, statuses=STATUSES, more=more, header=shifted)
    recorded = fold(tmp_path).payload["communication"]["flight_recorder"]
    # The steps of 10 ms bound the clocks to 10 ms: 3 ms are within the error, and no rank is named.
    assert recorded["clock_error_ms"] == pytest.approx(10.0)
    assert recorded["last_arrival"] is None
    assert recorded["ahead_ms"]["0"] == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("op", "ranks"), [("all_reduce", 1), ("broadcast", 2)], ids=["of one rank", "of a broadcast"]
)
def test_the_flight_recorder_names_nobody_where_a_rank_waits_for_nobody(tmp_path, op, ranks):
    records = [[entered(1.0, op=op)], [entered(4.0, op=op)] if ranks == 2 else []]
    found = communication(tmp_path, *records)["communication"]
    assert found["flight_recorder"] is None


def test_arrivals_with_columns_of_other_lengths_are_no_record():
    whole = entered(1.0)
    check(whole)
    for broken in (replace(whole, seq=whole.seq[1:]), replace(whole, keys=[])):
        with pytest.raises(BadRecord):
            check(broken)


def test_the_text_says_who_is_waited_for_in_at_most_a_few_lines(tmp_path):
    def ddp(exposed_ms):
        return DdpTimes(1, 0, 40, 10, "gloo", 80, 1, 10**6, 9 * 10**6,
                        round((exposed_ms + 2) * 1e6), 2 * 10**6)  # fmt: skip

    late = [calls([0.5] * STEPS), ddp(1.0), entered(4.0)]
    payload = communication(tmp_path, [calls([3.0] * STEPS), ddp(4.0), entered(1.0)], late)
    lines = payload["text"].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("Communication"))
    told = [lines[start]]
    for line in lines[start + 1 :]:
        if not line.startswith(" " * 14):
            break
        told.append(line)
    assert len(told) <= 6
    text = " ".join(" ".join(told).split())
    assert (
        "all_reduce, 1 call a step: 3.00 ms of each step (30 %) on rank 0, waiting 2.50 ms" in text
    )
    assert "100 % of the waiting is for rank 1" in text
    assert "DDP reduces for 6.00 ms an iteration on rank 0, 4.00 ms of it not overlapped" in text
    assert "rank 1 comes last in 100 % of 40 steps, up to 3.00 ms after the others" in text


def test_a_call_belongs_to_the_step_of_its_time_whatever_was_closed_when_it_was_noted(tmp_path):
    late = [max(1, step - 1) for step in range(1, STEPS + 1)]
    records = [calls([3.0] * STEPS, step=late)]
    row = communication(tmp_path, records, [calls([1.0] * STEPS)])["communication"]["ranks"]["0"]
    assert row["calls_per_step"] == 1.0
    assert row["transfer_ms"] == pytest.approx([1.0, 1.0])


def test_a_run_without_collectives_has_a_calm_section_and_no_line(tmp_path):
    payload = communication(tmp_path, [])
    assert payload["communication"]["status"] == "none"
    assert "Communication" not in payload["text"]


def test_a_torch_without_distributed_says_so(tmp_path):
    statuses = {**made.ACTIVE, "collectives": "not in: this torch was built without it"}
    made.run_of(tmp_path, made.steps(STEPS), statuses=statuses)
    assert fold(tmp_path).payload["communication"]["status"].startswith("not in")
