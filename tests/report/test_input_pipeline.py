"""Which cause is named for a loader with known figures, and what the advice is computed from."""

from dataclasses import replace

import pytest

from tests.report import synthetic_run as made
from tests.report.synthetic_run import FIRST_STEP_NS, MS, rank_header, run_of, steps
from traceml_agent.report.fold import fold
from traceml_agent.report.loader_replay import change, enough_workers, replay_inputs
from traceml_agent.report.view import load_run
from traceml_agent.schema.loaders import Loader, WorkerBatches, WorkerStacks, WorkerSums
from traceml_agent.schema.stacks import CodeLine, StackRow
from traceml_agent.spool.digest import records_of, sum_up
from traceml_agent.spool.digested import read_spool
from traceml_agent.spool.format import BadRecord
from traceml_agent.spool.loader_batches import fewer_batches, joined_batches
from traceml_agent.spool.plausible import check

STEPS = 200
WAIT_MS, OWN_MS, FETCH_MS = 20, 10, 60
WAITING = {"input_wait": 20.0, "forward": 3.0, "backward": 5.0, "optimizer": 1.0}


def worker(number=0, fetch_s=6.0, idle_s=0.2, cpu_s=5.5, delay_s=0.1, **changes):
    sums = WorkerSums(
        worker=number,
        batches=100,
        fetch_ns=int(fetch_s * 1e9),
        collate_ns=int(fetch_s * 0.1 * 1e9),
        cpu_ns=int(cpu_s * 1e9),
        idle_ns=int(idle_s * 1e9),
        delay_ns=int(delay_s * 1e9),
        watched_ns=int(fetch_s * 1e9),
        send_ns=10 * MS,
        read_bytes=0,
        major_faults=0,
    )
    return replace(sums, **changes)


def loader(**changes):
    """Two workers that are always busy, 20 ms of waiting for each batch."""
    wait = (STEPS - 1) * WAIT_MS * MS
    found = Loader(
        monotonic_ns=FIRST_STEP_NS + STEPS * (WAIT_MS + OWN_MS) * MS,
        loader=0,
        dataset="Images",
        iterable=False,
        workers=2,
        status="active",
        role="train",
        batch_size=32,
        prefetch=2,
        context="fork",
        epochs=1,
        batches=STEPS - 1,
        wait_ns=wait,
        known=STEPS - 1,
        ready=0,
        made_wait_ns=wait - 5 * MS,
        transfer_ns=5 * MS,
        sums=[worker(0), worker(1)],
    )
    return replace(found, **changes)


def batches(fetch_ms=None, count=STEPS, wait_ms=WAIT_MS, own_ms=OWN_MS, **changes):
    """Rows in which the loop waits and then works; the batches took `fetch_ms` each."""
    fetch_ms = fetch_ms or [FETCH_MS] * count
    asked = [number * (wait_ms + own_ms) * MS for number in range(count)]
    rows = WorkerBatches(
        loader=0,
        start_ns=FIRST_STEP_NS,
        epoch=[0] * count,
        batch=list(range(count)),
        worker=[number % 2 for number in range(count)],
        begun_ns=list(asked),
        fetch_ns=[ms * MS for ms in fetch_ms],
        collate_ns=[None] * count,
        cpu_ns=[None] * count,
        asked_ns=list(asked),
        wait_ns=[wait_ms * MS] * count,
    )
    return replace(rows, **changes)


def stacks(samples=100, share=0.7):
    line = CodeLine("/home/u/data.py", 42, "decode", "decode(path)", "x = decode(path)")
    rows = [
        StackRow("fetch", [0], int(samples * share), 1),
        StackRow("fetch", [], samples - int(samples * share), 1, leaf="zlib.py:decompress"),
    ]
    return WorkerStacks(FIRST_STEP_NS, 0, samples, [line], rows)


def folded(run_dir, *records, cpus=16.0, count=STEPS):
    host = [replace(sample, usable_cpus=cpus) for sample in made.host_samples()]
    run_of(run_dir, steps(count, step_ms=30.0, phases=WAITING), more=[*host, *records])
    return fold(run_dir).payload


def kinds(payload):
    return [issue["kind"] for issue in payload["input_pipeline"]["issues"]]


