"""From spools to the summary: identities, null and zero, endings, files that are not whole."""

import json
import stat
from statistics import median

import pytest

from tests.report import synthetic_run as made
from tests.report.synthetic_run import MS
from traceml_agent.errors import NewerSchema, NoRun, NoSpools, TracemlError
from traceml_agent.report.fold import fold, fold_and_write, read_summary
from traceml_agent.schema.records import Outside, StepSums
from traceml_agent.schema.summary import STEP_TIME_METRICS
from traceml_agent.spool.layout import RECORD as RING_RECORD
from traceml_agent.spool.ring import Ring, slot_offset


def payload_of(run_dir):
    return fold(run_dir).payload


def test_the_figures_of_a_step_are_those_written(tmp_path):
    made.run_of(tmp_path, made.steps(100))
    metrics = payload_of(tmp_path)["step_time"]["groups"]["rows"]["0"]["metrics"]
    assert metrics["step_time_ms"] == pytest.approx(10.0)
    assert metrics["compute_ms"] == pytest.approx(9.3)
    assert metrics["residual_ms"] == pytest.approx(0.2)
    assert metrics["traced_step_time_ms"] == pytest.approx(9.5)
    assert metrics["step_time_gpu_ms"] is None


@pytest.mark.parametrize(
    "phases",
    [made.STEP_MS, {"forward": 2.0}, {"input_wait": 9.0, "h2d": 0.5, "eval": 0.1}, {}],
)
def test_the_identities_of_the_contract_hold_in_every_row(tmp_path, phases):
    made.run_of(tmp_path, made.steps(30, phases=phases))
    metrics = payload_of(tmp_path)["step_time"]["groups"]["rows"]["0"]["metrics"]
    assert set(metrics) == set(STEP_TIME_METRICS)
    assert metrics["step_time_ms"] == pytest.approx(
        metrics["input_wait_ms"] + metrics["traced_step_time_ms"]
    )
    assert metrics["compute_ms"] == pytest.approx(
        metrics["forward_ms"] + metrics["backward_ms"] + metrics["optimizer_ms"]
    )
    known = ("h2d_ms", "compute_ms", "eval_ms", "checkpoint_ms", "compile_ms")
    claimed = sum(metrics[name] for name in known)
    assert metrics["residual_ms"] == pytest.approx(metrics["traced_step_time_ms"] - claimed)


def test_a_phase_without_its_patch_is_null_and_never_zero(tmp_path):
    statuses = {**made.ACTIVE, "transfer": "not in: no such attribute"}
    made.run_of(tmp_path, made.steps(30), statuses=statuses)
    payload = payload_of(tmp_path)
    assert payload["step_time"]["groups"]["rows"]["0"]["metrics"]["h2d_ms"] is None
    assert payload["step_time"]["global"]["median"]["h2d_ms"] == {"value": None, "idx": None}
    assert payload["step_time"]["groups"]["rows"]["0"]["metrics"]["eval_ms"] == 0.0
    assert "transfer: not in" in payload["text"]


def test_without_the_forward_patch_compute_is_unknown_and_the_verdict_says_so(tmp_path):
    made.run_of(tmp_path, made.steps(30), statuses={**made.ACTIVE, "forward": "not in: x"})
    payload = payload_of(tmp_path)
    assert payload["step_time"]["diagnosis"]["kind"] == "INCOMPLETE_DATA"
    assert payload["primary_diagnosis"]["kind"] == "INSUFFICIENT_STEP_TIME_DATA"
    assert payload["step_time"]["global"]["average"]["residual_ms"] is None


def test_one_slow_first_step_is_warm_up_and_decides_nothing(tmp_path):
    first = [3000.0] + [10.0] * 99
    made.run_of(tmp_path, made.steps(100, durations=first))
    payload = payload_of(tmp_path)
    assert payload["step_time"]["warmup_steps"] == 1
    assert payload["step_time"]["global"]["average"]["step_time_ms"] == pytest.approx(10.0)
    assert payload["step_time"]["diagnosis"]["severity"] == "info"
    assert "1 warm-up cut" in payload["text"]


