"""A dataclass holds the options; the training state is saved every few steps."""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


@dataclass
class Config:
    mode: str
    seed: int = 53
    steps: int = 480
    batch_size: int = 40
    width: int = 1400
    save_every: int = 8
    directory: Path = Path("checkpoints")


@dataclass
class State:
    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    saving_s: float = 0.0


def build(config: Config) -> State:
    torch.manual_seed(config.seed)
    model = nn.Sequential(
        nn.Linear(96, config.width),
        nn.ELU(),
        nn.Linear(config.width, config.width),
        nn.ELU(),
        nn.Linear(config.width, 3),
    )
    return State(model, torch.optim.Adam(model.parameters(), lr=1e-4))


def save(state: State, config: Config) -> None:
    begun = time.perf_counter()
    content = {
        "config": asdict(config),
        "model": state.model.state_dict(),
        "optimizer": state.optimizer.state_dict(),
    }
    torch.save(content, config.directory / f"step-{state.step % 3}.pt")  # FAULT
    state.saving_s += time.perf_counter() - begun


def train(state: State, config: Config) -> None:
    count = config.steps * config.batch_size
    data = TensorDataset(torch.randn(count, 96), torch.randn(count, 3))
    for features, target in DataLoader(data, batch_size=config.batch_size):
        loss = nn.functional.smooth_l1_loss(state.model(features), target)
        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        state.step += 1
        if config.mode == "fault" and state.step % config.save_every == 0:
            save(state, config)


if __name__ == "__main__":
    config = Config(mode=sys.argv[1])
    config.directory.mkdir(exist_ok=True)
    state = build(config)
    begun = time.perf_counter()
    train(state, config)
    train_s = time.perf_counter() - begun
    print(json.dumps({"lost_s": state.saving_s, "train_s": train_s, "steps": state.step}))
