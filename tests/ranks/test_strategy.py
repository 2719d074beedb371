"""How ranks train together is told from the model, however its wrapper is wrapped."""

from tests.e2e.harness import run, write

WRAPPERS = """
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from traceml_agent.capture.strategy import strategy_of_model

dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))

def net():
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

class Holder(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.nothing = None
        self.inner = inner

    def modules(self):
        raise RuntimeError("no method of the model is called")

sharded = net()
fully_shard(sharded[1], mesh=mesh)
for model in (
    net(),
    DistributedDataParallel(net()),
    Holder(DistributedDataParallel(net())),
    torch.compile(DistributedDataParallel(net()), backend="eager"),
    sharded,
    Holder(nn.ModuleList([sharded])),
    FullyShardedDataParallel(net(), device_id=torch.device("cpu")),
    Holder(None),
):
    print(strategy_of_model(model))
dist.destroy_process_group()
"""

PLAIN_THEN_WRAPPED = """
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo", init_method="tcp://127.0.0.1:0", rank=0, world_size=1)
critic = nn.Linear(4, 1)
model = DistributedDataParallel(nn.Linear(4, 4))
optimizer = torch.optim.SGD([*model.parameters(), *critic.parameters()], lr=0.1)
for _ in range(8):
    optimizer.zero_grad()
    critic(model(torch.ones(2, 4))).sum().backward()
    optimizer.step()
dist.destroy_process_group()
"""


def test_each_wrapper_is_seen_wherever_it_lies(tmp_path):
    result = run(tmp_path, write(tmp_path, WRAPPERS), enabled=False)
    assert result.returncode == 0, result.stderr
    expected = ["None", "ddp", "ddp", "ddp", "fsdp2", "fsdp2", "fsdp", "None"]
    assert result.stdout.split() == expected


def test_a_training_notes_it_once(tmp_path):
    result = run(tmp_path, write(tmp_path, PLAIN_THEN_WRAPPED))
    assert result.returncode == 0, result.stderr
    events = [event for event in result.spools[0].events if event.name == "strategy"]
    assert [(event.step, event.detail) for event in events] == [(1, {"strategy": "ddp"})]
    assert not result.spools[0].faults
