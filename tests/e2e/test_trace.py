"""The tree of a training: epochs, steps and phases, with scopes among them, also from its spool."""

import ast
import json
import re
import signal
import subprocess
import sys

import pytest

from tests.e2e.harness import environment, run, runs_in, write
from traceml_agent.report.fold import fold

HEAD = """
import asyncio, json, logging, os, signal, sys, threading, time
import torch
from torch.utils.data import DataLoader, TensorDataset
import traceml_agent as traceml
from traceml_agent import batches, epochs, mark, scope, trace

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)

    def forward(self, x):
        with scope("inside"):
            return self.layer(x)

model = Model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
data = TensorDataset(torch.ones(32, 8))
training, validation = DataLoader(data, batch_size=8), DataLoader(data, batch_size=16)

def step(x):
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()

def validate():
    with torch.no_grad():
        for (x,) in validation:
            model(x)

def tell(**facts):
    print(json.dumps(facts))
"""


def cli(tmp_path, *arguments):
    """What `traceml-agent trace` prints of the only run."""
    (run_dir,) = runs_in(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "traceml_agent", "trace", str(run_dir), *arguments],
        env=environment(tmp_path, enabled=False),
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def shape(nodes):
    return [[title(n), shape(n["children"])] for n in nodes]


def title(node):
    return node["name"] if node["index"] is None else f"{node['name']}[{node['index']}]"


def without(nodes, *names):
    """The same tree without some phases: a short one may have no time at all."""
    return [
        node | {"children": without(node["children"], *names)}
        for node in nodes
        if node["name"] not in names
    ]


def check_lengths(node):
    for child in node["children"]:
        if node["wall_us"] is not None:
            assert child["wall_us"] <= node["wall_us"], (node, child)
        check_lengths(child)


MIXED = """
def work():
    with scope("in a thread"):
        time.sleep(0.002)

async def task(name):
    with scope(name):
        await asyncio.sleep(0.002)

async def tasks():
    await asyncio.gather(task("a"), task("b"))

mark("lr", 0.1, kind="summary")
for epoch in range(2):
    for (x,) in training:
        with scope("work", shard=3, token="sk-abcdefghijklmnop"):
            mark("n", 7)
        step(x)
    with scope("validate", epoch):
        mark("acc", 0.25 + epoch, kind="summary")
        validate()
thread = threading.Thread(target=work)
thread.start()
thread.join()
asyncio.run(tasks())
try:
    with scope("failed"):
        raise KeyError
except KeyError:
    mark("odd", float("nan"))
    mark("long", 10**30)
print(trace("json"))
"""


def test_scopes_slot_into_epochs_steps_and_phases_and_the_spool_says_the_same(tmp_path):
    result = run(tmp_path, write(tmp_path, HEAD + MIXED))
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    phases = ["h2d", "backward", "optimizer", "input_wait"]
    roots = without(found["roots"], *phases)
    in_step = [["forward", [["inside", []]]], ["work", []]]
    inside = [["inside", []], ["inside", []]]
    for number, root in enumerate(roots[:2]):
        *steps, last = shape(root["children"])
        assert title(root) == f"epoch[{number}]"
        assert [name for name, _ in steps] == [f"step[{4 * number + i}]" for i in range(1, 5)]
        assert all(sorted(children) == in_step for _, children in steps)
        assert last == [f"validate[{number}]", [[f"evaluation[{number}]", inside]]]
    assert sorted(shape(roots[2:])) == [["a", []], ["b", []], ["failed", []], ["in a thread", []]]
    for root in found["roots"]:
        check_lengths(root)
    assert found["span_count"] == len(re.findall('"children"', result.stdout))
    text, _ = cli(tmp_path, "--format", "json")
    again = json.loads(text)
    assert [m["value"] for m in again["marks"]] == [0.1, None, 10**30]
    assert "sk-abcdefghijklmnop" not in text
    assert text.replace("[redacted]", "sk-abcdefghijklmnop").strip() == result.stdout.strip()

    check_other_formats(tmp_path, found)
    check_summary(result)


def check_other_formats(tmp_path, found):
    text, _ = cli(tmp_path, "--name", "validate", "--last", "2")
    lines = [re.sub(r"[\d.]+(us|ms|s)\b", "T", line) for line in text.splitlines()]
    assert lines == ["validate[1] - T {acc=1.2500}", "  evaluation[1] - T"]
    text, _ = cli(tmp_path, "--name", "nothing")
    assert text == "(no spans)\n"
    text, _ = cli(tmp_path, "--format", "dict")
    assert f"'span_count': {found['span_count']}" in text


