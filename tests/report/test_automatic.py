"""Epochs, evaluations, steps and phases as spans: where everything belongs."""

from dataclasses import replace

from tests.report.synthetic_run import FIRST_STEP_NS, HEADER, MS, end, run_of, steps
from traceml_agent.report.automatic import with_automatic
from traceml_agent.report.span_rows import rows_in
from traceml_agent.report.spans import Row, forest
from traceml_agent.schema.loaders import Loader
from traceml_agent.schema.phases import PHASES as PHASE_NAMES
from traceml_agent.schema.records import DeviceSteps
from traceml_agent.schema.spans import Marks, Passes, Spans
from traceml_agent.spool.reader import Spool
from traceml_agent.spool.spans import SpanRecords
from traceml_agent.tracing import with_steps_of

T0 = FIRST_STEP_NS
PHASES = 4
"""That a step of `synthetic_run` has."""


def spool_of(*batches, passes=(), ended=True):
    """A run with passes: loader, number, start, end, last; in ms after the start of step 1."""
    found = Spool(None, HEADER, batches=list(batches))
    for loader, number, start, stop, last, *count in passes:
        at = [None if x is None else T0 + int(x * MS) for x in (start, stop, last)]
        found.spans.keep(Passes([loader], [number], [at[0]], [at[1]], [at[2]], count or [1]))
    found.end = end(list(batches)) if ended else None
    return found


def row(number, start_ms, end_ms, name="s", parent=None, phase=0):
    stop = None if end_ms is None else T0 + int(end_ms * MS)
    return Row(number, parent, name, None, T0 + int(start_ms * MS), stop, None, {}, [], phase)


def shape(roots, *, phases=False):
    return [
        (r.name if r.index is None else f"{r.name}[{r.index}]", shape(r.children, phases=phases))
        for r in roots
        if phases or r.id > 0 or r.name not in PHASE_NAMES
    ]


def tree(rows, spool, most=1000, **how):
    return shape(forest(with_automatic(rows, spool, most)), **how)


def bare(*names):
    return [(name, []) for name in names]


TWO_EPOCHS = [(0, 0, 0, 20, 11), (1, 0, 20, 25, 24), (0, 1, 25.1, 45, 36), (1, 1, 45.1, 49, 48)]
"""Two steps, an evaluation of 5 ms that the third step holds, two steps, an evaluation."""


def two_epochs(**how):
    first = steps(2)
    third = steps(
        1, first=3, start_ns=T0 + 20 * MS, step_ms=15.0, phases={"eval": 4.9, "forward": 5.0}
    )
    last = steps(1, first=4, start_ns=T0 + 35 * MS)
    return spool_of(first, third, last, passes=TWO_EPOCHS, **how)


