"""Keeps the metadata of all samples in dicts, and calls the collector to be on the safe side."""

import gc
import json
import sys
import time

import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset


class Catalogue(Dataset):
    def __init__(self, length):
        self.length = length
        self.entries = [{"id": [i], "tags": [str(i), str(i % 7)]} for i in range(60_000)]

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        entry = self.entries[index * 13 % len(self.entries)]
        number = entry["id"][0]
        return {"x": torch.full((64,), number / 60_000), "y": number % 9}


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x):
        return x + self.inner(x)


def free_memory():
    gc.collect()  # FAULT


torch.manual_seed(59)
STEPS, EVERY = 480, 20
model = nn.Sequential(nn.Linear(64, 800), Residual(800), Residual(800), nn.Linear(800, 9))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
loader = DataLoader(Catalogue(STEPS * 64), batch_size=64)
lost = 0.0
step = 0
t0 = time.perf_counter()
for batch in loader:
    loss = nn.functional.cross_entropy(model(batch["x"]), batch["y"])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    step += 1
    if sys.argv[1] == "fault" and step % EVERY == 0:
        t = time.perf_counter()
        free_memory()
        lost += time.perf_counter() - t
print(json.dumps({"lost_s": lost, "train_s": time.perf_counter() - t0, "steps": step}))
