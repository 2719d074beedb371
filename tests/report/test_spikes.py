"""Spikes: which steps they are, what they are given to, and whether they come back regularly."""

import random
from dataclasses import replace

import numpy
import pytest

from tests.report.synthetic_run import FIRST_STEP_NS, MS, rank_header, run_of, steps
from traceml_agent.report.causes import losses_of
from traceml_agent.report.fold import fold
from traceml_agent.report.series import series_of, totals
from traceml_agent.report.spikes import BLOCK, UNEXPLAINED, above, baseline_of, period, spikes_of
from traceml_agent.report.view import RankView, load_run
from traceml_agent.schema.causes import GcTotals, Sched
from traceml_agent.schema.records import STRATEGY_EVENT, Event
from traceml_agent.spool.digested import read_spool

CAUSES = ("gc", "throttled", "contention", "checkpoint", "eval", "compile", "recompile", "input")
COUNT = 600
STEP_MS = 10.0


def noisy(count, seed, spread=0.03):
    """Durations around 10 ms."""
    source = random.Random(seed)
    return [STEP_MS * (1 + source.gauss(0, spread)) for _ in range(count)]


class Made:
    """A run whose spikes are known."""

    def __init__(self, seed, count=COUNT):
        self.source = random.Random(seed)
        self.durations = noisy(count, seed + 1)
        self.columns = {n: [0.0] * count for n in ("checkpoint", "eval", "compile")}
        self.columns["input_wait"] = [0.5] * count
        self.truth = {}  # step: {cause: milliseconds}
        self._later = []
        self._waits = []

    def add(self, index, cause, ms):
        """Lets a step take `ms` longer for this cause."""
        self.truth.setdefault(index + 1, {})[cause] = ms
        self.durations[index] += ms
        phase = {"recompile": "compile", "input": "input_wait"}.get(cause, cause)
        if phase in self.columns:
            self.columns[phase][index] += ms
        self._later.append((index, cause, ms))

    def write(self, run_dir):
        """Writes the spool, with intervals of the account 50 ms long."""
        batch = steps(len(self.durations), durations=self.durations, **self.columns)
        starts = [FIRST_STEP_NS]
        for duration in batch.duration_ns:
            starts.append(starts[-1] + duration)
        events, waits = [], []
        for index, cause, ms in self._later:
            begin, long_ns = starts[index] + MS, round(ms * MS)
            detail = {"id": "0/1"} if cause == "recompile" else {}
            if cause in ("gc", "checkpoint", "recompile", "compile"):
                name = "compile" if cause == "recompile" else cause
                events.append(Event(name, begin, long_ns, index + 1, detail))
            if cause in ("throttled", "contention"):
                waits.append((begin, long_ns, cause))
        events.sort(key=lambda event: event.monotonic_ns)
        pauses = sum(e.duration_ns for e in events if e.name == "gc")
        gc = GcTotals(starts[-1], len(starts) - 1, [0, 0, 3], [0, 0, pauses], 3, pauses, 0, 0)
        more = [*events, gc, account(starts[0], starts[-1], waits)]
        return read_view(run_of(run_dir, batch, more=more))


