"""What a scope, a mark and a loop of scopes may never do to the program that has them."""

import json

from tests.e2e.harness import Result, run, write

HEAD = """
import asyncio, copy, gc, json, pathlib, pickle, sys, threading, time, weakref
import torch
from torch.utils.data import DataLoader
import traceml_agent as traceml
from traceml_agent import batches, epochs, mark, scope, trace

def names(nodes):
    return [[n["name"], names(n["children"])] for n in nodes]
"""


def told(tmp_path, body: str, **extra: str) -> tuple[dict, Result]:
    result = run(tmp_path, write(tmp_path, HEAD + body), **extra)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1]), result


KEPT = """
class Batch:
    pass

batch, lost = Batch(), torch.ones(2, requires_grad=True)
graph = (lost * 2).sum()
held = [weakref.ref(batch), weakref.ref(graph)]
with scope("step", data={"x": batch}, losses=[graph], lr=0.1, of=torch.float32,
           shape=torch.ones(2, 3).shape, pairs={(1, 2): 3, (4, 5): 6}, where=pathlib.Path("a/b")):
    mark("loss", 1.0, of=batch)
del batch, graph
gc.collect()
(step,) = trace("dict")["roots"]
print(json.dumps({"alive": [ref() is not None for ref in held], "attrs": step["attrs"]}))
"""


def test_what_a_scope_is_given_does_not_live_on(tmp_path):
    found, _ = told(tmp_path, KEPT)
    assert found["alive"] == [False, False]
    assert found["attrs"] == {
        "data": "{'x': '<Batch>'}", "losses": "['<Tensor>']", "lr": 0.1, "shape": "(2, 3)",
        "of": "torch.float32", "pairs": "{(1, 2): 3, (4, 5): 6}", "where": "a/b",
    }  # fmt: skip


OUTLIVING = """
async def background():
    await asyncio.sleep(0.02)
    mark("late", 1, kind="summary")
    with scope("after"):
        pass

turns = []

async def again(left):
    with scope("turn"):
        if left:
            turns.append(asyncio.create_task(again(left - 1)))

async def main():
    with scope("outer"):
        with scope("inner"):
            task = asyncio.create_task(background())
        await task
    await again(200)
    for turn in turns:  # each adds another one
        await turn

asyncio.run(main())
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(5):
    optimizer.zero_grad()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
roots = [root for root in trace("dict")["roots"] if root["name"] in ("outer", "turn")]
print(json.dumps({"outer": names(roots[:1]), "marks": roots[0]["marks"],
                  "turns": sum(root["name"] == "turn" for root in roots),
                  "deep": traceml.health()["scopes"]}))
"""


def test_a_task_that_outlives_its_scope_belongs_to_what_is_still_open_around_it(tmp_path):
    found, result = told(tmp_path, OUTLIVING)
    assert found["outer"] == [["outer", [["inner", []], ["after", []]]]]
    assert found["marks"] == [{"name": "late", "value": 1, "kind": "summary"}]
    assert (found["turns"], found["deep"]) == (201, {})
    (late,) = result.summary["marks"]
    assert (late["name"], late["scope"], late["value"]) == ("late", "outer", 1)


SHARED = """
shared, closed = scope("shared"), []
ready, go = threading.Event(), threading.Event()

def other():
    with shared:
        ready.set()
        go.wait()
        mark("of the other", 1)

thread = threading.Thread(target=other)
with shared:
    thread.start()
    ready.wait()
with scope("next"):
    mark("of the next", 1)
go.set()
thread.join()
found = [[n["name"], [m["name"] for m in n["marks"]]] for n in trace("dict")["roots"]]
print(json.dumps({"found": sorted(found)}))
"""


def test_a_scope_that_several_threads_enter_is_closed_in_each_on_its_own(tmp_path):
    found, _ = told(tmp_path, SHARED)
    assert found["found"] == [
        ["next", ["of the next"]], ["shared", []], ["shared", ["of the other"]],
    ]  # fmt: skip


