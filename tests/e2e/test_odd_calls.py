"""Odd uses of the API and odd models: with the agent the program does what it does without."""

from tests.e2e.harness import run, write

ODD = """
import copy, threading
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
import traceml_agent as traceml

traceml.init(mode="manual")
torch.manual_seed(0)
with torch.inference_mode():
    made = nn.Linear(2, 1)
    print(traceml.wrap_forward(made)(torch.ones(1, 2)).shape)
torch.optim.SGD(made.parameters(), lr=0.1)

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
    def named_parameters(self, *args, **kwargs):
        for name, parameter in super().named_parameters(*args, **kwargs):
            yield "model." + name, parameter
    def forward(self, x):
        return self.layer(x)

class Own:
    def __init__(self):
        self.steps = 0
    def step(self):
        self.steps += 1

class Slots:
    __slots__ = ()
    def step(self):
        return 5

class Sub(torch.Tensor):
    pass

model = traceml.wrap_forward(Odd())
optimizer = traceml.wrap_optimizer(torch.optim.SGD(model.parameters(), lr=0.1))
own = traceml.wrap_optimizer(Own())
other = copy.deepcopy(own)
other.step()
print(own.steps, other.steps, traceml.wrap_optimizer(Slots()).step())
for step in range(12):
    with traceml.trace_step():
        loss = model(traceml.wrap_h2d(torch.ones(3, 2)).to("cpu")).sum()
        optimizer.zero_grad()
        traceml.wrap_backward(loss).backward()
        optimizer.step()
    print(f"{loss:.3f}", loss, repr(traceml.wrap_h2d(torch.ones(2))))
sub = traceml.wrap_backward(torch.ones(2, requires_grad=True).as_subclass(Sub).sum())
print(torch.isnan(sub), traceml.wrap_h2d({"a": nn.Parameter(torch.ones(2))})["a"] + 1)

scope = traceml.scope("again")
with scope:
    with scope:
        pass
with scope:
    pass
print(next(traceml.batches(iter([5]))), bool(traceml.batches(x for x in [1])))
for wrong in ([1, 2], torch.ones(3)):
    try:
        traceml.mark("x", wrong)
    except TypeError as error:
        print(error)
with traceml.scope(42, np.int64(3), out=torch.ones(2), password=123456789):
    traceml.mark(np.str_("token"), np.str_("hunter2secret"))
    traceml.mark("password", 123456789)
    traceml.mark("password", 1234567.5)
loader = traceml.batches(DataLoader(list(range(8)), batch_size=2, shuffle=True))
print(loader.batch_size, len(loader))
iterator = iter(loader)
torch.rand(1)
print(next(iterator))
"""

THREADS = """
import threading, traceml_agent as traceml
barrier = threading.Barrier(8)
def work():
    barrier.wait()
    for _ in range(2):
        with traceml.scope("work"):
            pass
threads = [threading.Thread(target=work) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
print(traceml.trace("dict")["span_count"])
"""

LATE = """
import torch, traceml_agent as traceml
traceml.init(output="none")
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for _ in range(20):
    optimizer.zero_grad()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
"""

FREED = """
import torch, traceml_agent as traceml
model = torch.nn.Linear(64, 64)
traceml.watch(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for _ in range(20):
    optimizer.zero_grad()
    model(torch.ones(2, 64)).sum().backward()
    optimizer.step()
model.weight.untyped_storage().resize_(0)
print("done")
"""


def test_odd_calls_and_models_do_the_same_and_no_secret_is_written(tmp_path):
    script = write(tmp_path, ODD)
    off = run(tmp_path, script, enabled=False, TRACEML_ENABLE="0")
    assert off.returncode == 0, off.stderr
    on = run(tmp_path, script, TRACEML_TEST_RAISE="1")
    assert (on.returncode, on.stdout) == (0, off.stdout), on.stderr
    written = b"".join(path.read_bytes() for path in on.run_dir.iterdir() if path.is_file())
    assert b"again" in written
    for secret in (b"123456789", b"1234567.5", b"hunter2secret"):
        assert secret not in written


def test_the_first_scopes_of_several_threads_are_kept(tmp_path):
    assert run(tmp_path, write(tmp_path, THREADS)).stdout == "16\n"


def test_outputs_that_come_with_a_late_init_count(tmp_path):
    result = run(tmp_path, write(tmp_path, LATE))
    assert (result.returncode, result.run_dirs) == (0, [])


def test_weights_whose_memory_was_freed_are_left_alone(tmp_path):
    result = run(tmp_path, write(tmp_path, FREED))
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr
