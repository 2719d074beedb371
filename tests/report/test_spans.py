"""The tree of spans: durations in words, filters, and spans that outlive their parent."""

import pytest

from traceml_agent.report.spans import Row, dict_of, duration, forest, text_of


def row(number, parent, start, end, name="s"):
    return Row(number, parent, name, None, start, end, None, {}, [])


def shape(roots):
    return [(found.id, shape(found.children)) for found in roots]


@pytest.mark.parametrize(
    ("nanoseconds", "words"),
    [(0, "0us"), (142_300, "142us"), (999_400, "999us"), (999_600, "1.0ms"), (7_700_000, "7.7ms"),
     (999_940_000, "999.9ms"), (999_960_000, "1.00s"), (1_234_000_000, "1.23s")],
)  # fmt: skip
def test_durations(nanoseconds, words):
    assert duration(nanoseconds) == words


def test_what_outlives_a_span_is_no_part_of_it():
    rows = [row(1, None, 0, 100), row(2, 1, 10, 50), row(3, 2, 20, 70), row(4, 2, 30, 120)]
    assert shape(forest(rows)) == [(1, [(2, []), (3, [])]), (4, [])]


def test_an_open_span_stays_below_an_open_one():
    rows = [row(1, None, 0, None), row(2, 1, 10, None), row(3, 1, 5, 6)]
    assert shape(forest(rows)) == [(1, [(3, []), (2, [])])]
    assert text_of(forest(rows)).splitlines()[0] == "s - open"


def test_a_name_keeps_what_is_below_it_and_last_counts_ends():
    rows = [
        row(1, None, 0, 100, "a"), row(2, 1, 10, 90, "b"), row(3, 2, 20, 30), row(4, 1, 95, 99),
        row(5, None, 200, None, "b"),
    ]  # fmt: skip
    assert shape(forest(rows, name="b")) == [(2, [(3, [])]), (5, [])]
    assert shape(forest(rows, last=2)) == [(1, [(4, [])])]
    assert shape(forest(rows, name="b", last=1)) == [(2, [])]
    assert dict_of(forest(rows))["span_count"] == 5


def test_a_parent_that_is_gone_makes_a_root():
    assert shape(forest([row(7, 3, 0, 1)])) == [(7, [])]


def test_names_cannot_move_the_cursor():
    assert text_of(forest([row(1, None, 0, 1000, "a\x1b[2J\nb")])) == "a [2J b - 1us"


def test_ten_thousand_levels_are_no_recursion_in_text():
    rows = [row(n, n - 1 or None, n, 100_000 - n) for n in range(1, 5_000)]
    assert len(text_of(forest(rows)).splitlines()) == 4_999