def test_passes_with_steps_are_epochs_and_the_others_evaluations_in_them():
    spool = two_epochs()
    assert tree([], spool) == [
        ("epoch[0]", bare("step[1]", "step[2]", "evaluation[0]")),
        ("epoch[1]", bare("step[3]", "step[4]", "evaluation[1]")),
    ]
    (_, second) = forest(with_automatic([], spool, 1000))
    assert (second.start_ns, second.end_ns) == (T0 + 251 * MS // 10, T0 + 49 * MS)
    third = second.children[0]  # without the evaluation before its epoch
    assert (third.start_ns, third.end_ns) == (T0 + 251 * MS // 10, T0 + 35 * MS)
    assert [child.name for child in third.children] == ["forward"]


def test_a_scope_around_an_evaluation_lies_in_the_epoch_and_holds_it():
    rows = [row(1, 20, 25.05, "validate"), row(2, 45.05, 60, "validate")]
    assert tree(rows, two_epochs()) == [
        ("epoch[0]", [*bare("step[1]", "step[2]"), ("validate", bare("evaluation[0]"))]),
        ("epoch[1]", [*bare("step[3]", "step[4]"), ("validate", bare("evaluation[1]"))]),
    ]


def test_where_the_program_has_epochs_of_its_own_there_are_no_others():
    rows = [row(1, -1, 25.05, "epoch"), row(2, 25.06, 50, "epoch")]
    assert tree(rows, two_epochs()) == [
        ("epoch", bare("step[1]", "step[2]", "evaluation[0]")),
        ("epoch", bare("step[3]", "step[4]", "evaluation[1]")),
    ]


def test_an_epoch_in_progress_is_open():
    passes = [*TWO_EPOCHS[:2], (0, 1, 25.1, None, 36)]
    spool = two_epochs(ended=False)
    spool.spans.passes = spool_of(passes=passes).spans.passes
    first, second = forest(with_automatic([], spool, 1000))
    assert first.end_ns is not None and second.end_ns is None
    spool.end = end([])
    assert forest(with_automatic([], spool, 1000))[1].end_ns == T0 + 45 * MS


def test_an_evaluation_between_two_steps_of_an_epoch_lies_in_its_phase():
    batch = steps(2, phases={"input_wait": 0.5, "eval": 4.0, "forward": 2.0})
    spool = spool_of(batch, passes=[(0, 0, 0, 20, 11), (1, 0, 13, 16, 15)])
    ((_, (_, second)),) = tree([], spool, phases=True)
    assert second == (
        "step[2]",
        [("input_wait", []), ("forward", []), ("eval", bare("evaluation[0]"))],
    )


def test_scopes_lie_in_the_step_and_below_the_phase_in_which_they_were_opened():
    rows = [
        row(1, 1, 3, "attention", phase=3),
        row(2, 1, 2, "inner", parent=1, phase=3),
        row(3, 5, 6, "log"),
        row(4, 4.9, 8, "other thread", phase=None),
        row(5, 2, 9.5, "too long for it", phase=5),
    ]
    ((_, children), other) = tree(rows, spool_of(steps(1)), phases=True)
    assert other == ("other thread", [])
    assert dict(children)["forward"] == [("attention", bare("inner"))]
    assert dict(children)["optimizer"] == []
    assert {"log", "too long for it"} <= dict(children).keys()


def test_a_scope_that_holds_the_first_call_of_a_step_lies_in_it():
    rows = [row(1, 9.95, 12, "load"), row(2, 19.0, 22, "across")]
    found = tree(rows, spool_of(steps(3)))
    assert found == [("step[1]", []), ("step[2]", bare("load")), ("across", []), ("step[3]", [])]


def test_steps_lie_in_the_scopes_around_them():
    rows = [row(1, -1, 100, "run"), row(2, -0.5, 20, "warmup", parent=1), row(3, 30, None, "open")]
    found = tree(rows, spool_of(steps(4)))
    inner = [("warmup", bare("step[1]", "step[2]")), ("step[3]", [])]
    assert found == [("run", inner), ("open", bare("step[4]"))]


def test_a_step_that_lasts_until_the_next_one_ends_with_the_scope_that_it_fits_into():
    # Without a loader a step ends when the next one begins: 10.0 of which 9.8 ms are phases.
    rows = [row(1, -0.1, 9.9, "mine"), row(2, 9.95, 15, "short")]
    spool = spool_of(steps(2))
    assert tree(rows, spool) == [("mine", bare("step[1]")), ("step[2]", bare("short"))]
    (mine, _) = forest(with_automatic(rows, spool, 1000))
    assert mine.children[0].end_ns == mine.end_ns


def test_no_child_is_longer_than_its_parent_nor_ends_after_it_but_in_phases():
    rows = [row(n, n * 0.7, n * 0.7 + 3, phase=n % 6 or None) for n in range(1, 60)]
    waiting = forest(with_automatic(rows, two_epochs(), 1000))
    seen = 0
    while waiting:
        found = waiting.pop()
        seen += 1
        for child in found.children:
            assert child.end_ns - child.start_ns <= found.end_ns - found.start_ns
            assert child.fixed or child.end_ns <= found.end_ns
        waiting += found.children
    assert seen == 59 + 2 + 4 + 2 + 2 * PHASES + 1 + PHASES


def test_of_too_many_the_newest_are_kept():
    found = with_automatic([row(1, -9, -8, "old")], spool_of(steps(1000)), 60)
    assert len(found) == 60
    numbers = {r.index for r in found if r.name == "step"}
    assert numbers == set(range(1001 - len(numbers), 1001))
    assert len(numbers) == 60 // (1 + PHASES)


def test_without_steps_the_scopes_are_alone():
    rows = [row(1, 0, 5, "a"), row(2, 1, 2, "b", parent=1)]
    assert tree(rows, spool_of()) == [("a", bare("b"))]


def test_rows_of_a_spool_are_the_newest_with_all_their_marks():
    found = SpanRecords()
    columns = ([0, 0], [0, 0], [None, None], [0, 5])
    found.keep(Spans(T0, ["s"], [1, 2], *columns, [None, None], [None, None], [1, None], {}))
    found.keep(Spans(T0, ["s"], [2, 1], *columns[:3], [5, 0], [9, 90], [3, 4], [None, 1], {}))
    many = list(range(1500))
    found.keep(Marks(["p", "q"], [1] * 1500, [0] * 1500, [T0 + n for n in many], many, {}, [0]))
    found.keep(Marks(["q"], [0, 7], [0, 0], [T0, T0], [None, 1], {"0": str(10**30)}))
    rows, outside = rows_in(found, 10)
    assert [(r.id, r.end_ns, r.cpu_ns) for r in rows] == [(1, T0 + 90, 4), (2, T0 + 14, 3)]
    assert len(rows[0].marks) == 1 + 1024
    assert rows[0].marks[:2] == [("p", 0, "summary"), ("p", 1500 - 1024, "point")]
    assert outside == [("q", 10**30, "point")]
    assert [r.id for r in rows_in(found, 1)[0]] == [1]


def test_device_times_are_those_of_steps_and_what_holds_them():
    spool = two_epochs()
    times = [4 * MS, 5 * MS, 6 * MS]
    phases = {"forward": [1 * MS, 2 * MS, 3 * MS]}
    spool.device_batches.append(DeviceSteps(1, 3, times, phases))
    mine = row(5, -1, 26, name="mine", phase=0)
    rows = with_automatic([mine], spool, 1000)
    found = {(r.name, r.index): r.gpu_ns for r in rows if r.name not in ("forward", "mine")}
    # The third is shown without the evaluation before it, which the device worked for too.
    assert [found["step", number] for number in (1, 2, 3, 4)] == [*times[:2], None, None]
    assert (found["epoch", 0], found["epoch", 1]) == (9 * MS, None)  # of step 4 nothing is known
    assert mine.gpu_ns == 9 * MS
    assert [r.gpu_ns for r in rows if r.name == "forward"] == [1 * MS, 2 * MS, 3 * MS, None]
    assert all(r.gpu_ns is None for r in with_automatic([], two_epochs(), 1000))


def test_the_process_that_writes_a_spool_finds_its_device_times_there(tmp_path):
    times = DeviceSteps(1, 2, [4 * MS, 5 * MS], {"forward": [1 * MS, None]})
    path = run_of(tmp_path, steps(2), more=[times])
    found = [(r.name, r.gpu_ns) for r in with_steps_of(path, [], 1000)]
    assert [ns for name, ns in found if name == "step"] == [4 * MS, 5 * MS]
    assert [ns for name, ns in found if name == "forward"] == [1 * MS, None]
    assert with_steps_of(tmp_path / "gone", [], 1000) == []


def test_a_span_that_began_before_the_first_step_that_is_left_has_no_device_time():
    spool = spool_of(steps(2, first=7), passes=[(0, 0, -60, 20, 11)])
    spool.device_batches.append(DeviceSteps(7, 2, [4 * MS, 5 * MS], {}))
    inside, around = row(5, 0, 20, name="inside", phase=0), row(6, -60, 21, name="around", phase=0)
    rows = {r.name: r.gpu_ns for r in with_automatic([inside, around], spool, 1000)}
    assert (rows["around"], rows["epoch"]) == (None, None)


def with_roles(spool, *roles):
    for number, role in enumerate(roles):
        spool.loaders[number] = Loader(0, number, "Data", False, 0, "active", role)
    return spool


def test_an_evaluation_that_was_left_is_none_of_training_whatever_steps_follow():
    """As Lightning goes through its loaders: to a limit, and never to their end."""
    sanity = (1, 0, -20, None, -15)
    passes = [sanity, (0, 0, 0, None, 11), (1, 1, 12, None, 14), (0, 1, 20, None, 31)]
    spool = with_roles(spool_of(steps(4), passes=passes), "train", "eval")
    first = [*bare("step[1]"), ("step[2]", bare("evaluation[1]"))]
    assert tree([], spool) == [
        ("evaluation[0]", []), ("epoch[0]", first), ("epoch[1]", bare("step[3]", "step[4]")),
    ]  # fmt: skip


def test_an_evaluation_within_a_pass_that_goes_on_is_in_its_epoch():
    passes = [(0, 0, 0, 39, 31), (1, 0, 12, None, 14), (1, 1, 32, 36, 35)]
    spool = with_roles(spool_of(steps(4), passes=passes), "train", "eval")
    (epoch,) = tree([], spool)
    assert [str(epoch).count(name) for name in ("step", "evaluation")] == [4, 2]


def test_a_pass_whose_only_step_ends_behind_it_is_an_epoch():
    """As Accelerate goes through a loader: it asks for the next batch before it gives one."""
    both = replace(steps(2), micro_batches=3)
    passes = [(0, 0, 0, 6, 5, 3), (0, 1, 10, 16, 15, 3)]
    found = tree([], with_roles(spool_of(both, passes=passes), "train"))
    assert found == [("epoch[0]", bare("step[1]")), ("epoch[1]", bare("step[2]"))]
    # A look at all data before the training is none.
    looked = [(0, 0, 0, 6, 5, 100), (0, 1, 7, 20, 15, 6)]
    names = str(tree([], with_roles(spool_of(both, passes=looked), "train")))
    assert (names.count("epoch"), names.count("evaluation")) == (1, 1)