def check_summary(result):
    summary = result.summary
    assert summary["traceml_agent"]["faults"] == []
    rows = {row["name"]: row for row in summary["scopes"]}
    assert {name: row["count"] for name, row in rows.items()} == {
        "work": 8, "inside": 12, "validate": 2, "in a thread": 1, "a": 1, "b": 1, "failed": 1,
    }  # fmt: skip
    for row in rows.values():
        assert row["total_s"] * 1e3 == pytest.approx(row["mean_ms"] * row["count"])
        assert 0 < row["share_percent"] <= 100 and row["ranks"] == 1
    assert [(m["scope"], m["name"], m["value"], m["count"]) for m in summary["marks"]] == [
        (None, "lr", 0.1, 1), ("validate", "acc", 1.25, 2),
    ]  # fmt: skip
    assert re.search(r"^Scopes +\S", summary["text"], re.MULTILINE)
    assert re.search(r"^Marks +lr 0.1, validate/acc 1.25$", summary["text"], re.MULTILINE)


OWN = """
with scope("all"):
    for epoch in epochs(range(2)):
        for (x,) in batches(training):
            step(x)
    for number in range(3):  # no loader
        with scope("mine", number):
            step(torch.ones(4, 8))
print(trace("json"))
"""


def test_the_epochs_of_a_program_hold_its_steps(tmp_path):
    result = run(tmp_path, write(tmp_path, HEAD + OWN))
    assert result.returncode == 0, result.stderr
    roots = without(json.loads(result.stdout)["roots"], "backward", "optimizer", "input_wait")
    ((name, children),) = shape(roots)
    assert name == "all"
    assert [child for child, _ in children[:2]] == ["epoch[0]", "epoch[1]"]
    in_steps = [["batch", [["forward", [["inside", []]]]]]]
    for number in range(2):
        steps = children[number][1]
        assert [step for step, _ in steps] == [f"step[{4 * number + i}]" for i in range(1, 5)]
        for at, (_, inner) in enumerate(steps):
            assert [x[0] for x in inner if x[0] != "forward"] == [f"batch[{at}]"], in_steps
    check_lengths(roots[0])


KILLED = """
for epoch in epochs(range(2)):
    for (x,) in training:
        step(x)
        with scope("log", epoch):
            mark("loss", 0.5)
    if epoch:
        with scope("hangs"):
            mark("point", 1)
            time.sleep(2)
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_its_open_and_closed_scopes(tmp_path):
    result = run(tmp_path, write(tmp_path, HEAD + KILLED), TRACEML_FLUSH_INTERVAL_S="0.1")
    assert result.returncode == -signal.SIGKILL
    text, _ = cli(tmp_path, "--format", "json")
    roots = json.loads(text)["roots"]
    assert [(title(r), r["end_ns"] is None) for r in roots] == [
        ("epoch[0]", False), ("epoch[1]", True),
    ]  # fmt: skip
    assert [title(c) for c in roots[0]["children"]] == [f"step[{n}]" for n in range(1, 5)]
    (hangs,) = [c for c in roots[1]["children"] if c["name"] == "hangs"]
    assert hangs["end_ns"] is None and [m["name"] for m in hangs["marks"]] == ["point"]
    text, _ = cli(tmp_path, "--name", "log")
    assert text.count("log[0] - ") == text.count("log[1] - ") == 4
    assert text.count("{loss=0.5000}") == 8


FEW = """
for (x,) in training:
    for number in range(50):
        with scope("s", number):
            pass
    step(x)
traceml.flush()
for number in range(50):
    with scope("late", number):
        pass
found = trace("dict")
tell(health=traceml.health()["scopes"], count=found["span_count"])
"""


def test_what_is_too_much_is_dropped_and_counted(tmp_path):
    result = run(
        tmp_path,
        write(tmp_path, HEAD + FEW),
        TRACEML_TRACE_MAX_SPANS="10",
        TRACEML_FLUSH_INTERVAL_S="30",
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["count"] == 10
    assert told["health"]["spans_evicted"] > 200
    lost = told["health"]["spans_not_written"]
    assert lost >= 40
    assert result.summary["traceml_agent"]["dropped"]["spans_not_written"] == lost
    assert "spans_not_written" in result.summary["text"]


SHORT = """
for (x,) in training:
    with scope("work", 3):
        mark("n", 1)
        step(x)
with scope("outer"):
    with scope("inner"):
        pass
