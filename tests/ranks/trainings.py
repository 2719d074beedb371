"""Real trainings of several ranks. Work is sleep, so that few cores carry many ranks."""

DDP = """
import sys, time
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, case = dist.get_rank(), sys.argv[1]
steps = int(sys.argv[2])
SLOW_INPUT = {"input": 3, "buffers": 0}.get(case) == rank
BATCH = 4


class Items(Dataset):
    def __len__(self):
        return steps * BATCH

    def __getitem__(self, index):
        time.sleep((0.002 + 0.020 * SLOW_INPUT) / BATCH)
        return torch.full((16,), float(index % 7)), index % 4


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 4)
        self.norm = nn.BatchNorm1d(4) if case == "buffers" else nn.Identity()

    def forward(self, items):
        time.sleep(0.010 + 0.020 * (case == "compute" and rank == 2 and torch.is_grad_enabled()))
        return self.norm(self.linear(items))


class Slow:
    def __reduce__(self):
        time.sleep(0.150)
        return (int, ())


model = DistributedDataParallel(Net())
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step, (items, labels) in enumerate(DataLoader(Items(), batch_size=BATCH)):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(items), labels).backward()
    optimizer.step()
    if case == "eval" and rank == 0 and step % 20 == 19:
        with torch.no_grad():
            for _ in range(20):
                model.module(items)
    if case == "save" and rank == 1 and step % 20 == 19:
        torch.save(Slow(), "checkpoint.pt")
dist.destroy_process_group()
"""

FSDP2 = """
import time
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, Dataset

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()


class Items(Dataset):
    def __len__(self):
        return 240

    def __getitem__(self, index):
        time.sleep(0.001 + 0.010 * (rank == 1))
        return torch.full((16,), float(index % 7)), index % 4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, items):
        time.sleep(0.005)
        return self.linear(items)


model = nn.Sequential(Block(), Block())
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
for block in model:
    fully_shard(block, mesh=mesh)
fully_shard(model, mesh=mesh)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for items, labels in DataLoader(Items(), batch_size=4):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(items), labels).backward()
    optimizer.step()
dist.destroy_process_group()
"""

OWN_COLLECTIVES = """
import sys, time
import torch
import torch.distributed as dist
from torch import nn

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, case = dist.get_rank(), sys.argv[1]
model = nn.Linear(16, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
model.register_forward_pre_hook(lambda *_: time.sleep(0.010 + 0.020 * (rank == 1)))
for step in range(60):
    optimizer.zero_grad()
    model(torch.ones(8, 16)).sum().backward()
    if case == "together":
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
    optimizer.step()
dist.barrier()
dist.destroy_process_group()
"""
