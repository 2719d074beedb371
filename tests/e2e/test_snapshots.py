"""TRACEML_SNAPSHOTS and `watch`: figures of weights and gradients, against those of the program."""

import json

import pytest

from tests.e2e.harness import Result, run, write

FIGURES = """
import hashlib, json, sys, threading
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

def figures(tensor):
    x = tensor.detach().double().flatten()
    return [x.mean().item(), x.std(correction=0).item(), x.min().item(), x.max().item(),
            x.norm().item(), torch.histc(x, 16).tolist()]

def digest(parameters):
    found = hashlib.sha256()
    for p in parameters:
        found.update(bytes(p.detach().contiguous().flatten().view(torch.uint8).tolist()))
    return found.hexdigest()
"""

ZOO = (
    FIGURES
    + """
class Zoo(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(30, 8)
        self.tags = nn.Embedding(30, 8, sparse=True)
        self.conv = nn.Conv2d(1, 4, 3, padding=1).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm1d(8)
        self.frozen = nn.Linear(8, 8)
        self.frozen.requires_grad_(False)
        self.empty = nn.Parameter(torch.zeros(0, 3))
        self.wave = nn.Parameter(torch.zeros(4, dtype=torch.complex64))
        self.low = nn.Parameter(torch.full((300,), 200.0, dtype=torch.float16))
        self.unused = nn.Parameter(torch.arange(5.0))
        self.head = nn.Linear(8, 30, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.ones(3, dtype=torch.bool))

    def forward(self, ids):
        x = self.embed(ids) + self.tags(ids) + self.conv(torch.ones(1, 1, 2, 2)).mean()
        x = self.frozen(self.norm(x)) + self.wave.abs().sum() + self.low.float().mean() * 1e-3
        return self.head(x)

torch.manual_seed(0)
model = Zoo()
optimizer = torch.optim.SGD([p for p in model.parameters()], lr=0.1)
ids = torch.randint(30, (88,))
names = ["low", "unused", "embed.weight", "tags.weight", "conv.weight", "conv.bias",
         "norm.weight", "norm.bias"]
told = []
for epoch in range(3):
    # 11 batches of which two make an update: the last one makes none.
    for number, (x,) in enumerate(DataLoader(TensorDataset(ids), batch_size=8), 1):
        loss = nn.functional.cross_entropy(model(x), x)
        loss.backward()
        if number % 2 == 0:
            optimizer.step()
            parameters = dict(model.named_parameters())
            last = {n: [figures(parameters[n]),
                        None if parameters[n].grad is None or parameters[n].grad.is_sparse
                        else figures(parameters[n].grad)] for n in names}
            optimizer.zero_grad()
    told.append(last)
    with torch.no_grad():
        for (x,) in DataLoader(TensorDataset(ids), batch_size=8):
            model.eval()(x)
        model.train()
parameters = list(model.parameters())
# Refused where a weak reference to a parameter is kept.
torch.utils.swap_tensors(parameters[-1], nn.Parameter(parameters[-1].detach().clone()))
print(json.dumps(told))
print(digest(parameters), loss.item(), torch.rand(1).item(), torch.get_num_threads())
print([p._version for p in parameters])
if sys.argv[1] == "threads":
    print(sorted(t.name for t in threading.enumerate()))
"""
)


def train(tmp_path, text: str, *arguments: str, **settings: str) -> Result:
    result = run(tmp_path, write(tmp_path, text), *arguments, **settings)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Result:
    where = tmp_path_factory.mktemp("zoo")
    return train(where, ZOO, "plain", TRACEML_SNAPSHOTS="stats", TRACEML_TEST_RAISE="1")


def rows(snapshot):
    return {row.name: row for row in snapshot.tensors}