def test_the_parts_of_the_wall_time_sum_to_it(tmp_path):
    batch = made.steps(100, eval=[0.0] * 50 + [4.0] + [0.0] * 49)
    more = [Outside(2_002 * MS, {"eval": 50 * MS, "checkpoint": 20 * MS})]
    made.run_of(tmp_path, batch, more=more)
    (entry,) = payload_of(tmp_path)["ledger"]["ranks"]
    parts = {name: part["seconds"] for name, part in entry["parts"].items()}
    assert entry["wall_s"] == pytest.approx(3.1)
    assert sum(parts.values()) == pytest.approx(entry["wall_s"])
    assert parts["training"] == pytest.approx(0.996)
    assert parts["eval"] == pytest.approx(0.054)
    assert parts["checkpoint"] == pytest.approx(0.02)
    assert parts["startup"] == pytest.approx(2.0)
    assert parts["shutdown"] == pytest.approx(0.03)


def test_a_pause_between_two_batches_is_idle_time(tmp_path):
    first = made.steps(10)
    second = made.steps(10, first=11, start_ns=made.FIRST_STEP_NS + 20_100 * MS)
    last = second.start_ns + sum(second.duration_ns)
    records = [made.Patches(1, made.ACTIVE), first, second, made.end([first], at_ns=last)]
    made.write_spool(tmp_path, records)
    parts = payload_of(tmp_path)["ledger"]["ranks"][0]["parts"]
    assert parts["idle"]["seconds"] == pytest.approx(20.0)
    assert parts["training"]["seconds"] == pytest.approx(0.2)


def test_a_thinned_run_keeps_exact_totals_and_says_so(tmp_path):
    sums = StepSums(1, 50, made.FIRST_STEP_NS, 500 * MS, {"forward": 150 * MS}, 50, 1600, 50)
    batch = made.steps(50, first=51, start_ns=made.FIRST_STEP_NS + 500 * MS)
    made.run_of(tmp_path, batch, more=[sums])
    payload = payload_of(tmp_path)
    (entry,) = payload["ledger"]["ranks"]
    assert entry["steps"] == 100
    assert entry["parts"]["training"]["seconds"] == pytest.approx(1.0)
    assert payload["traceml_agent"]["dropped"] == {"thinned_steps": 50}
    assert "50 old steps are kept as exact sums" in payload["text"]


def test_steps_in_the_ring_of_a_killed_process_count(tmp_path):
    path = made.run_of(tmp_path, made.steps(20), ending=False)
    ring = Ring(path.with_suffix(".ring"), 16)
    start = made.FIRST_STEP_NS + 200 * MS
    for step in range(18, 24):
        phases = (0, 0, 3 * MS, *[0] * 6)
        row = (step, start + (step - 21) * 10 * MS, 10 * MS, *phases, 0, 1, 32, 1)
        RING_RECORD.pack_into(ring.buffer, slot_offset(step, 16), *row, step)
    torn = (24, 0, 10 * MS, 0, 0, 3 * MS, *[0] * 6, 0, 1, 32, 1, 7)
    RING_RECORD.pack_into(ring.buffer, slot_offset(24, 16), *torn)
    ring.close(remove=False)
    payload = payload_of(tmp_path)
    assert payload["run_context"]["run"]["status"] == "killed"
    assert payload["step_time"]["metadata"]["training_total_steps"] == 23
    assert payload["traceml_agent"]["complete"] is False


@pytest.mark.parametrize(
    ("count", "kind"), [(0, "NO_DATA"), (1, "WARMUP"), (2, "COMPUTE_BOUND"), (20, "COMPUTE_BOUND")]
)
def test_few_steps_say_little(tmp_path, count, kind):
    phases = {"forward": 9.5}
    made.run_of(tmp_path, *([made.steps(count, phases=phases)] if count else []))
    payload = payload_of(tmp_path)
    assert payload["step_time"]["diagnosis"]["kind"] == kind
    assert payload["text"]


