"""Which line ran just before one that was seen, from the bytecode alone."""

import dis
import sys

import pytest

from traceml_agent.capture.line_before import END, Lines

LOOP = """
def train(loader, model, optimizer, log):
    step = 0
    for x, y in loader:  # head
        x = x * 2
        loss = model(x)  # forward
        optimizer.zero_grad()  # zero
        loss.backward()  # backward
        optimizer.step()  # update
        step += 1
        total = {after}
        best = step
    log.close()
"""


def lines_of(text):
    names = {}
    exec(compile(text, "t.py", "exec"), names)
    code = names["train"].__code__
    comments = {
        line.rpartition("# ")[2]: number
        for number, line in enumerate(text.splitlines(), 1)
        if "# " in line
    }
    return Lines(code), code, comments


def instruction(code, line, name="CALL"):
    """Of the last call in a line, or of the begin of a loop."""
    found, now = 0, 0
    starts = {start: number for start, _, number in code.co_lines()}
    for at in dis.get_instructions(code):
        now = starts.get(at.offset, now)
        if now == line and name in at.opname:
            found = at.offset
    assert found
    return found


@pytest.mark.parametrize(
    ("after", "is_named"),
    [
        ("sum(i * i for i in range(step))", True),
        ("[i for i in range(step)]", True),
        ("metric(step)", True),
        ("step + 1", False),
    ],
)
def test_the_only_line_behind_the_update_that_can_take_time_is_named(after, is_named):
    text = LOOP.format(after=after)
    lines, code, at = lines_of(text)
    seen = {at["head"], at["forward"], at["zero"], at["backward"], at["update"]}
    expected = next(n for n, t in enumerate(text.splitlines(), 1) if "total =" in t)
    found = lines.before(instruction(code, at["head"], "FOR_ITER"), seen)
    assert found == (expected if is_named else None)


def test_a_loop_is_named_before_calls_and_two_loops_are_not_told_apart():
    text = LOOP.format(after="metric(step); print(step)")
    text = text.replace("        best = step\n", "        for i in x:\n            best += f(i)\n")
    lines, code, at = lines_of(text)
    head = instruction(code, at["head"], "FOR_ITER")
    inner = next(n for n, t in enumerate(text.splitlines(), 1) if "for i in x" in t)
    assert lines.before(head, {at["update"]}) == inner
    two = text.replace("metric(step); print(step)", "[i for i in range(step)]")
    lines, code, at = lines_of(two)
    assert lines.before(instruction(code, at["head"], "FOR_ITER"), {at["update"]}) is None


def test_between_two_lines_that_were_seen_only_what_lies_there_counts():
    text = LOOP.format(after="metric(step)").replace("step += 1", "metric(1)")
    text = text.replace("x = x * 2", "x = clean(x)")
    lines, code, at = lines_of(text)
    expected = next(n for n, t in enumerate(text.splitlines(), 1) if "clean(x)" in t)
    forward = instruction(code, at["forward"])
    assert lines.before(forward, {at["head"]}) == expected
    assert lines.before(instruction(code, at["backward"]), {at["zero"]}) is None
    # Two lines behind the update can have taken it.
    assert lines.before(instruction(code, at["head"], "FOR_ITER"), {at["update"]}) is None


def test_arguments_that_are_made_in_a_loop_belong_to_the_line_itself():
    text = LOOP.format(after="step").replace("model(x)", "model([i for i in x])")
    text = text.replace("        x = x * 2\n", "")
    lines, code, at = lines_of(text)
    assert lines.before(instruction(code, at["forward"]), {at["head"]}) == at["forward"]


@pytest.mark.parametrize("test", ["step < 10", "True"])
def test_a_while_loop_has_a_round_before_too(test):
    text = (
        "def train(model, optimizer):\n"
        "    step = 0\n"
        f"    while {test}:\n"
        "        loss = model(step)  # forward\n"
        "        optimizer.step()  # update\n"
        "        step += 1\n"
        "        total = [i for i in range(step)]\n"
    )
    lines, code, at = lines_of(text)
    seen = {at["forward"], at["update"]}
    assert lines.before(instruction(code, at["forward"]), seen) == 7
    assert lines.before(instruction(code, at["update"]), {at["forward"]}) is None


