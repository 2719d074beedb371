"""The arithmetic of hotspots: shares, intervals, ranks that differ, what counts as input."""

import pytest

from tests.report import synthetic_run as made
from traceml_agent.report.fold import fold
from traceml_agent.report.hotspots import interval
from traceml_agent.report.line_kinds import kind_of
from traceml_agent.report.render.text import WIDTH
from traceml_agent.schema.records import DeviceSteps
from traceml_agent.schema.stacks import CodeLine, StackRow, Stacks

MS = made.MS
HEAVY = {"forward": 2.0, "backward": 1.0, "optimizer": 1.0, "input_wait": 0.0}
"""Of a step of 10 ms: 6 ms are in no phase."""
LOOP = [
    CodeLine("/home/u/train.py", 10, "main", "model(x)", "y = model(x)"),
    CodeLine("/home/u/train.py", 12, "main", "o.step()", "o.step()"),
    CodeLine("/home/u/train.py", 8, "main", "prepare(i)", "x = prepare(i)"),
    CodeLine("/home/u/train.py", 14, "main", "loss.item()", "log(loss.item())"),
    CodeLine("/home/u/data.py", 5, "prepare", "decode(i)", "return decode(i)"),
]
FORWARD = StackRow("forward", [0], 20, 20 * 50 * MS)
UPDATE = StackRow("optimizer", [1], 10, 10 * 50 * MS)


def sampled(*rows, lines=LOOP):
    """A record with these rows."""
    return Stacks(
        monotonic_ns=made.FIRST_STEP_NS + MS,
        since_ns=made.FIRST_STEP_NS,
        step=60,
        interval_ns=50 * MS,
        samples=sum(row.samples for row in rows),
        weight_ns=sum(row.weight_ns for row in rows),
        lines=lines,
        rows=list(rows),
    )


def row(phase, lines, samples, **more):
    return StackRow(phase, lines, samples, samples * 50 * MS, **more)


def summary_of(tmp_path, *rows, lines=LOOP, phases=HEAVY):
    made.run_of(tmp_path / "run", made.steps(60, phases=phases), more=[sampled(*rows, lines=lines)])
    return fold(tmp_path / "run").payload


def test_the_time_of_a_line_is_its_share_of_the_exact_time_of_the_phase(tmp_path):
    payload = summary_of(tmp_path, row("residual", [3], 75), row("residual", [4, 2], 25), FORWARD)
    spots = {spot["line"]: spot for spot in payload["hotspots"]}
    assert spots[14]["share_percent"] == pytest.approx(75)
    assert spots[14]["ms_per_step"] == pytest.approx(4.5)
    assert spots[10]["ms_per_step"] == pytest.approx(2.0)
    low, high = spots[14]["share_low_percent"], spots[14]["share_high_percent"]
    assert (low, high) == (pytest.approx(65.7, abs=0.1), pytest.approx(82.5, abs=0.1))
    assert spots[14]["kind"] == "sync"


def test_the_residual_is_called_by_its_line_and_the_advice_is_for_what_the_line_does(tmp_path):
    payload = summary_of(tmp_path, row("residual", [3], 100), FORWARD, UPDATE)
    primary = payload["primary_diagnosis"]
    assert primary["kind"] == "RESIDUAL_HEAVY"
    assert "100% of it in train.py:14 `loss.item()`, which waits for a value" in primary["summary"]
    assert primary["action"].startswith("It reads a value of a tensor")
    assert payload["step_time"]["diagnosis"]["place"]["line"] == 14
    assert "Where         train.py:14 `loss.item()`: 6.00 ms a step" in payload["text"]
    assert max(map(len, payload["text"].splitlines())) <= WIDTH


def test_the_line_that_waits_for_workers_says_nothing_and_a_library_that_loads_is_named(tmp_path):
    phases = {"input_wait": 6.0, "forward": 2.0, "backward": 1.0, "optimizer": 1.0}
    lines = [CodeLine("/t.py", 5, "main", None, "for x in loader:", loop=True)]
    called = "torch/utils/data/dataloader.py:__next__"
    loading = row("input_wait", [0], 90, callee=called, leaf="PIL/ImageFile.py:load")
    summary = summary_of(tmp_path / "a", loading, lines=lines, phases=phases)["primary_diagnosis"]
    assert "`for x in loader:`, most often in PIL/ImageFile.py:load." in summary["summary"]
    waiting = row("input_wait", [0], 90, callee=called, leaf="selectors.py:select")
    summary = summary_of(tmp_path / "b", waiting, lines=lines, phases=phases)["primary_diagnosis"]
    assert "t.py:5" not in summary["summary"]