def assert_same(found, told) -> None:
    mean, std, least, most, l2, histogram = told
    assert (found.min, found.max) == (least, most)
    assert [found.mean, found.std, found.l2] == pytest.approx([mean, std, l2], rel=1e-9, abs=1e-12)
    assert sum(found.histogram) == sum(histogram)
    if most > least:  # at a border of a bin, an element may fall to either side
        assert sum(abs(a - b) for a, b in zip(found.histogram, histogram, strict=True)) <= 4
    assert (found.nan, found.inf) == (0, 0)


def test_each_epoch_has_the_figures_of_its_last_update(zoo):
    told = json.loads(zoo.stdout.splitlines()[0])
    (spool,) = zoo.spools
    assert [(s.cause, s.epoch) for s in spool.snapshots] == [("epoch", n) for n in (1, 2, 3)]
    # Five updates an epoch, of ten of its eleven batches.
    assert [s.last_step for s in spool.snapshots] == [5, 10, 15]
    for snapshot, expected in zip(spool.snapshots, told, strict=True):
        found = rows(snapshot)
        assert list(found) == list(expected)
        for name, (weight, gradient) in expected.items():
            assert_same(found[name].weight, weight)
            if gradient is not None:
                assert_same(found[name].gradient, gradient)
        assert (found["tags.weight"].gradient, found["tags.weight"].no_gradient) == (None, "sparse")
        assert (found["unused"].gradient, found["unused"].no_gradient) == (None, "none")
        assert found["low"].dtype == "float16"
        assert found["low"].weight.l2 > 3000  # its square is no float16
        assert snapshot.left_out == {"frozen": 2, "not dense floating-point": 1, "empty": 1}


def test_the_summary_has_the_newest_figures_and_the_course_of_the_norms(zoo):
    told = json.loads(zoo.stdout.splitlines()[0])
    found = zoo.summary["snapshots"]["ranks"]["0"]
    assert found["count"] == 3
    assert [row["name"] for row in found["newest"]["tensors"]] == list(told[-1])
    history = found["history"]
    assert (history["epoch"], history["last_step"]) == ([1, 2, 3], [5, 10, 15])
    norms = [epoch["embed.weight"][0][4] for epoch in told]
    assert history["weight_l2"]["embed.weight"] == pytest.approx(norms)
    assert history["gradient_l2"]["unused"] == [None] * 3
    text = (zoo.run_dir / "final_summary.txt").read_text()
    assert "Snapshots     3, the last at step 15 (epoch 3): 8 tensors" in text


def test_the_training_computes_the_same_to_the_last_bit(zoo, tmp_path):
    off = run(tmp_path, write(tmp_path, ZOO), "plain", enabled=False)
    assert (zoo.stdout, zoo.other_stderr) == (off.stdout, off.stderr)


def test_without_the_setting_there_is_no_trace_of_it(tmp_path):
    result = train(tmp_path, ZOO, "threads")
    assert "traceml" in result.stdout.splitlines()[-1]
    assert "traceml-snapshots" not in result.stdout
    assert result.spools[0].snapshots == []
    assert result.summary["snapshots"] is None
    assert "Snapshots" not in (result.run_dir / "final_summary.txt").read_text()
    assert "snapshots" not in result.summary["traceml_agent"]["patches"]


LARGE = (
    FIGURES
    + """
torch.manual_seed(0)
class Large(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide = nn.Parameter(torch.randn(5_000_000))
        self.blocks = nn.ParameterList([nn.Parameter(torch.randn(1000, 1000)) for _ in range(6)])
    def forward(self, x):
        return (self.wide * x).sum() + sum((p * p * x).sum() for p in self.blocks)

model = Large()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
told = {}
for epoch in range(2):
    for step, (x,) in enumerate(DataLoader(TensorDataset(torch.rand(12))), 1 + 12 * epoch):
        optimizer.zero_grad()
        model(x).backward()
        optimizer.step()
        told[step] = {n: [p.double().norm().item(), p.grad.double().norm().item()]
                      for n, p in model.named_parameters()}
print(json.dumps(told))
"""
)