found = trace("dict")
"""


def test_outputs_stream_a_line_a_closed_scope(tmp_path):
    body = "logging.basicConfig(stream=sys.stderr, level=20, format='%(name)s|%(message)s')\n"
    result = run(tmp_path, write(tmp_path, HEAD + body + SHORT), TRACEML_OUTPUT="stdout,log")
    assert result.returncode == 0, result.stderr
    lines = [re.sub(r" - [\d.]+(us|ms|s)", " - T", line) for line in result.stdout.splitlines()]
    expected = ["work[3]/inside - T", "work[3] - T {n=1}"] * 4 + ["outer/inner - T", "outer - T"]
    assert lines == expected
    logged = [line for line in result.stderr.splitlines() if line.startswith("traceml|")]
    assert len(logged) == len(expected)
    assert logged[-1].startswith("traceml|outer - ")
    assert result.run_dirs == []  # a list without `spool` has none


def test_none_keeps_everything_in_memory(tmp_path):
    kept = "files = [f for f in os.listdir('.') if 'inductor' not in f]\n"
    body = SHORT + kept + "tell(count=found['span_count'], files=files)\n"
    result = run(tmp_path, write(tmp_path, HEAD + body), TRACEML_OUTPUT="none")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"count": 10, "files": ["train.py"]}
    assert result.run_dirs == []
    assert result.own_lines == []


def test_an_unknown_output_turns_the_agent_off_before_anything_is_patched(tmp_path):
    body = (
        "from torch.utils.data import dataloader\n"
        "patched = hasattr(dataloader._BaseDataLoaderIter.__next__, '__wrapped__')\n"
        "next_ = dataloader._BaseDataLoaderIter.__next__.__code__.co_filename\n"
        "tell(count=found['span_count'], ours='traceml' in next_, health=traceml.health())\n"
    )
    result = run(tmp_path, write(tmp_path, HEAD + SHORT + body), TRACEML_OUTPUT="spool,disk")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"count": 0, "ours": False, "health": {"enabled": False}}
    (line,) = result.own_lines
    assert "TRACEML_OUTPUT='spool,disk'" in line and "nothing is recorded" in line
    assert result.run_dirs == []


FORMATS = """
for number in range(4):
    with scope("work", number):
        with scope("part"):
            mark("n", number)
    for (x,) in training:
        step(x)
        break
"""


def test_the_command_has_every_format_and_both_filters(tmp_path):
    """From the spool of a process that has ended, as `trace()` has them in it."""
    pytest.importorskip("pandas")
    assert run(tmp_path, write(tmp_path, HEAD + FORMATS)).returncode == 0
    (tree, _), (found, _) = (
        cli(tmp_path, "--name", "work"),
        cli(tmp_path, "--format", "json", "--name", "work"),
    )
    roots = json.loads(found)["roots"]
    assert [title(root) for root in roots] == [f"work[{number}]" for number in range(4)]
    assert [line.split(" - ")[0] for line in tree.splitlines()] == [
        line for number in range(4) for line in (f"work[{number}]", "  part")
    ]
    as_dict, _ = cli(tmp_path, "--format", "dict", "--name", "work")
    assert ast.literal_eval(as_dict)["roots"] == roots
    frame, _ = cli(tmp_path, "--format", "df", "--name", "part", "--last", "2")
    head, *rows = frame.splitlines()
    assert head.split() == [
        "id", "parent_id", "name", "index", "wall_us", "cpu_ns", "gpu_ns", "memory_peak_bytes",
        "mark_count", "depth",
    ]  # fmt: skip
    assert [row.split()[3] for row in rows] == ["part", "part"]
    ids = [root["children"][0]["id"] for root in roots[-2:]]
    assert [int(row.split()[1]) for row in rows] == ids


RANKS = """
import torch.distributed as dist
dist.init_process_group("gloo")
for (x,) in training:
    with scope("of rank", dist.get_rank()):
        step(x)
dist.barrier()
dist.destroy_process_group()
"""


def test_each_rank_has_a_tree_of_its_own(tmp_path):
    script = write(tmp_path, HEAD + RANKS)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    result = run(tmp_path, *torchrun, script)
    assert result.returncode == 0, result.stderr
    for rank in (0, 1):
        text, _ = cli(tmp_path, "--rank", str(rank), "--name", "of rank")
        assert re.findall(r"of rank\[(\d)\]", text) == [str(rank)] * 4
    text, error = cli(tmp_path)
    assert "epoch[0]" in text and "rank 0 of 2 ranks" in error
    summary = fold(result.run_dir).payload
    (row,) = [row for row in summary["scopes"] if row["name"] == "of rank"]
    assert (row["count"], row["ranks"]) == (8, 2)
