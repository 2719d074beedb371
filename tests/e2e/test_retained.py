"""TRACEML_RETAINED: the line that makes what outlives its step, in real trainings."""

import pytest

from tests.e2e.harness import Result, run, write
from traceml_agent.capture.audit import FIRST_STEP, STEPS
from traceml_agent.report.fold import fold

LEAK = """
import sys, time, tracemalloc
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

kind = sys.argv[1]
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters())
data = TensorDataset(torch.randn(8000, 64), torch.randint(10, (8000,)))
kept, recent, traced = [], [], []
if kind == "traced":
    tracemalloc.start()
for x, y in DataLoader(data, batch_size=16):
    loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    recent = [*recent, torch.ones(100)][-50:]
    if kind == "batches":
        kept.append(x.repeat(100, 1))  # HERE
    if kind == "losses":
        wide = (model[0](x.repeat(60, 1)) ** 2).exp()  # HERE
        kept.append(wide.sum())
    if kind == "bytes":
        kept.append(bytearray(400_000))
        traced.append(tracemalloc.is_tracing())
    time.sleep(0.01)
if any(traced):
    print("traced from", traced.index(True), file=sys.stderr)
print(loss.item(), kind == "traced" and tracemalloc.is_tracing())
"""


def train(tmp_path, kind: str, retained: str = "1") -> Result:
    result = run(
        tmp_path, write(tmp_path, LEAK), kind, TRACEML_RETAINED=retained,
        TRACEML_SAMPLE_INTERVAL_S="0.2",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result


def creep(result: Result):
    return next(f for f in result.summary["findings"] if f["kind"].startswith("CREEP"))


def line(mark: int) -> int:
    marked = [n for n, text in enumerate(LEAK.splitlines(), 1) if text.endswith("# HERE")]
    return marked[mark]


def test_the_line_that_makes_the_tensors_that_are_kept_is_named(tmp_path):
    result = train(tmp_path, "batches")
    (spool,) = result.spools
    look = spool.retained[-1]
    largest = look.tensors[0]
    assert (largest.line, largest.shape) == (line(0), [1600, 64])
    # Tracing begins and ends within a step.
    assert abs(largest.count - look.steps) <= 1
    assert largest.text == "kept.append(x.repeat(100, 1))"
    finding = creep(result)
    assert finding["place"]["line"] == line(0)
    assert "steps later, made in train.py" in finding["summary"]
    # A window of the last 50 was alive at first, and is no leak.
    assert [found.shape for found in look.tensors] == [[1600, 64]]


def test_a_graph_that_a_small_tensor_keeps_is_named_as_such(tmp_path):
    result = train(tmp_path, "losses")
    finding = creep(result)
    assert "with the graph that made it" in finding["summary"]
    assert "Store .item()" in finding["action"]
    assert finding["place"]["line"] in (line(1), line(1) + 1)


def test_growth_of_other_memory_is_not_blamed_on_tensors(tmp_path):
    result = train(tmp_path, "bytes")
    finding = creep(result)
    assert "No tensor that" in finding["summary"]
    assert finding["place"] is None
    # Under tracing a healthy patch costs so much that an audit would have it shut.
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("traced from"))
    assert int(line.split()[-1]) > FIRST_STEP + STEPS


def test_without_the_setting_nothing_is_traced_and_the_finding_names_the_setting(tmp_path):
    result = train(tmp_path, "batches", retained="0")
    assert result.spools[0].retained == []
    assert "TRACEML_RETAINED=1" in creep(result)["action"]


@pytest.mark.parametrize("kind", ["batches", "none"])
def test_the_training_computes_the_same(tmp_path, kind):
    (tmp_path / "on").mkdir()
    (tmp_path / "off").mkdir()
    on = train(tmp_path / "on", kind)
    off = run(tmp_path / "off", write(tmp_path / "off", LEAK), kind, enabled=False)
    assert (on.stdout, on.other_stderr) == (off.stdout, off.stderr)


def test_a_program_that_traces_its_memory_itself_is_left_alone(tmp_path):
    result = train(tmp_path, "traced")
    assert result.stdout.split()[-1] == "True"
    assert result.spools[0].retained == []
    patches = fold(result.run_dir).payload["traceml_agent"]["patches"]
    assert "traces its memory itself" in patches["retained"]