@pytest.mark.parametrize(
    ("part", "kind"),
    [("input_wait", "INPUT_BOUND"), ("h2d", "H2D_BOUND"), ("residual", "RESIDUAL_HEAVY")],
)
@pytest.mark.parametrize(
    ("share", "count", "severity"),
    [(0.09, 50, "info"), (0.11, 50, "warn"), (0.21, 50, "crit"), (0.21, 19, "warn")],
)
def test_a_part_of_the_step_becomes_the_verdict_at_its_threshold(
    tmp_path, part, kind, share, count, severity
):
    phases = {"forward": 10.0 * (1 - share)}
    if part != "residual":
        phases[part] = 10.0 * share
    made.run_of(tmp_path, made.steps(count, phases=phases))
    diagnosis = payload_of(tmp_path)["step_time"]["diagnosis"]
    assert diagnosis["severity"] == severity
    assert (diagnosis["kind"] == kind) == (severity != "info")


def test_a_long_validation_in_a_few_steps_does_not_hide_that_the_others_wait(tmp_path):
    durations = [10.0] * 50
    evals = [0.0] * 50
    durations[25], evals[25] = 2010.0, 2000.0
    batch = made.steps(50, phases={"input_wait": 4.0, "forward": 6.0}, durations=durations,
                       eval=evals)  # fmt: skip
    made.run_of(tmp_path, batch)
    primary = payload_of(tmp_path)["primary_diagnosis"]
    assert (primary["kind"], primary["severity"]) == ("INPUT_BOUND", "crit")
    assert primary["evidence"]["score"] == pytest.approx(0.4)


MIB = 1024**2


@pytest.mark.parametrize(
    ("rss_mib", "kind"),
    [
        ([400] * 30, "NO_GPU"),
        ([400 + i % 7 for i in range(30)], "NO_GPU"),
        ([400 + min(i, 8) * 60 for i in range(30)], "NO_GPU"),  # a data set loaded at first
        ([400 + 12 * i for i in range(30)], "CREEP_EARLY"),
        ([400 + 40 * i for i in range(30)], "CREEP_CONFIRMED"),
        ([400, 800, 1200], "NO_GPU"),  # too few samples to say
    ],
)
def test_memory_that_grows_to_the_end_is_told_from_memory_that_settles(tmp_path, rss_mib, kind):
    samples = made.process_samples([r * MIB for r in rss_mib])
    made.run_of(tmp_path, made.steps(300), more=samples)
    payload = payload_of(tmp_path)
    assert payload["step_memory"]["diagnosis"]["kind"] == kind
    assert (payload["primary_diagnosis"]["kind"] == kind) == kind.startswith("CREEP")


def test_folding_twice_gives_the_same_bytes_but_for_the_time(tmp_path):
    made.run_of(tmp_path, made.steps(50), more=[*made.process_samples([1] * 9),
                                                *made.host_samples()])  # fmt: skip
    first, second = (fold(tmp_path).payload for _ in range(2))
    assert first.pop("generated_at") and second.pop("generated_at")
    assert json.dumps(first) == json.dumps(second)


