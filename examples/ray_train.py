"""Ray Train with the agent in the workers of one trainer: `python examples/ray_train.py`.

Needs `pip install "ray[train]" torch traceml-agent`. Without any line of the agent the same is had
by the variables of agent/ray/runtime_env.yaml.
"""

import sys
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig

from traceml_agent.integrations.ray import TraceMLRayConfig, TraceMLTorchTrainer


def train(config: dict[str, Any]) -> None:
    """The loop of one worker."""
    import ray.train.torch
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(0)
    model = ray.train.torch.prepare_model(
        nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 2))
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = TensorDataset(torch.randn(192, 16), torch.randint(0, 2, (192,)))
    for _ in range(config["epochs"]):
        for inputs, labels in ray.train.torch.prepare_data_loader(DataLoader(data, batch_size=8)):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
    ray.train.report({"loss": loss.item()})


def main(runs: str | None = None, storage: str | None = None) -> None:
    """Trains on two workers, and prints where the run is kept."""
    trainer = TraceMLTorchTrainer(
        train,
        train_loop_config={"epochs": 2},
        traceml_config=TraceMLRayConfig(logs_dir=runs),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=storage),
    )
    trainer.fit()
    print("run:", trainer.last_endpoint)


if __name__ == "__main__":
    if not ray.is_initialized():
        ray.init(num_cpus=2, include_dashboard=False)
    main(*sys.argv[1:])
