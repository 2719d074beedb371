"""Ordinary training scripts, each with one place where a fault can be.

A script runs as `train.py fault` or `train.py clean`. The line with the fault ends in `# FAULT`.
What the training thread lost to it the script measures itself, and prints as JSON at its end: that
is the truth that the agent is compared with. As `train.py both` the fault comes and goes every 20
steps, and the script tells what a step takes without: two processes that do the same differ by more
than the interval that is to hold the truth. TRUTH_SCALE=4 makes runs four times as long.
"""

import textwrap

MARK = "# FAULT"
ITERATIONS = 15_000_000
"""Of a generator, a second. The scripts measure what they really took."""

_PROGRAM = """\
import gc, json, os, random, statistics, sys, threading, time
import torch
from torch import nn
from torch.utils.data import (
    DataLoader, Dataset, IterableDataset, default_collate, get_worker_info
)
{imports}

MODE = sys.argv[1]
FAULT = MODE == "fault"
SCALE = int(os.environ.get("TRUTH_SCALE", "1"))
BLOCK = {block}
clock = time.perf_counter
lost = 0.0


class Data(Dataset):
    def __init__(self, items):
        self.x = torch.randn(256, {width})
        self.items = items

    def __len__(self):
        return self.items

    def __getitem__(self, index):
        global lost, FAULT
        if MODE == "both" and get_worker_info() is not None:
            FAULT = index // {batch} // BLOCK % 2 == 1
{item}
        return self.x[index % 256], index % 10


def collate(samples):
    global lost
{collate}
    return default_collate(samples)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear({width}, {hidden})
        self.second = nn.Linear({hidden}, {hidden})
        self.head = nn.Linear({hidden}, 10)

    def forward(self, x):
        global lost
        x = torch.relu(self.first(x))
{forward}
        return self.head(torch.relu(self.second(x)))


{definitions}


def apart(ends):
    # Milliseconds that a step takes without and with the fault, but for the first block; and twice
    # the standard error of the first.
    took = {{False: [], True: []}}
    for before, (is_faulty, end) in zip(ends[BLOCK - 1 :], ends[BLOCK:]):
        took[is_faulty].append(1e3 * (end - before[1]))
    clean = took[False]
    error = 2 * statistics.stdev(clean) / len(clean) ** 0.5
    return {{
        "clean_ms": statistics.fmean(clean),
        "error_ms": error,
        "fault_ms": statistics.fmean(took[True]),
    }}


def main():
    global lost, FAULT
    torch.manual_seed(0)
    random.seed(0)
    model = Net()
    optimizer = {optimizer}
    criterion = nn.CrossEntropyLoss()
    data = Data({batch} * {steps} * SCALE)
    loader = DataLoader(data, batch_size={batch}, collate_fn=collate, {loader})
{setup}
    step = 0
    ends = []
    begun = clock()
    for epoch in range({epochs}):
        for x, y in {batches}:
            loss = criterion(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
{after}
            ends.append((FAULT, clock()))
            if MODE == "both":
                FAULT = step // BLOCK % 2 == 1
{epoch_end}
    truth = {{"lost_s": lost, "train_s": clock() - begun, "steps": step}}
    if MODE == "both":
        truth |= apart(ends)
    print(json.dumps(truth))
    sys.stdout.flush()
{finish}


if __name__ == "__main__":
    main()
"""

SLOW_RANK = """\
import json, os, sys, time
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

torch.set_num_threads(1)
dist.init_process_group("gloo")
SLOW = sys.argv[1] == "fault" and dist.get_rank() == 1
STEPS = 120 * int(os.environ.get("TRUTH_SCALE", "1"))


class Data(Dataset):
    def __len__(self):
        return STEPS

    def __getitem__(self, index):
        # slow item
        return torch.full((16,), float(index % 7))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 4)

    def forward(self, x):
        time.sleep(0.01)
        # slow forward
        return self.linear(x)


model = DistributedDataParallel(Net())
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
begun = time.perf_counter()
for x in DataLoader(Data(), batch_size=1):
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
if dist.get_rank() == 0:
    print(json.dumps({"lost_s": 0.0, "train_s": time.perf_counter() - begun, "steps": STEPS}))
dist.destroy_process_group()
"""
"""A job of ranks that wait for each other in each backward pass."""

_INDENTS = {
    "item": 8,
    "collate": 4,
    "forward": 8,
    "setup": 4,
    "after": 12,
    "epoch_end": 8,
    "finish": 4,
    "definitions": 0,
    "imports": 0,
}
_DEFAULTS = {
    "batch": "64",
    "width": "512",
    "hidden": "1536",
    "steps": "120",
    "epochs": "1",
    "loader": "num_workers=0",
    "optimizer": "torch.optim.SGD(model.parameters(), lr=0.01)",
    "batches": "loader",
    "block": "20",  # steps with the fault, and then without
}


def program(**slots: str) -> str:
    """The text of a script; each slot is code at its place, indented as it has to be."""
    unknown = set(slots) - set(_INDENTS) - set(_DEFAULTS)
    if unknown:
        raise ValueError(f"no such slot: {sorted(unknown)}")
    filled = _DEFAULTS | dict.fromkeys(_INDENTS, "") | slots
    for name, spaces in _INDENTS.items():
        filled[name] = textwrap.indent(textwrap.dedent(filled[name]).strip("\n"), " " * spaces)
    return _PROGRAM.format(**filled)


def work(seconds: float) -> str:
    """An expression that keeps Python at work for about so long."""
    return f"sum(i * i for i in range({int(seconds * ITERATIONS)}))"


def timed(line: str, when: str = "FAULT") -> str:
    """A line that is the fault, with the time that it takes added up around it."""
    return f"""
if {when}:
    began = clock()
    {line}  {MARK}
    lost += clock() - began
"""


def in_worker(line: str, when: str = "FAULT") -> str:
    """The same where another process runs it, or the loader's own time is the measure."""
    return f"""
if {when}:
    {line}  {MARK}
"""


def line_of(text: str) -> int | None:
    """The number of the line with the fault; None where a script has none."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.rstrip().endswith(MARK):
            return number
    return None
