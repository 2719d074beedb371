"""An average of the weights, and how far the weights are away from it."""

import copy
import json
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Sines(Dataset):
    def __init__(self, count):
        self.phase = torch.rand(count)
        self.time = torch.linspace(0, 6, 200)

    def __len__(self):
        return len(self.phase)

    def __getitem__(self, index):
        return torch.sin(self.time + self.phase[index]), self.phase[index]


class WeightAverage:
    def __init__(self, model, decay=0.99):
        self.decay = decay
        self.model = copy.deepcopy(model).requires_grad_(False)

    def update(self, model):
        torch._foreach_lerp_(
            list(self.model.parameters()),
            [p.detach() for p in model.parameters()],
            1 - self.decay,
        )

    def drift(self, model):
        pairs = list(zip(self.model.parameters(), model.parameters(), strict=True))
        return max((a - b).detach().abs().max().item() for a, b in pairs)  # FAULT


def main():
    mode = sys.argv[1]
    torch.manual_seed(41)
    steps = 300
    model = nn.Sequential(nn.Linear(200, 960), nn.SiLU())
    for _ in range(4):
        model.extend([nn.Linear(960, 400), nn.SiLU(), nn.Linear(400, 960), nn.SiLU()])
    model.append(nn.Linear(960, 1))
    average = WeightAverage(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loader = DataLoader(Sines(steps * 32), batch_size=32)
    lost = 0.0
    started = time.perf_counter()
    for wave, phase in loader:
        loss = (model(wave).squeeze(1) - phase).square().mean()
        model.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(model)
        if mode == "fault":
            before = time.perf_counter()
            average.drift(model)
            lost += time.perf_counter() - before
    elapsed = time.perf_counter() - started
    print(json.dumps({"lost_s": lost, "train_s": elapsed, "steps": steps}))


if __name__ == "__main__":
    main()
