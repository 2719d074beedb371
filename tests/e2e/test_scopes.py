"""Scopes and marks of a program: the tree that it can look at while it runs."""

import functools
import json
import math
import operator
import re

import pytest

from tests.e2e.harness import run, write

HEAD = """
import asyncio, json, sys, threading, time
import traceml_agent as traceml
from traceml_agent import batches, epochs, mark, scope, trace

def tell(**facts):
    print(json.dumps(facts))

def names(nodes):
    return [[n["name"], n["index"], names(n["children"])] for n in nodes]
"""


def told(tmp_path, body, **extra):
    result = run(tmp_path, write(tmp_path, HEAD + body), **extra)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1]), result


LOOPS = """
mark("outside", 7)
for epoch in epochs(range(2)):
    with scope("load", shard=3):
        mark("rows", 10)
        time.sleep(0.002)
    for batch in batches("ab"):
        mark("loss", 0.5)
        mark("loss", 0.25)
found = trace("dict")
tell(names=names(found["roots"]), count=found["span_count"], first=found["roots"][0],
     marks=found["marks"])
"""


def test_loops_and_scopes_nest(tmp_path):
    found, _ = told(tmp_path, LOOPS)
    inner = [["load", None, []], ["batch", 0, []], ["batch", 1, []]]
    assert found["names"] == [["epoch", 0, inner], ["epoch", 1, inner]]
    assert found["count"] == 8
    assert found["marks"] == [{"name": "outside", "value": 7, "kind": "point"}]
    first = found["first"]
    assert set(first) == {
        "id", "parent_id", "name", "index", "start_ns", "end_ns", "wall_us", "cpu_ns", "gpu_ns",
        "memory_peak_bytes", "attrs", "marks", "children",
    }  # fmt: skip
    load, batch, _ = first["children"]
    assert load["parent_id"] == first["id"]
    assert load["attrs"] == {"shard": 3}
    assert batch["marks"] == [
        {"name": "loss", "value": 0.5, "kind": "point"},
        {"name": "loss", "value": 0.25, "kind": "point"},
    ]
    assert first["wall_us"] == pytest.approx((first["end_ns"] - first["start_ns"]) / 1e3)
    assert sum(child["wall_us"] for child in first["children"]) <= first["wall_us"]
    assert first["gpu_ns"] is None
    assert 0 <= load["cpu_ns"] <= first["cpu_ns"] + 10_000
    assert first["cpu_ns"] <= first["end_ns"] - first["start_ns"] + 10_000


def test_without_the_agent_nothing_is_kept_and_nothing_changes(tmp_path):
    found, _ = told(tmp_path, LOOPS.replace('found["roots"][0]', "None"), enabled=False)
    assert (found["names"], found["count"]) == ([], 0)
    body = (
        "trace()\ntell(same=epochs(items := [1]) is items, again=[1 for _ in 'ab' if scope('x')])"
    )
    found, result = told(tmp_path, body, enabled=False)
    assert found == {"same": True, "again": [1, 1]}
    assert result.stdout.startswith("(no spans)\n")


TREE = """
with scope("run"):
    with scope("step", 7):
        mark("loss", 0.123456)
        mark("name", "b")
    with scope("open"):
        trace()
trace(name="step")
trace(name="nothing")
tell(done=True)
"""


def test_the_tree_is_text_of_one_line_a_scope(tmp_path):
    _, result = told(tmp_path, TREE)
    lines = [re.sub(r"\d+us|[\d.]+ms", "T", line) for line in result.stdout.splitlines()]
    step = "step[7] - T {loss=0.1235, name=b}"
    assert lines[:-1] == ["run - open", f"  {step}", "  open - open", step, "(no spans)"]


STRANGE = """
def broken():
    for epoch in epochs(range(3)):
        with scope("inner"):
            raise ValueError

try:
    broken()
except ValueError:
    pass
left = iter(epochs(range(3)))
with scope("outer"):
    next(left)  # nobody ends this loop
with scope("after"):
    pass

def deep(level):
    if level:
        with scope("d", level):
            deep(level - 1)
    else:
        mark("bottom", 1)

deep(70)
found = trace("dict")
deepest, node = 1, found["roots"][-1]
while node["children"]:
    deepest, node = deepest + 1, node["children"][0]
tell(names=names(found["roots"][:-1]), deepest=deepest, marks=len(node["marks"]),
     open=[s for s in json.loads(trace("json"))["roots"] if s["end_ns"] is None])
"""


def test_scopes_close_with_whatever_is_around_them(tmp_path):
    found, result = told(tmp_path, STRANGE)
    assert found["names"] == [
        ["epoch", 0, [["inner", None, []]]],
        ["outer", None, [["epoch", 0, []]]],
        ["after", None, []],
    ]
    assert (found["deepest"], found["marks"], found["open"]) == (64, 1, [])
    assert [line for line in result.own_lines if "scopes beyond 64" in line]


