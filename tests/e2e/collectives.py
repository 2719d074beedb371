"""Trainings that talk: scripts for torchrun on gloo. Each prints what it computed, by rank."""

PROLOGUE = """
import json, os, sys, threading, time, traceback
import torch
import torch.distributed as dist
from torch.distributed import all_reduce
from torch import nn
torch.set_num_threads(1)
torch.manual_seed(0)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
seen = []

def train(steps, talk, module=None):
    module = module or model
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        loss = module(torch.randn(4, 8)).square().mean()
        loss.backward()
        talk(step)
        optimizer.step()
        seen.append(loss.item())
"""
EPILOGUE = """
open(f"seen.{rank}", "w").write(repr(seen))
dist.destroy_process_group()
"""

LATE = """
def talk(step):
    if rank == 1:
        time.sleep(0.05)
    all_reduce(grads)
grads = torch.ones(100)
train(30, talk)
"""

BIG = """
big = torch.ones(4_000_000)
def talk(step):
    dist.barrier()
    begun = time.perf_counter()
    dist.all_reduce(big)
    seen.append(time.perf_counter() - begun)
    big.fill_(1.0)
train(25, talk)
seen = [value for value in seen if isinstance(value, float)][::2]
"""
"""Each rank holds its own watch to the call, which it begins together with the others."""

OVERLAPPED = """
small = torch.ones(100)
def talk(step):
    if rank == 0:
        time.sleep(0.05)
    handle = dist.all_reduce(small, async_op=True)
    if rank == 1:
        time.sleep(0.1)  # work of its own, from before the late rank comes to after it
    handle.wait()
train(25, talk)
"""

DDP = """
class Late(nn.Module):
    def forward(self, x):
        if rank == 1:
            time.sleep(0.05)
        return model(x)
late = Late()
late.model = model
train(30, lambda step: all_reduce(torch.ones(1)), nn.parallel.DistributedDataParallel(late))
"""

HANGING = """
def watchdog():
    while len(seen) < 12:
        time.sleep(0.1)
    time.sleep(2)  # by now the other rank is waited for, inside backward
    os._exit(7)
threading.Thread(target=watchdog, daemon=True).start()

def talk(step):
    if step == 11 and rank == 1:
        time.sleep(60)
train(40, talk, nn.parallel.DistributedDataParallel(model))
"""

SWITCHED_OFF = """
small = torch.ones(1)
def talk(step):
    for _ in range(200):
        dist.all_reduce(small)
    if step == 350:
        time.sleep(5)
train(400, talk)
"""

FSDP = """
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
mesh = init_device_mesh("cpu", (world,))
for layer in (model[0], model[2]):
    fully_shard(layer, mesh=mesh)
fully_shard(model, mesh=mesh)
train(20, lambda step: None)
"""

EVERYTHING = """
import inspect, typing, warnings
def outcome(action):
    try:
        return action()
    except Exception:
        return traceback.format_exc()

def talk(step):
    handle = dist.all_reduce(tensor, async_op=True)
    seen.append((type(handle) is dist.Work, handle.wait(), handle.is_completed()))
    handle.wait()
    objects = [None] * world
    dist.all_gather_object(objects, {"rank": rank, "step": step})
    dist.broadcast(tensor, src=0)
    with dist._coalescing_manager(async_ops=True) as collected:
        for _ in range(2):
            dist.all_reduce(tensor)
    collected.wait()
    dist.barrier()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dist.all_reduce_coalesced([tensor], async_op=True).wait()
    seen.append([(str(w.message), w.filename, w.lineno) for w in caught])
    for _ in range(3):
        dist.all_reduce(spare, async_op=True)  # nobody waits: its id is free for the next handle
    if rank == 0:
        dist.send(tensor, 1)
    elif rank == 1:
        dist.recv(tensor, 0)
    worker = threading.Thread(target=lambda: dist.all_reduce(tensor, group=other))
    worker.start()
    worker.join()
    seen.append((objects, tensor.tolist()))
    seen.append(outcome(lambda: dist.all_reduce(tensor, group=42)))
    seen.append(outcome(lambda: dist.all_reduce("no tensor")))
    seen.append(outcome(lambda: dist.barrier(1, 2, 3, 4, 5)))

for name in ("all_reduce", "barrier", "isend", "monitored_barrier", "all_gather_object"):
    function = getattr(dist, name)
    seen.append((name, typing.get_type_hints(function), inspect.getsource(function)[:200]))
    seen.append((function.__doc__, inspect.getfullargspec(function)))
theirs = dist.reduce_scatter_tensor
dist.reduce_scatter_tensor = lambda *args, **kwargs: theirs(*args, **kwargs)  # patched by the user
seen.append(dist.reduce_scatter_tensor(torch.zeros(2), torch.arange(2.0 * world)))
dist.reduce_scatter_tensor = theirs
tensor, spare = torch.ones(4), torch.ones(1)
other = dist.new_group(list(range(world)))
train(6, talk)
"""

COMPILED = """
import inspect, pickle
from torch._dynamo.utils import counters

def told(what):
    names = ("stats", "recompiles", "frames", "inline_call")
    seen.append((what, {name: dict(counters[name]) for name in names}))
    seen.append(sum(counters["graph_break"].values()))
    counters.clear()
    torch._dynamo.reset()

def reduced(x):
    y = model(x)
    dist.all_reduce(y)
    return y * 2

def gathered(x):
    parts = [torch.zeros(4, 2) for _ in range(world)]
    dist.all_gather(parts, model(x))
    out = torch.zeros(world * 4, 2)
    dist.all_gather_into_tensor(out, model(x))
    return out + torch.cat(parts)

def broken(x):
    y = model(x)
    dist.broadcast(y, 0)
    z = y + 1
    dist.barrier()
    return z * 2

def waited(x):
    y = model(x)
    dist.all_reduce(y, op=dist.ReduceOp.MAX, async_op=True).wait()
    return y * 2

for backend in ("eager", "aot_eager"):
    for function in (reduced, gathered, broken, waited):
        with torch.no_grad():
            compiled = torch.compile(function, backend=backend)
            seen.extend(compiled(torch.ones(4, 8)).tolist() for _ in range(3))
        told(function.__name__)
train(3, lambda step: None)
for name in ("all_reduce", "all_gather_into_tensor", "barrier", "isend", "monitored_barrier"):
    function = getattr(dist, name)
    same = pickle.loads(pickle.dumps(function)) is function is getattr(dist.distributed_c10d, name)
    seen.append((name, same, str(inspect.signature(function)), function.__module__))
seen.append(str(inspect.signature(nn.parallel.DistributedDataParallel)))
"""

SCRIPTS = {
    name: PROLOGUE + body + EPILOGUE
    for name, body in {
        "late": LATE,
        "big": BIG,
        "overlapped": OVERLAPPED,
        "hanging": HANGING,
        "switched off": SWITCHED_OFF,
        "ddp": DDP,
        "fsdp": FSDP,
        "everything": EVERYTHING,
        "compiled": COMPILED,
    }.items()
}