def test_few_samples_or_a_small_share_name_no_line(tmp_path):
    for number, rows in enumerate(
        ([row("residual", [3], 7)], [row("residual", [], 80), row("residual", [3], 20)])
    ):
        payload = summary_of(tmp_path / str(number), *rows, FORWARD)
        assert "of it in" not in payload["primary_diagnosis"]["summary"]
        assert payload["step_time"]["diagnosis"]["place"] is None


def test_what_stands_before_the_forward_pass_is_taken_for_input_and_said_to_be_a_guess(tmp_path):
    payload = summary_of(
        tmp_path, row("residual", [4, 2], 60), row("residual", [3], 40), FORWARD, UPDATE
    )
    inputs, rest = payload["step_time"]["issues"]
    assert (inputs["kind"], inputs["confidence"]) == ("INPUT_WITHOUT_LOADER", "low")
    assert inputs["score"] == pytest.approx(0.36)
    assert inputs["cost"]["ms_per_step"] == pytest.approx(3.6)
    assert "by its place before the forward pass" in inputs["summary"]
    assert (rest["kind"], rest["score"]) == ("RESIDUAL_HEAVY", pytest.approx(0.24))


def test_without_the_forward_pass_seen_a_plain_name_says_nothing_about_input(tmp_path):
    payload = summary_of(tmp_path, row("residual", [4, 2], 100))
    assert payload["primary_diagnosis"]["kind"] == "RESIDUAL_HEAVY"


def test_a_line_that_sleeps_in_forward_is_a_finding_and_one_that_computes_is_not(tmp_path):
    lines = [
        CodeLine("/m.py", 3, "forward", "time.sleep(1)", "time.sleep(1)"),
        CodeLine("/m.py", 4, "forward", "self.conv(x)", "return self.conv(x)"),
    ]
    phases = {"forward": 6.0, "backward": 3.0, "optimizer": 1.0, "input_wait": 0.0}
    payload = summary_of(
        tmp_path, row("forward", [0], 50), row("forward", [1], 50), lines=lines, phases=phases
    )
    (found,) = payload["step_time"]["issues"]
    assert (found["kind"], found["place"]["line"]) == ("SLOW_LINE", 3)
    assert found["score"] == pytest.approx(0.3)
    assert payload["findings"][0]["kind"] == "SLOW_LINE"


def test_a_value_that_is_read_inside_the_model_waits_for_the_device_where_there_is_one(tmp_path):
    lines = [
        CodeLine("/m.py", 3, "forward", "x.max().item()", "scale = x.max().item()"),
        CodeLine("/m.py", 4, "forward", "self.conv(x)", "return self.conv(x)"),
    ]
    rows = [row("forward", [0], 50), row("forward", [1], 50)]
    phases = {"forward": 6.0, "backward": 3.0, "optimizer": 1.0, "input_wait": 0.0}
    on_device = {name: [round(ms * MS)] * 60 for name, ms in phases.items()}
    device = DeviceSteps(1, 60, [10 * MS] * 60, on_device)
    more = [device, sampled(*rows, lines=lines)]
    made.run_of(tmp_path / "run", made.steps(60, phases=phases), more=more)
    (found,) = fold(tmp_path / "run").payload["step_time"]["issues"]
    assert (found["kind"], found["confidence"], found["place"]["line"]) == ("HOST_SYNC", "low", 3)
    without = summary_of(tmp_path / "cpu", *rows, lines=lines, phases=phases)
    assert without["step_time"]["diagnosis"]["kind"] == "SLOW_LINE"


def test_a_rank_on_which_a_line_takes_more_is_named(tmp_path):
    for rank, count in enumerate((10, 12, 70, 9)):
        rows = (row("residual", [3], count), row("residual", [4, 2], 100 - count))
        more = [sampled(*rows)]
        header = made.rank_header(rank, 4)
        made.run_of(tmp_path / "run", made.steps(60, phases=HEAVY), more=more, header=header)
    spots = {spot["line"]: spot for spot in fold(tmp_path / "run").payload["hotspots"]}
    assert spots[14]["ranks_apart"] == [2]
    assert spots[14]["share_percent"] == pytest.approx(25.25)


def test_time_outside_steps_and_of_unknown_phases_is_no_part_of_a_step(tmp_path):
    payload = summary_of(
        tmp_path, row("outside", [3], 300), row("unknown", [3], 30), row("residual", [4, 2], 50)
    )
    spots = {(spot["phase"], spot["line"]): spot for spot in payload["hotspots"]}
    assert spots["outside", 14]["ms_per_step"] is None
    assert spots["residual", 5]["share_percent"] == pytest.approx(100)
    assert ("unknown", 14) not in spots


def test_late_samples_of_a_line_without_a_kind_are_plain_python(tmp_path):
    payload = summary_of(tmp_path, row("residual", [4, 2], 50, late=40), FORWARD, UPDATE)
    assert payload["hotspots"][0]["kind"] == "python"