def test_busy_workers_are_named_with_their_line_and_the_workers_that_would_do(tmp_path):
    payload = folded(tmp_path / "run", loader(), batches(), stacks())
    assert kinds(payload) == ["WORKER_BOUND"]
    primary = payload["primary_diagnosis"]
    assert primary["kind"] == "INPUT_BOUND"
    assert "2 workers are 100% busy" in primary["summary"]
    assert "70% of it in data.py:42 `decode`" in primary["summary"]
    # 60 ms a batch and 10 ms a step: six workers, and the wait of 20 ms goes.
    assert "num_workers=6 (saves at most 20 ms a batch" in primary["action"]
    issue = payload["input_pipeline"]["issues"][0]
    assert (issue["place"]["file"], issue["place"]["line"]) == ("/home/u/data.py", 42)
    assert issue["cost"]["ms_per_step"] == pytest.approx(WAIT_MS, rel=0.02)
    assert issue["cost"]["share"] == pytest.approx(2 / 3, rel=0.02)
    assert issue["severity"] == "crit"
    finding = next(f for f in payload["findings"] if f["section"] == "input_pipeline")
    assert {name: finding[name] for name in issue} == issue
    # Busy workers are all of the wait: without them the step is what the loop does itself.
    assert finding["saving"]["step_high_ms"] == pytest.approx(OWN_MS, rel=0.05)


def test_workers_that_compute_are_not_advised_beyond_the_cores(tmp_path):
    payload = folded(tmp_path / "run", loader(), batches(), cpus=2.0)
    assert "More workers would not help on 2 usable cores" in payload["primary_diagnosis"]["action"]


def test_workers_that_wait_may_be_more_than_the_cores(tmp_path):
    waiting = loader(sums=[worker(0, cpu_s=0.1), worker(1, cpu_s=0.1)])
    payload = folded(tmp_path / "run", waiting, batches(), cpus=2.0)
    assert "num_workers=6 (saves about 20 ms" in payload["primary_diagnosis"]["action"]


def blocked(**changes):
    return [worker(n, cpu_s=0.5, **changes) for n in (0, 1)]


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"sums": blocked(read_bytes=500_000_000)}, "STORAGE_BOUND"),
        ({"sums": blocked(major_faults=300)}, "STORAGE_BOUND"),
        ({"sums": blocked(read_bytes=100_000)}, "WORKER_BOUND"),
        ({"sums": [worker(n, cpu_s=0.4, delay_s=5.4) for n in (0, 1)]}, "WORKERS_OVERSUBSCRIBED"),
        ({"made_wait_ns": 5 * MS, "transfer_ns": (STEPS - 1) * WAIT_MS * MS}, "TRANSFER_BOUND"),
        ({"workers": 0, "prefetch": None, "context": None, "known": 0}, "MAIN_PROCESS_LOADING"),
    ],
)
def test_a_cause_is_told_by_its_figures(tmp_path, changes, kind):
    payload = folded(tmp_path / "run", loader(**changes), batches())
    assert kinds(payload) == [kind]
    assert payload["primary_diagnosis"]["evidence"]["cause"] == kind


def test_the_part_of_the_wait_for_a_core_is_told_apart_from_the_rest(tmp_path):
    sums = [worker(n, fetch_s=6.0, cpu_s=3.0, delay_s=1.8) for n in (0, 1)]
    payload = folded(tmp_path / "run", loader(sums=sums), batches())
    first, second = payload["input_pipeline"]["issues"]
    assert (first["kind"], second["kind"]) == ("WORKER_BOUND", "WORKERS_OVERSUBSCRIBED")
    assert second["cost"]["ms_per_step"] == pytest.approx(WAIT_MS * 0.3, rel=0.02)
    assert first["cost"]["ms_per_step"] == pytest.approx(WAIT_MS * 0.7, rel=0.02)


def test_the_waits_of_the_warm_up_are_no_cause(tmp_path):
    # The first three steps take ten times as long, and it is these that wait.
    long_ms = [300.0] * 3 + [30.0] * (STEPS - 3)
    waits = [280] * 3 + [0] * (STEPS - 3)
    asked, now = [], 0
    for number, wait in enumerate(waits):
        asked.append(now)
        now += int((wait + (20 if number < 3 else 30)) * MS)
    rows = replace(
        batches([5] * STEPS),
        asked_ns=asked,
        begun_ns=[max(0, at - 10 * MS) for at in asked],
        wait_ns=[ms * MS for ms in waits],
    )
    late = loader(wait_ns=560 * MS, made_wait_ns=0, transfer_ns=560 * MS, ready=STEPS - 1)
    batch = steps(STEPS, durations=long_ms, phases={"forward": 3.0, "backward": 5.0})
    run_of(tmp_path / "run", batch, more=[late, rows])
    payload = fold(tmp_path / "run").payload
    assert kinds(payload) == []
    assert payload["input_pipeline"]["loaders"][0]["wait_s"] == pytest.approx(0.56)