LOOPS = """
class Anew:
    def __iter__(self):
        self.left = 3
        return self

    def __next__(self):
        self.left -= 1
        if self.left < 0:
            raise StopIteration
        return self.left

class Bad:
    count = 0

    def __next__(self):
        self.count += 1
        if self.count == 2:
            raise ValueError(self.count)
        if self.count == 5:
            raise StopIteration
        return self.count

class Rows:
    def __getitem__(self, index):
        if index == 2:
            raise IndexError
        return index

anew, source, bad = batches(Anew()), batches(Bad()), []
while True:
    try:
        bad.append(next(source))
    except ValueError as error:
        bad.append(str(error))
    except StopIteration:
        break
loader = DataLoader(list(range(8)), batch_size=2)
loop = batches(loader)
again = copy.copy(loop)
read = epochs(iter([5, 6]))
loop.extra = 1
print(json.dumps({
    "is": isinstance(loop, DataLoader), "len": len(loop), "size": loop.batch_size,
    "copy": type(again).__name__, "deep": len(copy.deepcopy(epochs([1, 2]))),
    "pickled": pickle.loads(pickle.dumps(epochs([1, 2]))), "item": epochs([3, 4])[1],
    "reversed": list(reversed(epochs([1, 2]))), "extra": loader.extra,
    "hint": read.__length_hint__(),
    "read": [*read, *read], "twice": [len(list(loop)), len(list(loop))],
    "next": next(iter(batches([7]))), "of": len(iter(loop)), "getitem": [*batches(Rows())],
    "anew": [[*anew], [*anew]], "bad": bad,
}))
"""


def test_what_is_gone_through_stays_what_it_was(tmp_path):
    found, _ = told(tmp_path, LOOPS)
    off, _ = told(tmp_path, LOOPS, TRACEML_ENABLE="0")
    assert found == off
    assert (found["is"], found["len"], found["twice"]) == (True, 4, [4, 4])
    assert (found["anew"], found["bad"]) == ([[2, 1, 0], [2, 1, 0]], [1, "2", 3, 4])


ODD = """
import numpy as np
raised = []
for value in (1j, np.complex64(1j), torch.tensor(1j), np.array("abc"), np.datetime64("2020-01-01"),
              torch.ones(2), [1], np.float32(2), torch.tensor(3), True, "text", None):
    try:
        mark("x", value)
    except TypeError as error:
        raised.append(str(error).split(",")[0])
    else:
        raised.append(None)
class Odd:
    def __str__(self):
        raise AssertionError
    __repr__ = __str__
with scope("größer ✓", of=Odd(), large=[10**5000]):
    mark("large", 10**5000)
print(repr(raised))
trace()
text = trace("json")
"""


def test_what_a_mark_refuses_is_the_same_without_the_agent_and_odd_values_are_shown(tmp_path):
    script = write(tmp_path, HEAD + ODD)
    on = run(tmp_path, script, PYTHONIOENCODING="ascii")
    off = run(tmp_path, script, enabled=False, PYTHONIOENCODING="ascii")
    assert (on.returncode, off.returncode) == (0, 0), on.stderr
    refused, tree = on.stdout.split("\n", 1)
    assert refused == off.stdout.splitlines()[0]
    assert refused.count("None") == 5
    assert tree.startswith("gr??er ? - ") and "large=<int>" in tree


LATE = """
import traceml_agent.capture.scopes
with scope("early"):
    pass
traceml.init(output="stdout", trace_max_spans=3)
for number in range(5):
    with scope("s", number):
        pass
print(json.dumps({"kept": [n["index"] for n in trace("dict")["roots"]]}))
"""


def test_what_init_sets_counts_after_the_first_scope_too(tmp_path):
    found, result = told(tmp_path, LATE)
    assert found["kept"] == [2, 3, 4]
    assert [line.split(" - ")[0] for line in result.stdout.splitlines()[:-1]] == [
        f"s[{number}]" for number in range(5)
    ]


DEEP = """
shared = scope("node")

def walk(left):
    if left:
        with shared:
            walk(left - 1)

walk(70)
depth, open_now = 0, [n for n in trace("dict")["roots"]]
while open_now:
    depth, open_now = depth + 1, open_now[0]["children"]
with scope("outer"):
    walk(70)
    mark("here", 1)
outer = [n for n in trace("dict")["roots"] if n["name"] == "outer"]
print(json.dumps({"depth": depth, "marks": outer[0]["marks"],
                  "closed": outer[0]["end_ns"] is not None}))
"""


def test_a_scope_that_enters_itself_beyond_the_limit_closes_in_order(tmp_path):
    found, _ = told(tmp_path, DEEP)
    assert found["depth"] == 64
    assert found["marks"] == [{"name": "here", "value": 1, "kind": "point"}]
    assert found["closed"]