def test_a_large_model_is_spread_over_steps_and_each_row_is_of_its_own_step(tmp_path):
    result = train(tmp_path, LARGE, TRACEML_SNAPSHOTS="stats", TRACEML_TEST_RAISE="1")
    told = json.loads(result.stdout)
    first, *_ = result.spools[0].snapshots
    found = rows(first)
    assert set(found) == {"wide", *(f"blocks.{n}" for n in range(6))}
    steps = sorted({row.step for row in found.values()})
    assert len(steps) >= 3
    assert (first.first_step, first.last_step) == (steps[0], steps[-1])
    assert (found["wide"].elements, found["wide"].looked) == (5_000_000, 1 << 22)
    for name, row in found.items():
        weight, gradient = told[str(row.step)][name]
        if name == "wide":  # a part of it
            assert 0.8 * weight < row.weight.l2 < weight
            continue
        assert row.weight.l2 == pytest.approx(weight, rel=1e-9)
        if row.gradient is None:  # the other thread was late, and the epoch over
            assert row.no_gradient == "not at an update"
        else:
            assert row.gradient.l2 == pytest.approx(gradient, rel=1e-9)


NAN = (
    FIGURES
    + """
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
step = 0
for epoch in range(3):
    for (x,) in DataLoader(TensorDataset(torch.randn(40, 8)), batch_size=4):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        step += 1
        if step == 20:
            model[2].weight.grad[1, 2:5] = float("nan")
            model[2].weight.grad[3, 0] = float("inf")
        optimizer.step()
"""
)


def test_numbers_that_are_not_finite_are_findings_that_name_tensor_step_and_epoch(tmp_path):
    result = train(tmp_path, NAN, TRACEML_SNAPSHOTS="stats")
    row = rows(result.spools[0].snapshots[1])["2.weight"]
    assert (row.gradient.nan, row.gradient.inf, sum(row.gradient.histogram)) == (3, 1, 28)
    assert (row.weight.nan, row.weight.inf) == (3, 1)
    findings = {f["kind"]: f for f in result.summary["findings"]}
    for kind in ("NON_FINITE_WEIGHTS", "NON_FINITE_GRADIENTS"):
        finding = findings[kind]
        assert (finding["section"], finding["severity"]) == ("snapshots", "crit")
        assert finding["evidence"] == {
            "tensor": "2.weight", "step": 20, "epoch": 2, "nan": 3, "inf": 1, "elements": 32,
            "tensors": 1, "finite_at_step": 10,
        }  # fmt: skip
        assert (
            "of 2.weight held 3 NaN and 1 Inf among 32 elements after step 20 (epoch 2)"
            in (finding["summary"])
        )


GAN = (
    FIGURES
    + """
import traceml_agent as traceml

class Net(nn.Sequential):
    pass

class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.randn(6, 4))

torch.manual_seed(0)
plain = Net(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4))
maker = torch.compile(plain, backend="eager")
judge = Net(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
other = nn.Linear(3, 3)
of_maker, of_judge = (torch.optim.Adam(m.parameters()) for m in (maker, judge))
of_other = torch.optim.Adam(other.parameters())
if sys.argv[1:] == ["watch"]:
    traceml.watch(judge)
told = []
for epoch in range(3):
    for noise in DataLoader(Stream(), batch_size=2):
        of_judge.zero_grad()
        (judge(noise).mean() - judge(maker(noise).detach()).mean()).backward()
        of_judge.step()
        at_judge = judge[0].weight.grad.double().norm().item()
        of_maker.zero_grad()
        judge(maker(noise)).mean().backward()
        of_maker.step()
        at_maker = plain[0].weight.grad.double().norm().item()
        of_other.zero_grad()
        other(noise[:, :3]).sum().backward()
        of_other.step()
    told.append([at_judge, at_maker, judge[0].weight.double().norm().item()])
print(json.dumps(told))
"""
)


