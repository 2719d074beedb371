"""Scopes in a spool: thinned and counted, in digests, and never in the way of a summary."""

from pathlib import Path

from tests.report import synthetic_run as made
from tests.report.synthetic_run import MS
from tests.spool.test_digest import blank, follow, summary_of
from traceml_agent.schema.spans import Marks, MarkSums, Scopes, ScopeSums, Spans
from traceml_agent.spool import spans as span_records
from traceml_agent.spool.digested import read_spool
from traceml_agent.spool.writer import SpoolWriter

T0 = made.FIRST_STEP_NS


def spans(first, count=5):
    ids = list(range(first, first + count))
    nothing = [None] * count
    return Spans(T0, ["load"], ids, [0] * count, [0] * count, ids, ids, [MS] * count, nothing,
                 [0] * count)  # fmt: skip


def marks(first, count=5):
    ids = list(range(first, first + count))
    return Marks(["loss"], ids, [0] * count, [T0 + n for n in ids], [0.5] * count)


def sums(count):
    rows = [ScopeSums("load", count, count * MS, MS), ScopeSums(f"once-{count}", 1, MS, MS)]
    last = [MarkSums("best", count, "load", 0.5)]
    return Scopes(T0 + count * MS, rows, last, {"scopes_too_deep": 2})


def run_with_scopes(directory: Path, parts=6) -> Path:
    records = [
        r for n in range(parts) for r in (spans(5 * n + 1), marks(5 * n + 1), sums(5 * n + 5))
    ]
    made.run_of(directory, made.steps(40), more=records)
    (path,) = directory.glob("*.jsonl")
    return path


def test_the_summary_is_the_same_by_a_digest_and_says_what_was_dropped(tmp_path):
    path = run_with_scopes(tmp_path / "run")
    by_spool = summary_of(path.parent)
    (first, *others) = by_spool["scopes"]
    assert (first["name"], first["count"], first["total_s"]) == ("load", 30, 0.03)
    assert len(others) == 6
    assert [(m["scope"], m["name"], m["count"]) for m in by_spool["marks"]] == [
        ("load", "best", 30)
    ]
    assert by_spool["traceml_agent"]["dropped"] == {"scopes_too_deep": 2}
    follow(path, pieces=4)
    blank(path)
    assert summary_of(path.parent) == by_spool


def test_single_scopes_are_read_where_they_are_wanted_alone(tmp_path):
    path = run_with_scopes(tmp_path / "run")
    assert read_spool(path).spans.spans == []
    assert read_spool(path, whole=True, spans=True).spans.rows == 60
    follow(path)
    assert read_spool(path).spans.spans == []
    assert read_spool(path, spans=True).spans.rows == 60


def test_a_digest_keeps_the_newest_scopes(tmp_path, monkeypatch):
    monkeypatch.setattr(span_records, "DIGEST_ROWS", 10)
    path = run_with_scopes(tmp_path / "run")
    expected = summary_of(path.parent)
    follow(path, pieces=1)
    blank(path)
    found = read_spool(path, spans=True).spans
    assert [n for record in found.spans for n in record.id] == list(range(21, 31))
    assert [n for record in found.marks for n in record.span] == list(range(21, 31))
    assert summary_of(path.parent) == expected


def test_thinning_drops_old_scopes_counts_them_and_keeps_their_sums(tmp_path):
    writer = SpoolWriter(tmp_path / "a.jsonl", 20_000)
    writer.write([made.HEADER])
    for n in range(200):
        writer.write([spans(5 * n + 1), marks(5 * n + 1), sums(5 * n + 5)])
    writer.close()
    found = read_spool(writer.path, whole=True, spans=True)
    kept = sum(len(record.id) for record in found.spans.spans)
    assert writer.lost["thinned_spans"] == 1000 - kept > 0
    assert writer.lost["thinned_marks"] > 0
    assert found.spans.sums["load"].count == 1000
    assert len(found.spans.sums) == 201
    assert found.spans.spans[-1].id[-1] == 1000
    assert found.problems == []


def test_what_the_disk_does_not_take_is_counted_by_scopes(tmp_path):
    writer = SpoolWriter(tmp_path / "a.jsonl", 20_000)
    writer.path.unlink()
    assert not writer.write([spans(1), spans(6), marks(1), sums(1)])
    assert writer.lost == {"spans": 10, "marks": 5, "scopes": 1}
