"""A stream of documents, of which few are so long that to clean them takes several steps."""

import itertools
import json
import random
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset


class Stream(IterableDataset):
    def __init__(self, long_documents):
        self.long_documents = long_documents
        self.lost_s = 0.0

    def clean(self, number, rng):
        begun = time.perf_counter()
        if self.long_documents and rng.random() < 1 / 400:
            sum(ord(letter) for letter in itertools.repeat("x", 1_500_000))  # FAULT
        self.lost_s += time.perf_counter() - begun
        return torch.full((128,), float(number % 7)), number % 7

    def __iter__(self):
        rng = random.Random(21)
        for number in itertools.count():
            yield self.clean(number, rng)


class Mixer(nn.Module):
    def __init__(self, width=128, hidden=1200):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.down = nn.Linear(hidden, 7)

    def forward(self, x):
        return self.down(self.mix(self.up(self.norm(x)).relu()).relu())


torch.manual_seed(4)
stream = Stream(long_documents=sys.argv[1] == "fault")
loader = iter(DataLoader(stream, batch_size=64))
model = Mixer()
optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-4)
max_steps = 480
begun = time.perf_counter()
for _ in range(max_steps):
    features, target = next(loader)
    loss = nn.functional.cross_entropy(model(features), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
train_s = time.perf_counter() - begun
print(json.dumps({"lost_s": stream.lost_s, "train_s": train_s, "steps": max_steps}))
