"""SpanLog: what of a tree goes into the spool, once, and without a call of the program."""

import pytest

from traceml_agent.capture import scopes, span_log
from traceml_agent.capture.loader_passes import Pass, PassLog
from traceml_agent.report.span_rows import rows_in
from traceml_agent.schema.spans import Marks, Scopes, Spans
from traceml_agent.spool.format import decode, encode
from traceml_agent.spool.plausible import check
from traceml_agent.spool.spans import SpanRecords


class OnDevice:
    """A scalar that a device still computes. Its value may be read once `ready`, as a test says."""

    class device:  # as torch calls it
        type = "cuda"

    def __init__(self, value, ready=False):
        self.value, self.ready, self.copies = value, ready, 0

    def detach(self):
        return self

    def clone(self):
        copy = OnDevice(self.value)
        self.copies += 1
        self.copy = copy
        return copy

    def numel(self):
        return 1

    def is_complex(self):
        return isinstance(self.value, complex)

    def item(self):
        assert self.ready, "the training thread would wait for the device"
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


@pytest.fixture
def tree():
    made = scopes.Tree(100)
    made.log = span_log.SpanLog(made)
    return made


def taken(tree, now=10**12, everything=True, is_last=False):
    """The records of a drain, as a reader has them."""
    found = [decode(encode(record)) for record in tree.log.take(now, everything, is_last)]
    for record in found:
        check(record)
    return found


def kinds(records):
    return [record.kind for record in records]


def test_an_open_scope_is_written_once_and_again_when_it_is_closed(tree):
    with tree.make(tree, "outer", 3, {}):
        with tree.make(tree, "inner", None, {}):
            pass
        first = taken(tree)
        assert kinds(first) == ["spans", "scopes"]
        assert first[0].id == [1, 2] and first[0].duration_ns[0] is None
        assert first[0].parent == [0, 1] and first[0].indexes == [3, None]
        assert taken(tree) == []
    (spans, sums) = taken(tree)
    assert spans.id == [1] and spans.duration_ns[0] > 0
    assert [(row.name, row.count) for row in sums.rows] == [("outer", 1)]
    assert taken(tree) == []


def test_each_mark_is_written_once_with_what_json_does_not_hold(tree):
    tree.mark("run", 1, "summary", {})
    with tree.make(tree, "s", None, {}):
        for value in (0.5, float("nan"), 10**30, True, None):
            tree.mark("m", value, "point", {})
        records = taken(tree)
        tree.mark("m", 7, "point", {"head": 1})
        records += taken(tree)
        tree.mark("best", float("-inf"), "summary", {})
    records += taken(tree)
    found = SpanRecords()
    for record in records:
        found.keep(record)
    (row,), outside = rows_in(found, 10)
    assert [value for _, value, _ in row.marks][2:] == [10**30, True, None, 7, float("-inf")]
    assert str(row.marks[1][1]) == "nan"
    assert outside == [("run", 1, "summary")]
    assert found.rows == 2 + 8
    assert found.mark_sums["s", "best"].special == "-inf"
    assert [m.attrs for m in records if isinstance(m, Marks)] == [{}, {"0": {"head": 1}}, {}]


class Explosive:
    def __str__(self):
        raise AssertionError("the program was called")

    __repr__ = __format__ = __len__ = __iter__ = __str__


def test_nothing_of_the_program_is_called_and_secrets_stay_out(tree):
    attrs = {
        "thing": Explosive(), "nested": [1, ("a", Explosive())], "lr": 1e-3, "big": 10**40,
        "token": "abcdefgh", "url": "https://u:secret@host/x", "text": "a b " * 300,
        "inf": float("inf"),
    }  # fmt: skip
    with tree.make(tree, "s", Explosive(), attrs):
        pass
    (spans, _) = taken(tree)
    found = spans.attrs["0"]
    assert (found["thing"], found["nested"]) == ("<Explosive>", "[1, ('a', '<Explosive>')]")
    assert (found["lr"], found["big"], found["inf"]) == (1e-3, str(10**40), "inf")
    assert found["token"] == "[redacted]"
    assert "secret" not in found["url"] and len(found["text"]) == 256
    assert spans.indexes == ["<Explosive>"]


def test_a_drain_takes_so_many_and_the_next_one_the_rest(tree, monkeypatch):
    monkeypatch.setattr(span_log, "ROWS_A_DRAIN", 30)
    monkeypatch.setattr(span_log, "ROWS_A_RECORD", 20)
    for number in range(80):
        with tree.make(tree, f"s{number % 2}", number, {}):
            pass
    sizes = [len(r.id) for r in taken(tree, everything=False) if isinstance(r, Spans)]
    assert sizes == [20, 10]
    rest = taken(tree)
    assert sum(len(r.id) for r in rest if isinstance(r, Spans)) == 50
    (sums,) = [r for r in rest if isinstance(r, Scopes)]
    assert [(row.name, row.count) for row in sums.rows] == [("s0", 40), ("s1", 40)]