def test_the_files_are_written_whole_and_for_their_owner_alone(tmp_path):
    made.run_of(tmp_path, made.steps(50))
    summary = fold_and_write(tmp_path)
    for name in ("final_summary.json", "final_summary.txt"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert read_summary(tmp_path / "final_summary.json") == summary.payload
    assert not list(tmp_path.glob(".final*"))


def test_missing_ranks_are_named_and_the_run_is_not_complete(tmp_path):
    for rank in (0, 2):
        made.run_of(tmp_path, made.steps(30), header=made.rank_header(rank, 4))
    payload = payload_of(tmp_path)
    assert payload["traceml_agent"]["missing_ranks"] == [1, 3]
    assert payload["traceml_agent"]["complete"] is False
    assert set(payload["step_time"]["groups"]["rows"]) == {"0", "2"}
    assert payload["meta"]["world_size"] == 4


def test_a_torn_last_line_costs_that_line_alone(tmp_path):
    records = [made.Patches(1, made.ACTIVE), made.steps(30)]
    made.write_spool(tmp_path, records, tail=b'{"kind":"steps","first_step":31,"cou')
    payload = payload_of(tmp_path)
    assert payload["step_time"]["metadata"]["training_total_steps"] == 30
    assert any("torn" in problem for problem in payload["traceml_agent"]["problems"])


def test_garbage_in_the_middle_is_skipped_and_named(tmp_path):
    path = made.run_of(tmp_path, made.steps(30))
    lines = path.read_bytes().splitlines(True)
    bad = [b"\x00\xff garbage\n", b'{"kind":"steps","first_step":"x"}\n', b"[]\n",
           b'{"kind":"unknown-to-this-version","x":1}\n']  # fmt: skip
    path.write_bytes(b"".join([lines[0], *bad, *lines[1:]]))
    payload = payload_of(tmp_path)
    assert payload["step_time"]["metadata"]["training_total_steps"] == 30
    assert any("3 lines skipped" in problem for problem in payload["traceml_agent"]["problems"])


def test_an_empty_and_a_foreign_spool_beside_a_good_one_are_named(tmp_path):
    made.run_of(tmp_path, made.steps(30))
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "foreign.jsonl").write_text('{"loss": 0.1}\n')
    payload = payload_of(tmp_path)
    assert len(payload["traceml_agent"]["problems"]) == 2
    assert payload["step_time"]["metadata"]["training_total_steps"] == 30


def test_a_newer_schema_is_refused_with_the_way_out(tmp_path):
    made.run_of(tmp_path, header=made.replace(made.HEADER, schema="traceml-spool/99"))
    with pytest.raises(NewerSchema, match="update traceml-agent"):
        fold(tmp_path)


def test_a_missing_or_empty_directory_is_an_error_with_a_hint(tmp_path):
    with pytest.raises(NoRun):
        fold(tmp_path / "nowhere")
    with pytest.raises(NoSpools, match="TRACEML_ENABLE"):
        fold(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"traceml_agent": {"schema": "other/1"}}'])
def test_a_file_that_is_no_summary_is_refused(tmp_path, text):
    path = tmp_path / "final_summary.json"
    path.write_text(text)
    with pytest.raises(TracemlError):
        read_summary(path)


def test_a_summary_of_a_newer_version_is_refused(tmp_path):
    path = tmp_path / "final_summary.json"
    path.write_text('{"traceml_agent": {"schema": "traceml-agent-summary/99"}}')
    with pytest.raises(NewerSchema):
        read_summary(path)


def test_long_and_short_columns_give_the_same_statistics():
    from traceml_agent.report import stats

    long = [(i * 7919) % 100_003 for i in range(stats.NUMPY_FROM)]
    other = [(i * 104_729) % 99_991 for i in range(stats.NUMPY_FROM)]
    assert list(stats.sorted_column(long)) == sorted(long)
    pairs = list(zip(long, other, strict=True))
    assert list(stats.sum_columns([long, other])) == [a + b for a, b in pairs]
    assert list(stats.differences(long, other)) == [max(0, a - b) for a, b in pairs]
    assert list(stats.subtracted(long, other)) == [a - b for a, b in pairs]
    assert stats.total(long) == sum(long)
    assert stats.middle(long) == median(long)
    far = sorted(abs(value - 50_000.5) for value in long)
    assert stats.median_abs_deviation(long, 50_000.5) == median(far)


def test_a_slope_is_the_same_with_numpy_and_without(monkeypatch):
    from traceml_agent.report import stats

    points = [(i * 3 % 1_000, i * 7919 % 10_007 << 20) for i in range(500)]
    with_numpy = stats.theil_sen(points)
    monkeypatch.setattr(stats, "numpy_for", lambda *_: None)
    assert stats.theil_sen(points) == with_numpy