def test_the_interval_holds_the_share_and_narrows_with_samples():
    assert interval(0.5, 0) == (0.0, 1.0)
    wide, narrow = interval(0.3, 20), interval(0.3, 2000)
    assert wide[0] < narrow[0] < 0.3 < narrow[1] < wide[1]
    assert interval(1.0, 50)[1] == 1.0


@pytest.mark.parametrize(
    ("call", "callee", "kind"),
    [
        ("loss.item()", None, "sync"),
        ("torch.cuda.synchronize()", "torch/cuda/__init__.py:synchronize", "sync"),
        ("[v.item() for v in values]", None, "sync"),
        ("float(loss)", None, "sync"),
        ("print(x)", "torch/_tensor.py:__repr__", "print"),
        ("logger.info('…', x)", "logging/__init__.py:info", "log"),
        ("f.write(text)", None, "write"),
        ("json.dump(x, f)", "json/__init__.py:dump", "serialize"),
        ("time.sleep(1)", None, "sleep"),
        ("q.get()", "queue.py:get", "wait"),
        ("get(url)", "requests/api.py:get", "network"),
        ("self.conv(x)", "torch/nn/modules/module.py:_call_impl", None),
        ("model.items(x)", None, None),
    ],
)
def test_what_a_line_does_is_known_by_its_call(call, callee, kind):
    assert kind_of(call, call, callee, None) == kind


SMALL = {"input_wait": 0.4, "forward": 4.0, "backward": 4.5, "optimizer": 0.7}
"""Of a step of 10 ms: 0.4 ms are in no phase."""


def test_a_line_of_four_percent_is_named_beside_a_verdict_that_stays(tmp_path):
    lines = [
        CodeLine("/t.py", 5, "main", "float(loss)", "total += float(loss)"),
        CodeLine("/t.py", 6, "main", "optimizer.zero_grad()", "optimizer.zero_grad()"),
        CodeLine("/t.py", 7, "main", None, "for x in loader:", loop=True),
        CodeLine("/d.py", 8, "decode", "decode(path)", "return decode(path)"),
    ]
    rows = [
        row("residual", [0], 95), row("residual", [1], 5), row("input_wait", [2, 3][::-1], 100)
    ]  # fmt: skip
    payload = summary_of(tmp_path, *rows, lines=lines, phases=SMALL)
    assert payload["primary_diagnosis"]["kind"] == "COMPUTE_BOUND"
    assert payload["primary_diagnosis"]["severity"] == "info"
    found = {f["place"]["line"]: f for f in payload["findings"]}
    assert sorted(found) == [5, 8]
    assert {(f["kind"], f["severity"]) for f in found.values()} == {("SLOW_LINE", "info")}
    assert "between the calls of the model: 4% of the step" in found[5]["summary"]
    assert found[5]["saving"]["step_high_ms"] == pytest.approx(9.65, abs=0.03)
    assert "num_workers" in found[8]["action"]
    assert "Also          SLOW LINE: t.py:5 `float(loss)` waits for" in payload["text"]


def test_on_a_device_a_small_line_of_the_host_is_not_told(tmp_path):
    lines = [CodeLine("/t.py", 5, "main", "print(loss)", "print(loss)")]
    on_device = {name: [round(ms * MS)] * 60 for name, ms in SMALL.items()}
    device = DeviceSteps(1, 60, [10 * MS] * 60, on_device)
    more = [device, sampled(row("residual", [0], 95), lines=lines)]
    made.run_of(tmp_path / "run", made.steps(60, phases=SMALL), more=more)
    assert fold(tmp_path / "run").payload["findings"] == []
    assert summary_of(tmp_path / "cpu", row("residual", [0], 95), lines=lines, phases=SMALL)[
        "findings"
    ]


def test_a_small_line_is_not_told_where_its_phase_is_nor_one_that_waits_for_workers(tmp_path):
    lines = [
        CodeLine("/t.py", 5, "main", "float(loss)", "total += float(loss)"),
        CodeLine("/t.py", 6, "main", "print(loss)", "print(loss)"),
        CodeLine("/t.py", 7, "main", None, "for x in loader:", loop=True),
    ]
    waits = row("input_wait", [2], 100, callee="torch/utils/data/x.py:get", leaf="queue.py:get")
    phases = {"input_wait": 0.5, "forward": 4.0, "backward": 3.0, "optimizer": 0.5}
    rows = [row("residual", [0], 60), row("residual", [1], 40), waits]
    payload = summary_of(tmp_path, *rows, lines=lines, phases=phases)
    assert [f["kind"] for f in payload["findings"]] == ["RESIDUAL_HEAVY"]