def test_names_without_end_are_summed_up_together(tree, monkeypatch):
    monkeypatch.setattr(span_log, "NAMES_SUMMED", 3)
    for number in range(9):
        with tree.make(tree, f"step {number}", None, {}):
            pass
    sums = taken(tree)[-1]
    assert {row.name: row.count for row in sums.rows} == {
        "step 0": 1, "step 1": 1, "step 2": 1, span_log.OTHER_NAMES: 6,
    }  # fmt: skip


def test_a_scope_knows_the_phase_it_was_opened_in_and_other_threads_do_not(tree, monkeypatch):
    watched = scopes.Watched()
    monkeypatch.setattr(scopes._PHASES, "tracker", watched)
    for phase, owner in ((-1, watched.owner), (2, watched.owner), (2, 0)):
        watched.phase, watched.owner = phase, owner
        with tree.make(tree, "s", None, {}):
            pass
    assert taken(tree)[0].phase == [0, 3, None]


def test_short_scopes_have_no_cpu_time_and_long_ones_share_readings(tree, monkeypatch):
    readings = iter(range(0, 10**9, 1_000_000))
    monkeypatch.setattr(scopes, "cpu_clock", lambda: next(readings))
    times = iter([10**9, 10**9 + 5_000, 10**9 + 6_000, 10**9 + 500_000])
    monkeypatch.setattr(scopes, "clock", lambda: next(times))
    with tree.make(tree, "long", None, {}) as outer, tree.make(tree, "short", None, {}) as inner:
        pass
    assert inner.cpu_ns is None
    assert outer.cpu_ns == 1_000_000
    assert next(readings) == 2_000_000  # two readings for two scopes


def test_passes_are_told_apart_by_their_iterator():
    log, known = PassLog(4), {}
    log.started(3)
    for epoch, asked in ((0, 10), (0, 20), (1, 50)):
        log.asked(known, epoch, asked, asked + 1)
        if asked == 20:
            log.ended(known, 0, 30)
    (first,) = log.records(everything=False)
    assert (first.loader, first.number, first.batches) == ([4, 4], [0, 1], [2, 1])
    assert (first.start_ns, first.end_ns, first.last_ns) == ([7, 50], [30, None], [21, 51])
    log.asked(known, 1, 60, 61)
    assert log.records(everything=False) == []  # nothing new but one more batch
    log.asked({0: Pass(9, 0)}, 5, 70, 71)  # another iterator
    log.ended(known, 1, 80)
    (second,) = log.records(everything=False)
    assert (second.number, second.end_ns, second.batches) == ([1, 2], [80, None], [2, 1])


def test_a_pass_that_goes_on_is_written_when_it_is_much_longer_or_somebody_asks():
    log, known = PassLog(4), {}

    def came(at_s):
        log.asked(known, 0, int(at_s * 1e9), int(at_s * 1e9))
        return [record.last_ns for record in log.records(everything=False)]

    assert came(0) == [[0]]
    assert came(5) == []
    assert came(5.1) == [[5_100_000_000]]
    assert came(10) == came(10.1) == []
    assert came(10.2) == [[10_200_000_000]]
    assert came(1_000) == [[10**12]]
    assert came(1_100) == []
    (now,) = log.records(everything=True)
    assert (now.last_ns, now.batches, now.end_ns) == ([1_100 * 10**9], [8], [None])
    assert log.records(everything=True) == []
    assert not log.began
    log.asked({}, 1, 1, 1)
    assert log.began


def test_a_scalar_on_a_device_is_read_when_somebody_asks_and_then_counts_in_the_summary(tree):
    losses = [OnDevice(0.5), OnDevice(0.25)]
    with tree.make(tree, "s", None, {}):
        for loss in losses:
            tree.mark("loss", loss, "summary", {})
    (_, sums) = taken(tree)  # nothing of the device is read
    assert [(row.count, row.last) for row in sums.marks] == [(2, None)]
    assert [loss.copies for loss in losses] == [1, 1]
    for loss in losses:
        loss.value, loss.copy.ready = 9.0, True  # the program changes its tensor in place
    tree.fetch(10**9)
    (marks, sums) = taken(tree)
    assert marks.values == [0.5, 0.25]
    assert [(row.count, row.last) for row in sums.marks] == [(2, 0.25)]
    assert taken(tree) == []


def test_a_device_that_fails_gives_no_value_and_no_error(tree):
    lost = OnDevice(RuntimeError("CUDA error: an illegal memory access"))
    tree.mark("a", lost, "point", {})
    lost.copy.ready = True
    tree.mark("b", 1, "point", {})
    tree.fetch(10**9)
    (marks,) = taken(tree)
    assert dict(zip([marks.names[n] for n in marks.name], marks.values, strict=True)) == {
        "a": None, "b": 1,
    }  # fmt: skip
    with pytest.raises(TypeError, match="one number or text"):
        tree.mark("c", OnDevice(1j), "point", {})