APART = """
def work(name):
    with scope(name):
        with scope("inside"):
            time.sleep(0.01)

async def task(name):
    with scope(name):
        await asyncio.sleep(0.01)
        with scope("inside"):
            await asyncio.sleep(0.01)

async def both():
    with scope("all"):
        late = asyncio.create_task(task("late"))
        await asyncio.gather(task("a"), task("b"))
        late.cancel()
        slow = asyncio.create_task(asyncio.sleep(0.05))
    return asyncio.create_task(task("outlives"))

async def main():
    await (await both())

threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
with scope("main"):
    for thread in threads: thread.start()
    for thread in threads: thread.join()
of_threads = sorted(names(trace("dict")["roots"]))
asyncio.run(main())
of_tasks = names(trace("dict")["roots"])[5:]
tell(threads=of_threads, tasks=of_tasks)
"""


def test_threads_and_tasks_have_their_own_scopes(tmp_path):
    found, _ = told(tmp_path, APART)
    inside = [["inside", None, []]]
    of_threads = [[f"t{n}", None, inside] for n in range(4)]
    assert found["threads"] == [["main", None, []], *of_threads]
    (everything, outlives) = found["tasks"]
    assert everything[0] == "all"
    assert sorted(name for name, _, _ in everything[2]) == ["a", "b", "late"]
    assert [child for child in everything[2] if child[0] == "a"] == [["a", None, inside]]
    assert outlives == ["outlives", None, inside]


VALUES = """
import numpy, torch
values = [True, 3, 2.5, "text", None, numpy.float32(1.5), numpy.array(7), torch.tensor(4.0),
          torch.tensor([[5]]), float("nan"), float("-inf"), "ö" * 200, 10**30]
with scope("s"):
    for number, value in enumerate(values):
        mark(str(number), value)
    wrong = []
    for value in (torch.ones(2), [1], object(), 1j, {}):
        try:
            mark("wrong", value)
        except TypeError as error:
            wrong.append(str(error))
    try:
        mark("kind", 1, kind="other")
    except ValueError as error:
        wrong.append(str(error))
found = json.loads(trace("json"))["roots"][0]["marks"]
tell(values=[m["value"] for m in found], odd=[m.get("value_nonfinite") for m in found], wrong=wrong)
"""


def test_marks_take_numbers_and_text_of_any_kind(tmp_path):
    found, _ = told(tmp_path, VALUES)
    values = found["values"]
    assert values[:9] == [True, 3, 2.5, "text", None, 1.5, 7, 4.0, 5]
    assert values[9:11] == [None, None]
    assert found["odd"][9:11] == ["nan", "-inf"]
    assert values[11] == "ö" * 128
    assert values[12] == 10**30
    assert len(found["wrong"]) == 6
    assert "shape (2,)" in found["wrong"][0]


BOUNDS = """
for n in range(30):
    with scope("s", n):
        for value in range(2000):
            mark("p", value)
        for value in range(3):
            mark("sum", value, kind="summary")
found = trace("dict")
last = trace("dict", last=3)
tell(kept=[n["index"] for n in found["roots"]], marks=len(found["roots"][0]["marks"]),
     first=found["roots"][0]["marks"][0]["value"],
     last=[n["index"] for n in last["roots"]], none=trace("dict", last=0)["span_count"],
     lost=traceml.api._HERE.tree.dropped)  # torch is not imported: health() knows nothing
"""


def test_the_newest_spans_and_marks_are_kept(tmp_path):
    found, _ = told(tmp_path, BOUNDS, TRACEML_TRACE_MAX_SPANS="10")
    assert found["kept"] == list(range(20, 30))
    assert (found["marks"], found["first"]) == (1024 + 3, 2000 - 1024)
    assert (found["last"], found["none"]) == ([27, 28, 29], 0)
    assert found["lost"] == {"spans_evicted": 20, "marks_evicted": 30 * (2000 - 1024)}


FORKED = """
import os
with scope("parent"):
    pid = os.fork()
    if not pid:
        with scope("child"):
            pass
        os._exit(names(trace("dict")["roots"]) != [["child", None, []]])
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
tell(code=code, names=names(trace("dict")["roots"]))
"""


def test_a_forked_child_has_a_tree_of_its_own(tmp_path):
    found, _ = told(tmp_path, FORKED)
    assert found == {"code": 0, "names": [["parent", None, []]]}


WRONG = """
import pytest
with pytest.raises(ValueError, match="tree, dict, json, df"):
    trace("xml")
with pytest.raises(ValueError, match="last"):
    trace("dict", last=-1)
tell(done=True)
"""


