"""Samples that came late go to the line that was at work when they were due."""

from tests.report.test_hotspots import row, sampled
from traceml_agent.report.late_samples import placed
from traceml_agent.schema.stacks import CodeLine

MS = 1_000_000
FILE = "/home/u/train.py"


def at(line, function="main", **more):
    return CodeLine(FILE, line, function, **more)


LINES = [
    at(10), at(12), at(14), at(5, "helper"), at(9, loop=True), at(30, "collate"),
    at(11, call="time.perf_counter()"), at(6, "helper"), at(7, "helper"),
]  # fmt: skip
TEN, TWELVE, FOURTEEN, HELPER, LOOP, COLLATE, TIMER, HELPER1, HELPER2 = range(9)


def late(phase, lines, samples, forced=0, **more):
    """A row of which `forced` samples waited for the whole switch interval and the rest yielded."""
    yielded = samples - forced
    return row(
        phase, lines, samples, late=samples, yielded=yielded, yielded_ns=yielded * 50 * MS, **more
    )


def samples_of(*rows):
    """What is left, by phase, innermost line, and whether it is only what ran before it."""
    found = placed(sampled(*rows, lines=LINES))
    assert sum(r.samples for r in found) == sum(r.samples for r in rows)
    assert sum(r.weight_ns for r in found) == sum(r.weight_ns for r in rows)
    return {(r.phase, LINES[r.lines[0]].line, r.before): r.samples for r in found}


def test_the_end_of_a_line_of_python_is_seen_at_the_next_one_and_is_its_own():
    python, after = late("forward", [TEN], 30, 30), late("forward", [TWELVE], 10)
    assert samples_of(python, after) == {("forward", 10, False): 40}


def test_a_line_that_held_the_lock_once_does_not_take_them():
    rows = late("forward", [TEN], 1, 1), late("forward", [TWELVE], 30)
    assert samples_of(*rows) == {("forward", 10, False): 1, ("forward", 12, False): 30}


def test_samples_that_were_not_late_stay_where_they_were_seen():
    python, after = late("forward", [TEN], 30, 30), row("forward", [TWELVE], 10)
    assert samples_of(python, after) == {("forward", 10, False): 30, ("forward", 12, False): 10}


def test_a_line_between_that_lets_go_of_the_lock_parts_them():
    python, between = late("residual", [TEN], 30, 30), row("residual", [TWELVE], 20)
    rows = python, between, late("residual", [FOURTEEN], 10)
    assert samples_of(*rows) == {
        ("residual", 10, False): 30, ("residual", 12, False): 20, ("residual", 14, False): 10,
    }  # fmt: skip


def test_a_line_of_another_phase_is_not_the_one_unless_the_phase_began_since():
    python = late("forward", [TEN], 30, 30)
    same = late("residual", [TWELVE], 10)
    assert samples_of(python, same)["residual", 12, False] == 10
    began = late("residual", [TWELVE], 10, before=True)
    assert samples_of(python, began) == {("forward", 10, False): 40}
    assert samples_of(python, late("unknown", [TWELVE], 4, before=True)) == {
        ("forward", 10, False): 34
    }


def test_the_head_of_a_loop_follows_its_last_line():
    python = late("residual", [FOURTEEN], 30, 30)
    head = late("residual", [LOOP], 10, before=True)
    assert samples_of(python, head) == {("residual", 14, False): 40}
    in_phase = late("forward", [FOURTEEN], 30, 30), late("forward", [TEN], 10)
    assert samples_of(*in_phase)["forward", 10, False] == 10


def test_the_call_of_a_helper_and_what_it_calls_are_before_the_next_line():
    python = late("residual", [HELPER, TEN], 30, 30)
    assert samples_of(python, late("residual", [TWELVE], 10)) == {("residual", 5, False): 40}
    # Within a phase that began since, nothing ran before it.
    began = late("residual", [TEN], 10, before=True)
    within = late("forward", [HELPER, TEN], 30, 30)
    assert samples_of(within, began)["residual", 10, True] == 10


def test_without_a_line_that_was_seen_at_work_the_only_one_between_is_named():
    head = late("residual", [LOOP], 10, before=True, prior=FOURTEEN)
    assert samples_of(head) == {("residual", 14, False): 10}
    assert samples_of(late("residual", [LOOP], 10, before=True)) == {("residual", 9, True): 10}


def test_of_two_functions_that_a_library_calls_the_one_that_holds_the_lock_is_meant():
    item, collate = (
        late("input_wait", [HELPER, LOOP], 9, 9),
        late("input_wait", [COLLATE, LOOP], 40),
    )
    assert samples_of(item, collate) == {("input_wait", 5, False): 49}


def test_what_the_function_of_an_item_calls_is_before_its_end():
    """Nothing is known of a sample at the end of an item but the function that made it."""
    called, end = late("input_wait", [TEN, HELPER, LOOP], 9, 9), late("input_wait", [HELPER], 40)
    assert samples_of(called, end) == {("input_wait", 10, False): 49}


def test_another_phase_does_not_stand_between_an_item_and_what_it_calls():
    """One dataset serves training and evaluation; what the evaluation read was seen on time."""
    called, end = late("input_wait", [HELPER, LOOP], 9, 9), late("input_wait", [HELPER2], 40)
    evaluated = row("eval", [HELPER1, LOOP], 30)
    assert samples_of(called, evaluated, end) == {
        ("input_wait", 5, False): 49,
        ("eval", 6, False): 30,
    }


def test_what_is_seen_at_a_call_of_a_clock_ran_before_it_however_it_was_seen():
    """A C function holds the lock to its end, and freeing what it made takes time as well."""
    python = late("residual", [TEN], 20, 20)
    assert samples_of(python, late("residual", [TIMER], 15, 15)) == {("residual", 10, False): 35}
    rows = row("residual", [TEN], 20), row("residual", [TIMER], 15)
    assert samples_of(*rows) == {("residual", 10, False): 20, ("residual", 11, False): 15}


def test_only_the_samples_that_came_where_the_lock_was_let_go_go_to_the_line_before():
    mixed = row("forward", [TWELVE], 30, late=10, yielded=10, yielded_ns=10 * 50 * MS, prior=TEN)
    assert samples_of(mixed) == {("forward", 12, False): 20, ("forward", 10, False): 10}


def test_what_ran_in_one_function_is_not_put_to_another_that_the_library_called_as_well():
    collate = late("input_wait", [COLLATE, TEN], 30, 30)
    item = late("input_wait", [HELPER, TEN], 20, prior=HELPER)
    assert samples_of(collate, item) == {
        ("input_wait", 30, False): 30, ("input_wait", 5, False): 20,
    }  # fmt: skip
