"""Trainings that time their own lines: what the agent finds by sampling is known by the clock."""

CLOCK = """
import contextlib, json, sys, time
import torch
from torch import nn
TRUTH = {}
@contextlib.contextmanager
def timed(name):
    begun = time.perf_counter()
    yield
    TRUTH[name] = TRUTH.get(name, 0.0) + time.perf_counter() - begun
def tell():
    sys.stderr.write("truth:" + json.dumps(TRUTH) + "\\n")
model = nn.Linear(32, 8)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
batch = torch.randn(4, 32)
def update():
    optimizer.zero_grad()
    model(batch).sum().backward()
    optimizer.step()
"""

RESIDUAL = (
    CLOCK
    + """
values, table = torch.randn(6000), torch.randn(100, 100)
rows = [{"name": str(i), "value": i / 7} for i in range(1500)]
def settle(seconds):
    time.sleep(seconds)  # settle
def key(item):
    time.sleep(0.004)  # key
    return item
with open("log.jsonl", "w") as log:
    for step in range(90):
        update()
        with timed("settle"):
            settle(0.006)  # once
            settle(0.012)  # twice
        with timed("key"):
            sorted([3, 1], key=key)
        with timed("item"):
            total = [v.item() for v in values]
        with timed("print"):
            print(table, table + step)
        with timed("json"):
            json.dump(rows, log)
tell()
"""
)

PHASES = (
    CLOCK
    + """
from torch.utils.data import DataLoader, Dataset
class Rows(Dataset):
    def __len__(self):
        return 400
    def __getitem__(self, index):
        with timed("read"):
            time.sleep(0.003)  # read
        return torch.full((32,), float(index))
def collate(items):
    with timed("collate"):
        time.sleep(0.006)  # collate
    return torch.stack(items)
class Pause(nn.Module):
    def forward(self, x):
        time.sleep(0.008)  # within
        return x * 2
class Slow(torch.optim.SGD):
    def step(self, closure=None):
        time.sleep(0.007)  # slow
        return super().step(closure)
model = nn.Sequential(nn.Linear(32, 8), Pause())
optimizer = Slow(model.parameters(), lr=0.01)
for x in DataLoader(Rows(), batch_size=4, collate_fn=collate):
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()
tell()
"""
)

GENERATOR = (
    CLOCK
    + """
def rows():
    for i in range(120):
        with timed("read"):
            time.sleep(0.015)  # read
        yield torch.full((4, 32), float(i))
for x in rows():
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()
    with timed("after"):
        time.sleep(0.008)  # after
tell()
"""
)

GET_BATCH = (
    CLOCK
    + """
def get_batch(step):
    with timed("read"):
        time.sleep(0.015)  # read
    return torch.full((4, 32), float(step))
for step in range(120):
    x = get_batch(step)
    optimizer.zero_grad()
    model(x).sum().backward()
    optimizer.step()
    with timed("after"):
        time.sleep(0.008)  # after
tell()
"""
)

ALIASING = (
    CLOCK
    + """
begun = time.perf_counter()
def until(ms):
    time.sleep(max(0.0, begun + ms / 1000 - time.perf_counter()))
for step in range(320):
    update()
    with timed("short"):
        until(50 * step + 15)  # short
    with timed("long"):
        until(50 * step + 50)  # long
tell()
"""
)

SAME_RESULTS = """
import hashlib, json, random, threading
import numpy, torch
random.seed(1); numpy.random.seed(2); torch.manual_seed(3)
model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Dropout(0.3), torch.nn.Linear(16, 4))
optimizer = torch.optim.Adam(model.parameters())
losses = []
for step in range(400):
    optimizer.zero_grad()
    loss = model(torch.randn(8, 16) * random.random() + numpy.random.rand()).square().mean()
    loss.backward()
    optimizer.step()
    losses.append(loss.item().hex())
states = (repr(random.getstate()), repr(numpy.random.get_state()), torch.get_rng_state().tolist())
weights = [p.tolist() for p in model.parameters()]
print(hashlib.sha256(repr((losses, states, weights)).encode()).hexdigest())
print(sorted(t.name for t in threading.enumerate()), file=__import__("sys").stderr)
"""

STRANGE = (
    CLOCK
    + """
import asyncio, functools
exec(compile("def typed():\\n    import time\\n    time.sleep(0.008)\\n", "<string>", "exec"))
def shown(function):
    @functools.wraps(function)
    def inner(*args):
        return function(*args)
    return inner
@shown
def decorated():
    time.sleep(0.008)  # decorated
async def awaited():
    time.sleep(0.008)  # awaited
wait = lambda: time.sleep(0.008)  # lambda
for step in range(70):
    update()
    typed(); decorated(); wait()
    asyncio.run(awaited())
"""
)

LOCKED = (
    CLOCK
    + """
def plain():
    end, total = time.perf_counter() + 0.003, 0
    while time.perf_counter() < end:
        total += 1
    return total
model = nn.Sequential(*[nn.Linear(256, 256) for _ in range(6)])
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
batch = torch.randn(128, 256)
for step in range(250):
    plain()
    loss = model(batch).sum()  # forward
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
)

CELL = """model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def report(loss):
    time.sleep(0.02)
for step in range(150):
    optimizer.zero_grad()
    loss = model(torch.randn(3, 4)).sum()
    loss.backward()
    optimizer.step()
    report(loss)
"""

EVENTS = (
    CLOCK
    + """
import os
compiled = torch.compile(model, backend="eager")
def keep():
    torch.save(model.state_dict(), "m.pt")  # save
for step in range(12):
    optimizer.zero_grad()
    compiled(batch).sum().backward()  # compile
    optimizer.step()
    if step == 6:
        os.makedirs("deep", exist_ok=True)
        keep()
"""
)

LOADER = (
    CLOCK
    + """
from torch.utils.data import DataLoader, Dataset
class Rows(Dataset):
    def __init__(self):
        self.x = torch.randn(256, 32)
    def __len__(self):
        return 16 * 400
    def __getitem__(self, index):
        key = index % 256
        sum(i * i for i in range(4000))  # item
        return self.x[key]
def collate(rows):
    sum(i * i for i in range(32000))  # collate
    return torch.stack(rows)
for batch in DataLoader(Rows(), batch_size=16, collate_fn=collate):
    update()
"""
)
"""Plain Python that lets go of the interpreter lock after 0.3 and 2 ms: two thirds of it in the
items, one third where they are put together."""