def test_two_optimizers_and_loaders_without_length(tmp_path):
    result = train(tmp_path, GAN, TRACEML_SNAPSHOTS="stats", TRACEML_TEST_RAISE="1")
    told = json.loads(result.stdout)
    (spool,) = result.spools
    assert [(s.epoch, s.last_step) for s in spool.snapshots] == [(1, 3), (2, 6), (3, 9)]
    for number, snapshot in enumerate(spool.snapshots):
        found = rows(snapshot)
        at_judge, at_maker, weight = told[number]
        # Two models of a type: the larger one is the first.
        assert set(found) == {
            *(f"Net.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")),
            *(f"Net#2.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")),
            "Linear.weight",
            "Linear.bias",
        }
        assert found["Net.0.weight"].weight.l2 == pytest.approx(weight)
        if number == 0:  # nothing told that the epoch would end here
            assert found["Net.0.weight"].no_gradient == "not at an update"
            continue
        assert found["Net.0.weight"].gradient.l2 == pytest.approx(at_judge)
        assert found["Net#2.0.weight"].gradient.l2 == pytest.approx(at_maker)


def test_watch_names_one_model_and_off_outdoes_it(tmp_path):
    (tmp_path / "on").mkdir()
    (tmp_path / "off").mkdir()
    result = train(tmp_path / "on", GAN, "watch", TRACEML_TEST_RAISE="1")
    snapshots = result.spools[0].snapshots
    assert [s.epoch for s in snapshots] == [1, 2, 3]
    assert set(rows(snapshots[-1])) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert rows(snapshots[-1])["0.weight"].gradient is not None
    off = train(tmp_path / "off", GAN, "watch", TRACEML_SNAPSHOTS="off")
    assert off.spools[0].snapshots == []
    assert off.stdout == result.stdout


RANKS = (
    FIGURES
    + """
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
torch.manual_seed(0)
equal = DistributedDataParallel(nn.Sequential(nn.Linear(4, 6)))
cut = nn.Sequential(nn.Linear(4, 10))
fully_shard(cut, mesh=init_device_mesh("cpu", (2,)))
optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (equal, cut)]
for (x,) in DataLoader(TensorDataset(torch.randn(6, 4)), batch_size=2):
    for model, optimizer in zip((equal, cut), optimizers):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
local = cut[0].weight.to_local()
line = json.dumps([dist.get_rank(), list(local.shape), local.double().norm().item()])
print(line + "\\n", end="", flush=True)  # at once: two ranks write to one pipe
dist.destroy_process_group()
"""
)


def test_replicas_are_of_rank_0_alone_and_each_rank_has_its_shard(tmp_path):
    path = write(tmp_path, RANKS)
    result = run(
        tmp_path, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0",
        "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1", path,
        TRACEML_SNAPSHOTS="stats", TRACEML_TEST_RAISE="1", TMPDIR="/tmp",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    told = {rank: (shape, norm) for rank, shape, norm in lines}
    of_rank = {s.header.identity.rank: rows(s.snapshots[-1]) for s in result.spools}
    shards = {n: {k for k, row in of_rank[n].items() if row.shard} for n in (0, 1)}
    assert shards[0] == shards[1] == {"Sequential.0.weight", "Sequential.0.bias"}  # the larger one
    assert len(of_rank[0]) == 4
    assert set(of_rank[1]) == shards[1]
    for rank, (shape, norm) in told.items():
        (row,) = [row for name, row in of_rank[rank].items() if row.shard and "weight" in name]
        assert (row.shape, row.weight.l2) == (shape, pytest.approx(norm))
        assert row.gradient is not None
    ranks = result.summary["snapshots"]["ranks"]
    assert {rank: len(found["newest"]["tensors"]) for rank, found in ranks.items()} == {
        "0": 4,
        "1": 2,
    }
