"""The programs that the engines start: each trains 12 steps a rank on two ranks."""

STEPS = 12

MPI = """
import os, sys
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

torch.set_num_threads(1)
torch.manual_seed(0)
how, address, port = sys.argv[1:4]
open_mpi = "OMPI_COMM_WORLD_RANK" in os.environ
names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE") if open_mpi else ("PMI_RANK", "PMI_SIZE")
rank, size = (int(os.environ[name]) for name in names)
if how == "variables":
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": port}
    dist.init_process_group("gloo")
else:
    meet = f"tcp://{address}:{port}"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=size)
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
model = nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
data = torch.randn(24 * size, 4)
for inputs in DataLoader(data, batch_size=2, sampler=DistributedSampler(data)):
    optimizer.zero_grad()
    loss = model(inputs).square().mean()
    loss.backward()
    optimizer.step()
    print(f"{rank} {loss.item()}\\n", end="", flush=True)
dist.destroy_process_group()
"""

ACCELERATE = """
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

torch.set_num_threads(1)
torch.manual_seed(0)
accelerator = Accelerator(cpu=True)
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = DataLoader(torch.randn(48, 4), batch_size=2)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for inputs in loader:
    optimizer.zero_grad()
    loss = model(inputs).square().mean()
    accelerator.backward(loss)
    optimizer.step()
    print(f"{accelerator.process_index} {loss.item()}\\n", end="", flush=True)
accelerator.end_training()
"""

DEEPSPEED = """
import deepspeed
import torch
from torch import nn
from torch.utils.data import TensorDataset

torch.set_num_threads(1)
torch.manual_seed(0)
# Collectives in shared memory, in C++ that is compiled for half a minute first.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
deepspeed.init_distributed("gloo")
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
engine, _, loader, _ = deepspeed.initialize(
    model=model,
    model_parameters=model.parameters(),
    training_data=TensorDataset(torch.randn(96, 4)),
    config={
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 2,
        "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
    },
)
for (inputs,) in loader:
    loss = engine(inputs).square().mean()
    engine.backward(loss)
    engine.step()
    print(f"{engine.global_rank} {loss.item()}\\n", end="", flush=True)
"""

RAY = """
import sys, traceback
import ray, yaml
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

runtime_env, runs, out, *endings = sys.argv[1:]


def train(config):
    import ray.train.torch, torch
    from torch import nn
    from torch.utils.data import DataLoader

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    model = ray.train.torch.prepare_model(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(torch.randn(48, 4), batch_size=2)
    losses = []
    for inputs in ray.train.torch.prepare_data_loader(loader):
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if config["how"] == "badly" and len(losses) == 5:
            raise ValueError("the fifth")
    rank = ray.train.get_context().get_world_rank()
    open(f"{config['out']}.{rank}", "w").write(repr(losses))


environment = None
if runtime_env:
    environment = yaml.safe_load(open(runtime_env))
    environment.pop("pip")  # the agent is installed here
    environment["env_vars"]["TRACEML_DIR"] = runs
ray.init(num_cpus=3, include_dashboard=False, log_to_driver=True, runtime_env=environment)
for how in endings:
    trainer = TorchTrainer(
        train,
        train_loop_config={"how": how, "out": out},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=f"{out}-{how}", name=how),
    )
    try:
        trainer.fit()
        print(how, "done")
    except Exception:  # that of the training is its text, or its cause
        print(how, "the fifth" in traceback.format_exc())
"""