def test_wrong_calls_are_errors_at_once(tmp_path):
    told(tmp_path, WRONG)


def test_a_data_frame_has_a_row_a_scope(tmp_path):
    pytest.importorskip("pandas")
    body = (
        "with scope('a'):\n    with scope('b', 2):\n        mark('x', 1)\n"
        "frame = trace('df')\n"
        "tell(columns=list(frame.columns), names=list(frame['name']),"
        " depth=list(map(int, frame['depth'])), marks=list(map(int, frame['mark_count'])))\n"
    )
    found, _ = told(tmp_path, body)
    assert found["columns"] == [
        "id", "parent_id", "name", "index", "wall_us", "cpu_ns", "gpu_ns", "memory_peak_bytes",
        "mark_count", "depth",
    ]  # fmt: skip
    assert (found["names"], found["depth"], found["marks"]) == (["a", "b"], [0, 1], [0, 1])


FILTERED = """
for number in range(3):
    with scope("a", number):
        with scope("b"):
            with scope("c"):
                pass
with scope("c"):
    pass
def rows(**how):
    frame = trace("df", **how)
    place = {span: at for at, span in enumerate(frame["id"])}
    return [
        [row["name"], None if row["index"] != row["index"] or row["index"] is None
         else int(row["index"]), place.get(row["parent_id"]), int(row["depth"])]
        for _, row in frame.iterrows()
    ]
tell(all=rows(), named=rows(name="b"), last=rows(last=2), both=rows(name="c", last=1),
     nothing=rows(name="d"), columns=list(trace("df", name="d").columns))
"""


def test_a_data_frame_names_the_parents_and_is_filtered_as_the_tree_is(tmp_path):
    """Of each row: name, index, the row of its parent, depth."""
    pytest.importorskip("pandas")
    found, _ = told(tmp_path, FILTERED)
    whole = []
    for number in range(3):
        top = 3 * number
        whole += [["a", number, None, 0], ["b", None, top, 1], ["c", None, top + 1, 2]]
    assert found["all"] == [*whole, ["c", None, None, 0]]
    pairs = [[["b", None, None, 0], ["c", None, 2 * number, 1]] for number in range(3)]
    assert found["named"] == functools.reduce(operator.iadd, pairs, [])
    assert found["last"] == [["a", 2, None, 0], ["c", None, None, 0]]
    assert found["both"] == [["c", None, None, 0]]
    assert found["nothing"] == []
    assert len(found["columns"]) == 10


def test_plain_ipython_prints_the_tree_as_python_does(tmp_path):
    """Only in a kernel of Jupyter is it an object that shows itself."""
    pytest.importorskip("IPython")
    script = tmp_path / "cell.ipy"
    script.write_text(HEAD + "with scope('a', 3):\n    pass\nshown = trace()\ntell(shown=shown)\n")
    result = run(tmp_path, "-m", "IPython", "--no-banner", "--colors=NoColor", str(script))
    assert result.returncode == 0, result.stderr
    tree, told_last = result.stdout.splitlines()[-2:]
    assert re.fullmatch(r"a\[3\] - [\d.]+(us|ms)", tree)
    assert json.loads(told_last) == {"shown": None}


WRONG_OUTPUT = """
import torch
before = torch.nn.Module.__call__, torch.utils.data.DataLoader._get_iterator
words = []
for output in (["spool", "disk"], "disk", ["none", "spool"], []):
    try:
        traceml.init(output=output)
        words.append("")
    except ValueError as error:
        words.append(str(error))
after = torch.nn.Module.__call__, torch.utils.data.DataLoader._get_iterator
tell(words=words, same=before == after, enabled=traceml.health()["enabled"])
"""


def test_an_output_that_init_does_not_know_raises_before_anything_is_patched(tmp_path):
    found, result = told(tmp_path, WRONG_OUTPUT, TRACEML_ENABLE="0")
    assert len(found["words"]) == 4
    for words in found["words"]:
        assert words.startswith("init: output=") and "spool, log, stdout" in words
    assert found["same"] and not found["enabled"]
    assert result.run_dirs == []


def test_a_data_frame_without_pandas_names_what_to_install(tmp_path):
    (tmp_path / "pandas.py").write_text("raise ImportError")
    body = "try:\n    trace('df')\nexcept Exception as error:\n    tell(words=str(error))\n"
    found, _ = told(tmp_path, body)
    assert "pip install 'traceml-agent[pandas]'" in found["words"]


def test_infinite_attributes_are_valid_json(tmp_path):
    body = "with scope('a', lr=float('inf'), what=[1]): pass\ntell(text=trace('json'))\n"
    found, _ = told(tmp_path, body)
    (root,) = json.loads(found["text"], parse_constant=lambda word: math.nan)["roots"]
    assert root["attrs"] == {"lr": "inf", "what": "[1]"}