TIMED = """
def train(batches, big, time, model, rows):
    for x in batches:  # head
        model(x)  # forward
        began = time.perf_counter()  # begun
        values = big.tolist()  # list
        took = time.perf_counter() - began  # ended
        rows.append((took, time.time()))  # kept
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="calls are told apart from Python 3.11 on")
def test_calls_that_take_no_time_did_not_take_it():
    lines, code, at = lines_of(TIMED)
    head = instruction(code, at["head"], "FOR_ITER")
    assert lines.before(head, {at["forward"]}) == at["list"]
    assert lines.is_free(instruction(code, at["ended"]))
    assert lines.is_free(instruction(code, at["kept"]))
    assert not lines.is_free(instruction(code, at["list"]))
    heavy = TIMED.replace("(took, time.time())", "(took, model.loss())")
    lines, code, at = lines_of(heavy)
    assert lines.before(instruction(code, at["head"], "FOR_ITER"), {at["forward"]}) is None


ITEM = """
def train(self, index):
    name = self.names[index]  # name
    total = sum(i * i for i in range(self.size))  # sum
    return self.x[index], total, name  # result
"""


def test_a_function_that_began_meanwhile_is_looked_through_from_its_first_line():
    lines, code, at = lines_of(ITEM)
    result = instruction(code, at["result"], "BINARY_SUBSCR")
    assert lines.before(result, set()) is None
    assert lines.before(result, set(), whole=True) == at["sum"]
    assert lines.before(END, set(), whole=True) == at["sum"]
    twice = ITEM.replace("self.names[index]", "[i for i in self.names]")
    lines, code, _ = lines_of(twice)
    assert lines.before(END, set(), whole=True) is None


ONE_LINE = """
def train(self, index):
    \"\"\"An item.\"\"\"
    return decode(self.x[index]), self.y[index]  # result
"""


def test_of_a_function_of_one_line_that_is_the_line():
    lines, _, at = lines_of(ONE_LINE)
    assert lines.before(END, set(), whole=True) == at["result"]
    assert lines.before(END, set()) is None
    lines, _, _ = lines_of(ONE_LINE.replace("    return", "    x = self.x[index]\n    return"))
    assert lines.before(END, set(), whole=True) is None  # what a subscript does is not known
    lines, _, _ = lines_of(ONE_LINE.replace("decode(self.x[index])", "self.x"))
    assert lines.before(END, set(), whole=True) is None


WITHIN = """
def train(self, index):
    with self.lock(index):
        data = parse(index)
        return decode(data)
"""
EACH = """
def train(self, items):
    for item in make(items):  # head
        self.found += [item]  # body
"""


def test_what_stands_behind_the_line_is_not_taken_for_it():
    """A block that is left ends in its first line, and the head of a loop is the line again."""
    lines, _, _ = lines_of(WITHIN)
    assert lines.before(END, set(), whole=True) is None
    lines, code, at = lines_of(EACH)
    head = instruction(code, at["head"], "FOR_ITER")
    assert lines.before(head, {at["body"]}, whole=True) is None


def test_where_the_lock_was_only_let_go_what_repeats_something_took_it():
    for after, is_named in (("sum(i * i for i in range(step))", True), ("metric(step)", False)):
        text = LOOP.format(after=after).replace("best = step", "best = step.max()  # best")
        lines, code, at = lines_of(text)
        expected = next(n for n, t in enumerate(text.splitlines(), 1) if "total =" in t)
        best = instruction(code, at["best"])
        found = lines.before(best, {at["update"]}, sure=True)
        assert found == (expected if is_named else None)


def test_an_offset_behind_the_begin_of_an_instruction_is_a_part_of_it():
    lines, code, at = lines_of(ITEM.replace("return self.x[index]", "return self.x(index)"))
    result = instruction(code, at["result"])
    for offset in (result, result + 2):
        assert lines.before(offset, set(), whole=True) == at["sum"]