def test_a_training_thread_that_waits_for_a_core_is_not_called_a_slow_transfer(tmp_path):
    late = loader(made_wait_ns=5 * MS, transfer_ns=(STEPS - 1) * WAIT_MS * MS, ready=STEPS - 1)
    samples = [
        replace(sample, run_delay_ns=number * 60 * MS)
        for number, sample in enumerate(made.process_samples([1 << 30] * 10))
    ]  # 60 of each 100 ms
    payload = folded(tmp_path / "run", late, batches(), *samples)
    assert kinds(payload) == ["WORKERS_OVERSUBSCRIBED"]
    assert "training thread waits for a core" in payload["primary_diagnosis"]["summary"]


def test_idle_workers_and_a_later_batch_that_is_ready_are_head_of_line(tmp_path):
    fetch = [900 if number % 40 == 0 else 4 for number in range(STEPS)]
    idle = [worker(n, fetch_s=3.0, cpu_s=1.0, idle_s=3.0) for n in (0, 1)]
    found = loader(behind_ns=int(STEPS * WAIT_MS * MS * 0.8), sums=idle)
    payload = folded(tmp_path / "run", found, batches(fetch))
    assert kinds(payload) == ["HEAD_OF_LINE"]
    assert "900 ms at p99, 4.00 ms at p50" in payload["primary_diagnosis"]["summary"]
    assert "in_order=False" in payload["primary_diagnosis"]["action"]


def test_idle_workers_without_a_later_batch_work_ahead_too_little(tmp_path):
    # Ten batches at once, and then 200 ms of work: 2 workers and 2 ahead each are not enough.
    own = [200 if number % 10 == 9 else 0 for number in range(STEPS)]
    rows = batches([15] * STEPS)
    asked, now = [], 0
    for each in own:
        asked.append(now)
        now += 5 * MS + each * MS
    rows = replace(rows, asked_ns=asked, wait_ns=[5 * MS] * STEPS)
    idle = [worker(n, fetch_s=3.0, cpu_s=1.0, idle_s=3.0) for n in (0, 1)]
    payload = folded(tmp_path / "run", loader(sums=idle), rows)
    assert kinds(payload) == ["PREFETCH_LOW"]
    assert "prefetch_factor=4" in payload["primary_diagnosis"]["action"]


def test_what_comes_again_with_each_epoch_is_named_by_itself(tmp_path):
    found = loader(epochs=11, restart_ns=3_000 * MS, wait_ns=0, made_wait_ns=0, transfer_ns=0)
    payload = folded(tmp_path / "run", found)
    assert kinds(payload) == ["EPOCH_RESTART"]
    assert "Each of 11 epochs begins with 300 ms" in payload["primary_diagnosis"]["summary"]
    assert "persistent_workers=True" in payload["primary_diagnosis"]["action"]


def test_a_loader_that_is_not_waited_for_has_figures_and_no_finding(tmp_path):
    calm = loader(wait_ns=40 * MS, made_wait_ns=0, transfer_ns=40 * MS, ready=STEPS - 1)
    payload = folded(tmp_path / "run", calm, batches(wait_ms=0))
    assert kinds(payload) == []
    (shown,) = payload["input_pipeline"]["loaders"]
    assert shown["ready_share"] == 1.0
    assert shown["fetch_p50_ms"] == FETCH_MS
    assert [row["worker"] for row in shown["workers"]] == [0, 1]


def test_the_loader_of_an_evaluation_is_no_cause(tmp_path):
    payload = folded(tmp_path / "run", loader(role="eval"), batches())
    assert kinds(payload) == []
    assert payload["input_pipeline"]["loaders"][0]["role"] == "eval"


def test_what_was_not_measured_is_null(tmp_path):
    bare = WorkerSums(worker=0, batches=100, fetch_ns=6_000 * MS)
    payload = folded(tmp_path / "run", loader(sums=[bare], known=0))
    (shown,) = payload["input_pipeline"]["loaders"]
    for name in ("busy_share", "cpu_share", "waiting_for_core_share", "blocked_share"):
        assert shown[name] is None
    assert shown["ready_share"] is None
    assert kinds(payload) == []