def account(begin, end, waits):
    """The kernel's account in intervals of 50 ms; a wait is booked in the one in which it ends."""
    count = -(-(end - begin) // (50 * MS))
    delay, held = [0] * count, [0] * count
    for start, long_ns, cause in waits:
        row = min(count - 1, (start + long_ns - begin) // (50 * MS))
        delay[row] += long_ns
        held[row] += long_ns if cause == "throttled" else 0
    zeros = [0] * count
    durations = [50 * MS] * count
    return Sched(begin, "schedstat", durations, zeros, delay, held, zeros, zeros, zeros)


def read_view(path):
    spool = read_spool(path)
    return RankView(0, spool, series_of(spool), totals(spool), "finished", 0, None, None)


def found_in(rank):
    return spikes_of(0, rank.series, losses_of(rank))


def test_spikes_of_each_cause_are_found_and_given_to_it(tmp_path):
    wanted = hit = right = 0
    for seed in range(8):
        made = Made(seed)
        places = made.source.sample(range(5, COUNT - 5, 9), 24)
        for number, index in enumerate(places):
            made.add(index, CAUSES[number % len(CAUSES)], made.source.uniform(20, 500))
        spikes = {spike.step: spike for spike in found_in(made.write(tmp_path / str(seed)))}
        for step, truth in made.truth.items():
            wanted += 1
            hit += step in spikes
            right += step in spikes and spikes[step].cause in truth
        assert set(spikes) <= set(made.truth)
    assert wanted == 8 * 24
    assert hit / wanted >= 0.99
    assert right / wanted >= 0.95


def test_two_causes_in_one_step_both_get_their_part(tmp_path):
    made = Made(3)
    made.add(100, "gc", 60)
    made.add(100, "checkpoint", 40)
    made.add(300, "input", 80)
    made.add(300, "contention", 30)
    both, other = found_in(made.write(tmp_path))
    assert both.parts["gc"] == pytest.approx(60 * MS, rel=0.02)
    assert both.parts["checkpoint"] == pytest.approx(40 * MS, rel=0.05)
    assert other.parts["contention"] == pytest.approx(30 * MS, rel=0.05)
    assert other.parts["input"] == pytest.approx(80 * MS, rel=0.05)


def test_a_collection_inside_a_phase_counts_once(tmp_path):
    columns = {"input_wait": [0.5] * 100, "durations": [10.0] * 100}
    columns["input_wait"][50] += 60
    columns["durations"][50] += 60
    batch = steps(100, **columns)
    begin = FIRST_STEP_NS + 50 * 10 * MS
    event = Event("gc", begin, 60 * MS, 51, {"phase": "input_wait"})
    rank = read_view(run_of(tmp_path, batch, more=[event]))
    losses = {loss.cause: loss for loss in losses_of(rank)}
    assert losses["gc"].lost_ns[50] == 60 * MS and losses["gc"].within == "input_wait"
    assert losses["input"].lost_ns[50] == round(0.5 * MS)
    (spike,) = found_in(rank)
    assert spike.parts == {"gc": 60 * MS}


def test_a_collection_while_dynamo_compiles_is_a_part_of_that(tmp_path):
    durations, compiled = [10.0] * 100, [0.0] * 100
    durations[50] += 60
    compiled[50] = 60
    begin = FIRST_STEP_NS + 50 * 10 * MS
    events = [
        Event("gc", begin, 30 * MS, 51, {"phase": "compile"}),
        Event("compile", begin, 60 * MS, 51, {"frame": "0/0"}),
    ]
    batch = steps(100, durations=durations, compile=compiled)
    rank = read_view(run_of(tmp_path, batch, more=events))
    losses = {loss.cause: sum(loss.lost_ns) for loss in losses_of(rank)}
    assert losses["compile"] == 60 * MS
    assert losses.get("gc", 0) == 0


def test_parts_of_a_spike_sum_to_its_excess_and_losses_never_exceed_the_step(tmp_path):
    made = Made(7)
    for index in range(20, 580, 7):
        for cause in made.source.sample(CAUSES, 3):
            made.add(index, cause, made.source.uniform(0, 90))
    rank = made.write(tmp_path)
    for spike in found_in(rank):
        assert sum(spike.parts.values()) == spike.excess_ns
        assert min(spike.parts.values()) >= 0
    for loss in losses_of(rank):
        pairs = zip(loss.lost_ns, rank.series.duration_ns, strict=True)
        assert all(0 <= lost <= duration for lost, duration in pairs)


def test_what_no_cause_explains_is_called_unexplained(tmp_path):
    durations = noisy(200, 1)
    durations[77] += 70
    rank = read_view(run_of(tmp_path, steps(200, durations=durations)))
    (spike,) = found_in(rank)
    assert (spike.step, spike.cause) == (78, UNEXPLAINED)


def test_healthy_runs_with_noise_have_no_spikes(tmp_path):
    """Of 100 runs of 500 steps with 5 % noise fewer than 1 of 10,000 steps may be called one."""
    false = 0
    for seed in range(100):
        durations = [round(ms * MS) for ms in noisy(500, seed, spread=0.05)]
        baseline = baseline_of(durations, 0)
        limits = baseline.limits()
        false += sum(ns > limits[baseline.block_of(i)] for i, ns in enumerate(durations))
    assert false <= 5


@pytest.mark.parametrize("at", [170, 180])  # of the block more or less than half is slower
def test_a_level_that_changes_is_no_row_of_spikes(tmp_path, at):
    durations = [*noisy(at, 1), *(ms * 1.5 for ms in noisy(500 - at, 2))]
    rank = read_view(run_of(tmp_path, steps(500, durations=durations)))
    assert found_in(rank) == []


@pytest.mark.parametrize(
    ("found", "every"),
    [
        ([20, 40, 60, 80], 20),
        ([7, 57, 107, 158, 207, 257, 307, 357, 407, 457, 507], 50),  # one came a step late
        ([20, 40, 60], None),
        ([3, 10, 40, 41, 95], None),
        ([5, 6, 7, 8, 9], None),
        ([10, 20, 30, 40, 50, 60, 75], 10),
    ],
)
def test_a_period_is_one_distance_that_nearly_all_have(found, every):
    assert period(found) == every


def test_periodic_spikes_name_period_excess_cause_and_place(tmp_path):
    durations, saved, events = noisy(200, 5), [0.0] * 200, []
    start = FIRST_STEP_NS
    for index in range(200):
        if index % 50 == 49:
            durations[index] += 180
            saved[index] = 180
            detail = {"call": "torch.save", "at": "/home/u/train.py:71"}
            events.append(Event("checkpoint", start + MS, 180 * MS, index + 1, detail))
        start += round(durations[index] * MS)
    run_of(tmp_path, steps(200, durations=durations, checkpoint=saved), more=events)
    section = fold(tmp_path).payload["causes"]
    (regular,) = section["spikes"]["periodic"]
    assert (regular["every"], regular["count"], regular["cause"]) == (50, 4, "checkpoint")
    assert regular["mean_excess_ms"] == pytest.approx(180, rel=0.02)
    (finding,) = [i for i in section["issues"] if i["kind"] == "PERIODIC_SPIKES"]
    assert "Every 50 steps" in finding["summary"]
    assert "torch.save at train.py:71" in finding["summary"]
    assert finding["place"]["line"] == 71
    assert finding["cost"]["ms_per_step"] == pytest.approx(180 / 50, rel=0.05)
    (cost,) = [i for i in section["issues"] if i["kind"] == "CHECKPOINT_COST"]
    assert cost["cost"]["run_s"] == pytest.approx(4 * 0.18, rel=0.01)


def test_across_ranks_the_one_that_has_the_cause_is_named(tmp_path):
    strategy = Event(STRATEGY_EVENT, FIRST_STEP_NS, None, 1, {"strategy": "ddp"})
    for rank in range(3):
        durations, backward = noisy(300, 9), [5.0] * 300
        events = [strategy]
        start = FIRST_STEP_NS
        for index in range(300):
            if index % 60 == 30:
                durations[index] += 100
                if rank == 1:
                    events.append(Event("gc", start + MS, 100 * MS, index + 1, {"generation": 2}))
                else:
                    backward[index] += 100
            start += round(durations[index] * MS)
        batch = steps(300, durations=durations, backward=backward)
        run_of(tmp_path, batch, more=events, header=rank_header(rank, 3))
    section = fold(tmp_path).payload["causes"]
    (regular,) = section["spikes"]["periodic"]
    assert (regular["rank"], regular["cause"], regular["every"]) == (1, "gc", 60)
    causes = set(section["spikes"]["by_cause"])
    assert causes <= {"gc", "rank 1: gc", UNEXPLAINED}
    unexplained = section["spikes"]["by_cause"].get(UNEXPLAINED, {"excess_ms": 0})
    assert unexplained["excess_ms"] < 0.05 * section["spikes"]["by_cause"]["gc"]["excess_ms"]


def test_a_rank_that_saves_after_its_update_has_the_others_wait_in_their_next_step(tmp_path):
    strategy = Event(STRATEGY_EVENT, FIRST_STEP_NS, None, 1, {"strategy": "ddp"})
    for rank in range(2):
        durations, saved, backward = noisy(300, 9), [0.0] * 300, [5.0] * 300
        for index in range(50, 300, 50):
            if rank == 0:
                durations[index] += 100
                saved[index] = 100
            else:
                durations[index + 1] += 100
                backward[index + 1] += 100
        batch = steps(300, durations=durations, checkpoint=saved, backward=backward)
        run_of(tmp_path, batch, more=[strategy], header=rank_header(rank, 2))
    section = fold(tmp_path).payload["causes"]
    (regular,) = section["spikes"]["periodic"]
    assert (regular["rank"], regular["cause"], regular["every"]) == (0, "checkpoint", 50)
    assert set(section["spikes"]["by_cause"]) <= {"checkpoint", "rank 0: checkpoint", UNEXPLAINED}


def test_small_collections_are_spread_and_their_sum_is_exact(tmp_path):
    gc = GcTotals(FIRST_STEP_NS, 100, [300, 20, 0], [30 * MS, 10 * MS, 0], 0, 0, 0, 0)
    rank = read_view(run_of(tmp_path, steps(100), more=[gc]))
    (loss,) = [loss for loss in losses_of(rank) if loss.cause == "gc"]
    assert sum(loss.lost_ns) == 40 * MS


def test_waits_of_the_account_are_exact_as_a_sum_and_split_by_the_quota(tmp_path):
    made = Made(11)
    for index in range(40, 560, 40):
        made.add(index, "throttled" if index % 80 else "contention", 35)
    rank = made.write(tmp_path)
    losses = {loss.cause: sum(loss.lost_ns) / MS for loss in losses_of(rank)}
    held = sum(ms for truth in made.truth.values() for c, ms in truth.items() if c == "throttled")
    waited = sum(ms for truth in made.truth.values() for c, ms in truth.items() if c != "throttled")
    assert losses["throttled"] == pytest.approx(held, rel=0.02)
    assert losses["contention"] == pytest.approx(waited, rel=0.02)


def test_a_wait_that_is_booked_after_the_step_belongs_to_the_step(tmp_path):
    durations = [10.0] * 100
    durations[49] += 60  # it ends at 560 ms, and the wait is booked in the interval after 550 ms
    rows = [0] * 20
    rows[11] = 60 * MS
    zeros = [0] * 20
    sched = Sched(FIRST_STEP_NS - 3 * MS, "schedstat", [50 * MS] * 20, zeros, rows, None, zeros,
                  zeros, zeros)  # fmt: skip
    rank = read_view(run_of(tmp_path, steps(100, durations=durations), more=[sched]))
    (loss,) = [loss for loss in losses_of(rank) if loss.cause == "contention"]
    assert loss.lost_ns[49] == pytest.approx(60 * MS, rel=0.1)


def test_a_damaged_account_takes_no_more_than_the_steps(tmp_path):
    sched = Sched(FIRST_STEP_NS, "schedstat", [MS] * 3, [0] * 3, [10**15] * 3, None,
                  [0] * 3, [0] * 3, [0] * 3)  # fmt: skip
    rank = read_view(run_of(tmp_path, steps(50), more=[sched, replace(sched)]))
    (loss,) = [loss for loss in losses_of(rank) if loss.cause == "contention"]
    assert all(lost <= 10 * MS for lost in loss.lost_ns)


def test_runs_without_the_new_records_say_nothing_about_them(tmp_path):
    run_of(tmp_path, steps(BLOCK))
    section = fold(tmp_path).payload["causes"]
    assert section["gc"] is None and section["account"] is None
    assert section["issues"] == []
    assert [rank.series.warmup for rank in load_run(tmp_path).ranks] == [0]


@pytest.mark.parametrize("count", [40, 50, 99, 100, 333, 1_000])
@pytest.mark.parametrize("first", [0, 7])
def test_numpy_changes_nothing(monkeypatch, count, first):
    source = random.Random(count)
    column = [source.randrange(10**7, 2 * 10**7) for _ in range(count)]
    column[count // 2] *= 3

    def found():
        baseline = baseline_of(column, first)
        return baseline.levels, pytest.approx(baseline.sigma), above(column, baseline)

    monkeypatch.setattr("traceml_agent.report.spikes.numpy_for", lambda count: numpy)
    with_numpy = found()
    monkeypatch.setattr("traceml_agent.report.spikes.numpy_for", lambda count: None)
    assert found() == with_numpy
    assert count // 2 in with_numpy[2]


def test_spikes_with_the_period_of_any_sampling_are_still_spikes():
    # 40,000 steps of which each 20th is a spike: to look at each 20th only would see nothing else.
    column = [10 * MS + step % 7 for step in range(40_000)]
    column[::20] = [30 * MS] * 2_000
    baseline = baseline_of(column, 0)
    assert above(column, baseline) == list(range(0, 40_000, 20))


@pytest.mark.parametrize(
    ("at", "severity"),
    [([77], "info"), ([31, 77, 180], "warn"), ([31, 77, 112, 140, 163, 170, 188], "crit")],
)
def test_one_long_pause_is_no_pattern(tmp_path, at, severity):
    durations = noisy(200, 5)  # 10 ms each, and 2 s in all
    for index in at:
        durations[index] += 450 / min(3, len(at))
    run_of(tmp_path, steps(200, durations=durations))
    issues = fold(tmp_path).payload["causes"]["issues"]
    (finding,) = [i for i in issues if i["kind"] == "SPIKES"]
    assert finding["severity"] == severity


@pytest.mark.parametrize(("collections", "severity"), [(2, "info"), (3, "warn")])
def test_two_collections_are_those_of_any_process(tmp_path, collections, severity):
    durations, events, start = noisy(200, 5), [], FIRST_STEP_NS
    for index in range(200):
        if index in (40, 93, 151)[:collections]:
            durations[index] += 60
            events.append(Event("gc", start + MS, 60 * MS, index + 1, {"generation": 2}))
        start += round(durations[index] * MS)
    run_of(tmp_path, steps(200, durations=durations), more=events)
    issues = fold(tmp_path).payload["causes"]["issues"]
    (finding,) = [i for i in issues if i["kind"] == "GC_PAUSES"]
    assert finding["severity"] == severity
