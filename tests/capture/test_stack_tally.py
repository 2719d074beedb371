"""Which line a sample names, how libraries are folded into it, and that the table is bounded."""

import json
import os
import sys
import threading
import time
from collections.abc import Mapping

import pytest

from traceml_agent.capture import stack_tally
from traceml_agent.capture.source_text import SourceText, without_strings
from traceml_agent.capture.stack_tally import StackTally, table_of
from traceml_agent.capture.user_code import is_library

EXACT = sys.version_info >= (3, 11)


@pytest.fixture
def source():
    return SourceText(time.time() + 1, os.getcwd())


def taken(tally, source):
    """The rows, with those of their lines that are of the program and not of this test."""
    table = tally.take(source)
    found = []
    for row in table.rows:
        lines = [table.lines[number] for number in row.lines]
        found.append((row, [line for line in lines if line.file != __file__]))
    return found


def run_here(tally, text, name="program.py", **names):
    """Runs a program whose function `sample` adds the stack that called it."""

    def sample(value=None):
        tally.add(sys._getframe(1), "forward", 10)
        return value

    code = compile(text, name, "exec")
    # In a thread of its own: below it lies none of the test runner's frames.
    thread = threading.Thread(target=lambda: exec(code, {"sample": sample, **names}))
    thread.start()
    thread.join()


@pytest.mark.skipif(not EXACT, reason="positions of expressions came with Python 3.11")
def test_a_line_with_three_calls_names_the_one_at_work(tmp_path, source):
    path = tmp_path / "loop.py"
    path.write_text("x = [len('ä'), sample(1), sum((1, 2))]\n")
    tally = StackTally()
    run_here(tally, path.read_text(), str(path))
    (_, (line,)) = taken(tally, source)[0]
    assert (line.line, line.call, line.text) == (
        1,
        "sample(1)",
        'x = [len("…"), sample(1), sum((1, 2))]'.replace('"…"', "'…'"),
    )


def test_frames_of_libraries_are_folded_into_the_line_that_called_them(tmp_path, source):
    tally = StackTally()
    run_here(
        tally,
        "def key(item):\n    return sample(1)\n\ndumps(X(), default=key)\n",
        dumps=json.dumps,
        X=object,
    )
    row, lines = taken(tally, source)[0]
    assert [(line.line, line.function) for line in lines] == [(2, "key"), (4, "<module>")]
    assert row.callee is None


def test_a_sample_within_a_library_names_what_was_called_and_where_it_was(source):
    tally = StackTally()

    class Probe(Mapping):
        def __iter__(self):
            tally.add(sys._getframe(1), "residual", 10)
            return iter(())

        def __len__(self):
            return 0

        def __getitem__(self, key):
            raise KeyError

    assert Probe() == {}
    table = tally.take(source)
    (row,) = table.rows
    names = [name.replace(".py", "") for name in (row.callee, row.leaf)]
    assert names == ["_collections_abc:__eq__", "_collections_abc:__iter__"]
    assert table.lines[row.lines[0]].text == "assert Probe() == {}"


def test_a_function_called_from_two_places_has_two_stacks(source):
    tally = StackTally()
    run_here(tally, "def slow():\n    sample()\n\nfor _ in range(3): slow()\nslow()\n")
    found = sorted(
        (lines[0].line, lines[1].line, row.samples) for row, lines in taken(tally, source)
    )
    assert found == [(2, 4, 3), (2, 5, 1)]


def test_a_for_that_asks_for_its_next_item_is_told_from_its_body(source):
    tally = StackTally()
    run_here(tally, "def items():\n    sample()\n    yield 1\n\nfor x in items():\n    sample()\n")
    assert [lines[-1].loop for _, lines in taken(tally, source)] == [True, False]


def test_the_table_is_bounded_and_what_is_left_out_is_counted(monkeypatch, source):
    monkeypatch.setattr(stack_tally, "MOST_STACKS", 10)
    tally = StackTally()
    run_here(tally, "\n".join(["sample()"] * 30))
    table = tally.take(source, most_rows=4)
    assert (len(table.rows), table.samples, table.weight_ns) == (4, 30, 300)
    assert (table.other, table.other_samples) == ({"forward": 260}, {"forward": 26})


def test_a_program_that_compiles_itself_anew_in_each_step_stays_one_line(source):
    tally = StackTally()
    for _ in range(50):
        run_here(tally, "sample()\n", "<string>")
    assert [code.co_filename for code in tally._codes].count("<string>") == 1
    assert [row.samples for row, _ in taken(tally, source)] == [50]


def test_a_table_goes_through_bytes_of_limited_size(source):
    tally = StackTally()
    run_here(tally, "\n".join(["sample()"] * 100))
    assert table_of(tally.to_json(source, 10**6)) == tally.take(source)
    small = tally.to_json(source, 2000)
    assert len(small) <= 2000
    assert table_of(small).samples == 100


def test_text_is_not_read_from_a_file_that_is_newer_than_the_process(tmp_path):
    path = tmp_path / "edited.py"
    path.write_text("sample()\n")
    assert SourceText(time.time() - 60, "/").line(str(path), 1) is None
    assert SourceText(time.time() + 60, "/").line(str(path), 1) == "sample()"


def test_text_is_not_read_from_what_is_no_plain_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    source = SourceText(time.time() + 60, "/")
    assert source.line(str(tmp_path / "fifo"), 1) is None
    assert source.line(str(tmp_path), 1) is None
    assert source.line("<string>", 1) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("login('hunter2', x)  # the password", "login('…', x)"),
        ('out["loss"] = {"a": 1, "b c": f"{x!r} hunter2"}', 'out["loss"] = {"a": 1, "…": f"…"}'),
        ("send(b'''open", "send(b'''…'''"),
        ("x = loss.item() / 3", "x = loss.item() / 3"),
        ('x = \'\' if y else "a\\"b"', "x = '' if y else \"…\""),
    ],
)
def test_strings_and_comments_are_left_out(text, shown):
    assert without_strings(text) == shown


def test_code_of_the_user_is_told_from_libraries():
    assert not any(map(is_library, ("/home/u/train.py", "train.py", "<string>", "app.pyz/m.py")))
    assert all(map(is_library, (json.__file__, "<frozen importlib>", "<eval_with_key>.3")))
    assert is_library("/venv/lib/python3.12/site-packages/torch/nn/modules/module.py")