def test_the_worst_rank_speaks_and_all_that_wait_are_named(tmp_path):
    for rank in range(3):
        found = loader(wait_ns=(STEPS - 1) * (rank + 1) * 5 * MS)
        run_of(
            tmp_path / "run",
            steps(STEPS, step_ms=30.0, phases=WAITING),
            more=[found, batches()],
            header=rank_header(rank, 3),
        )
    (issue,) = fold(tmp_path / "run").payload["input_pipeline"]["issues"]
    assert issue["ranks"] == [0, 1, 2]
    assert issue["evidence"]["rank"] == 2


# The replay of what a rank recorded


def inputs_of(run_dir, *records):
    run_of(run_dir, steps(STEPS, step_ms=30.0, phases=WAITING), more=records)
    return replay_inputs(load_run(run_dir).ranks[0])


def test_the_inputs_of_a_replay_are_the_batches_and_the_time_between_them(tmp_path):
    inputs = inputs_of(tmp_path / "run", loader(ready=10, ready_wait_ns=5 * MS), batches())
    assert set(inputs.batch_ns) == {FETCH_MS * MS}
    assert set(inputs.main_ns) == {OWN_MS * MS}
    assert (inputs.workers, inputs.prefetch, inputs.in_order) == (2, 2, True)
    assert inputs.floor_ns == MS / 2


def test_a_gap_between_two_batches_is_no_time_of_the_loop(tmp_path):
    rows = batches(count=100)
    later = batches(count=100, batch=list(range(5000, 5100)))
    later = replace(later, asked_ns=[at + 10**12 for at in later.asked_ns])
    inputs = inputs_of(tmp_path / "run", loader(), *joined_batches([rows, later]))
    assert set(inputs.main_ns) == {OWN_MS * MS}


def test_too_few_batches_are_not_replayed(tmp_path):
    assert inputs_of(tmp_path / "run", loader(), batches(count=10)) is None


def test_a_change_saves_no_more_than_the_wait_above_the_floor(tmp_path):
    found = loader(ready=10, ready_wait_ns=50 * MS)  # 5 ms for a batch that is ready
    inputs = inputs_of(tmp_path / "run", found, batches())
    assert change(inputs, workers=8).saved_ns == pytest.approx(15 * MS)
    assert change(inputs, workers=3).saved_ns == pytest.approx(10 * MS, rel=0.05)
    assert change(inputs, workers=1).saved_ns < -25 * MS
    assert enough_workers(inputs, 64.0, 1.0).workers == 4


# The records


def test_rows_of_several_records_become_one_with_the_same_times():
    first, second = batches(count=3), replace(batches(count=2), start_ns=FIRST_STEP_NS - 7)
    (joined,) = joined_batches([first, second])
    assert joined.start_ns == FIRST_STEP_NS - 7
    assert joined.asked_ns == [at + 7 for at in first.asked_ns] + second.asked_ns
    assert joined.fetch_ns == first.fetch_ns + second.fetch_ns


def test_a_digest_keeps_the_first_batches_of_each_loader_and_the_last_record():
    many = [replace(batches(count=500), loader=n % 2, start_ns=n) for n in range(40)]
    kept = fewer_batches(many)
    assert sum(len(record.batch) for record in kept) == 2 * 4000 + 2 * 500
    assert kept[-1] is many[-1]


def test_a_digest_says_the_same_of_loaders_as_its_spool(tmp_path):
    path = run_of(
        tmp_path / "run",
        steps(STEPS, step_ms=30.0, phases=WAITING),
        more=[loader(batches=3), batches(count=150), loader(), batches(count=50), stacks()],
    )
    before = fold(tmp_path / "run").payload
    spool = read_spool(path)
    sum_up(spool)
    again = [spool.header, *records_of(spool)]
    made.write_spool(tmp_path / "again" / "run", again[1:], again[0])
    after = fold(tmp_path / "again" / "run").payload
    assert after["input_pipeline"] == before["input_pipeline"]


@pytest.mark.parametrize(
    "record",
    [
        replace(batches(count=3), worker=[0]),
        replace(batches(count=3), fetch_ns=[1 << 62] * 3),
        replace(stacks(), lines=[]),
        replace(stacks(), samples=1),
        loader(wait_ns=-1),
    ],
    ids=["short column", "endless batch", "no line", "too many samples", "negative wait"],
)
def test_a_record_that_no_writer_wrote_is_refused(record):
    with pytest.raises(BadRecord):
        check(record)
