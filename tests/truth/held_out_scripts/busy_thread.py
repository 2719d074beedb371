"""A thread works out statistics in Python while the model trains."""

import json
import sys
import threading
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Statistics(threading.Thread):
    def __init__(self):
        super().__init__(name="statistics", daemon=True)
        self.done = threading.Event()
        self.words = {}

    def run(self):
        number = 0
        while not self.done.is_set():
            number += 1
            if number % 10_000 == 0:
                time.sleep(0.02)
            key = f"word-{number % 5000}"
            self.words[key] = self.words.get(key, 0) + 1  # FAULT


torch.manual_seed(67)
STEPS = 360
statistics = Statistics()
if sys.argv[1] == "fault":
    statistics.start()

layers = []
for _ in range(8):
    layers += [nn.Linear(400, 400), nn.BatchNorm1d(400), nn.ReLU()]
net = nn.Sequential(*layers, nn.Linear(400, 6))
optimizer = torch.optim.Adam(net.parameters(), foreach=False)
dataset = TensorDataset(torch.randn(STEPS * 64, 400), torch.randint(6, (STEPS * 64,)))
begun = time.perf_counter()
for features, labels in DataLoader(dataset, batch_size=64):
    loss = nn.functional.cross_entropy(net(features), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
train_s = time.perf_counter() - begun
statistics.done.set()
print(json.dumps({"lost_s": 0.0, "train_s": train_s, "steps": STEPS}))
