"""Joined batches hold exactly the steps of the single ones."""

import random
from dataclasses import replace

import pytest

from tests.report import synthetic_run as made
from traceml_agent.report.series import series_of, totals
from traceml_agent.schema.records import DeviceSteps
from traceml_agent.spool.compact import compact
from traceml_agent.spool.digested import read_spool

MS = made.MS


def batches(generator, count=40):
    """Batches as no run alone has them: gaps, phases that come and go, lists beside integers."""
    found, first, start = [], 1, made.FIRST_STEP_NS
    for _ in range(count):
        size = generator.randrange(1, 5)
        durations = [generator.randrange(5, 50) for _ in range(size)]
        phases = {name: 1.0 for name in made.STEP_MS if generator.random() < 0.7}
        batch = made.steps(size, first, start, phases=phases, durations=durations)
        batch = replace(
            batch,
            micro_batches=generator.choice([1, 2, [generator.randrange(1, 4)] * size]),
            samples=generator.choice([None, 32, 32, [8 + i for i in range(size)]]),
            updates=generator.choice([0, 1, 1, [0] * size]),
            d2h_ns=generator.choice([None, [MS] * size]),
        )
        found.append(batch)
        first += size + (generator.random() < 0.1)
        start += sum(batch.duration_ns) + (generator.random() < 0.1) * 7 * MS
    return found


def one_a_step(spool):
    """All that a spool says about each step, by walking its batches."""
    found = {}
    for batch in spool.batches:
        at_ns = batch.start_ns
        for i in range(batch.count):
            pick = [c if isinstance(c, (int, type(None))) else c[i]
                    for c in (batch.micro_batches, batch.samples, batch.updates)]  # fmt: skip
            phases = {name: c[i] for name, c in batch.phase_ns.items() if c[i]}
            d2h_ns = batch.d2h_ns[i] if batch.d2h_ns else 0
            found[batch.first_step + i] = (at_ns, batch.duration_ns[i], phases, *pick, d2h_ns)
            at_ns += batch.duration_ns[i]
    return found


@pytest.mark.parametrize("seed", range(20))
def test_joined_batches_say_the_same_of_each_step(tmp_path, seed):
    path = made.run_of(tmp_path, *batches(random.Random(seed)))
    apart, joined = read_spool(path), compact(read_spool(path))
    assert len(joined.batches) < len(apart.batches) == 40
    assert one_a_step(joined) == one_a_step(apart)
    assert totals(joined) == totals(apart)


@pytest.mark.parametrize("seed", range(20))
def test_the_columns_of_a_rank_are_those_of_the_single_batches(tmp_path, seed):
    path = made.run_of(tmp_path, *batches(random.Random(seed)))
    apart, series = read_spool(path), series_of(compact(read_spool(path)))
    known = one_a_step(apart)
    rows = zip(series.steps, series.start_ns, series.duration_ns, strict=True)
    assert [(step, start, ns) for step, start, ns in rows] == [(s, *known[s][:2]) for s in known]
    assert list(series.phase_ns["forward"]) == [k[2].get("forward", 0) for k in known.values()]
    assert list(series.micro_batches) == [k[3] for k in known.values()]
    assert list(series.d2h_ns) == [k[6] for k in known.values()]
    assert series.samples is None  # not seen in some of them


def test_steps_without_a_gap_become_one_batch_with_counts_as_one_integer(tmp_path):
    path = made.run_of(tmp_path, *(made.steps(3, 1 + 3 * i, made.FIRST_STEP_NS + 30 * i * MS)
                                   for i in range(9)))  # fmt: skip
    (batch,) = compact(read_spool(path)).batches
    assert (batch.first_step, batch.count, batch.micro_batches, batch.samples) == (1, 27, 1, 32)


def test_device_times_that_did_not_resolve_stay_none(tmp_path):
    device = [
        DeviceSteps(1, 2, [None, 9 * MS], {"forward": [None, 3 * MS]}),
        DeviceSteps(3, 2, [8 * MS, 9 * MS], {"backward": [4 * MS, 5 * MS]}),
    ]
    path = made.run_of(tmp_path, made.steps(4), more=device)
    spool = compact(read_spool(path))
    (joined,) = spool.device_batches
    assert list(joined.duration_ns) == [None, 9 * MS, 8 * MS, 9 * MS]
    assert list(joined.phase_ns["forward"]) == [None, 3 * MS, 0, 0]
    series = series_of(spool)
    assert list(series.device_duration_ns) == [0, 9 * MS, 8 * MS, 9 * MS]
    assert list(series.device_phase_ns["backward"]) == [0, 0, 4 * MS, 5 * MS]
