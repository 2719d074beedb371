"""Remembers the hidden states of all steps, with their graphs, for a plot that nobody makes."""

import json
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(128, 4096)
        self.second = nn.Linear(4096, 256)
        self.head = nn.Linear(256, 8)
        self.history = []
        self.remember = sys.argv[1] == "fault"

    def forward(self, x):
        hidden = torch.relu(self.first(x))
        if self.remember:
            self.history.append(hidden)  # FAULT
        return self.head(torch.relu(self.second(hidden)))


def main():
    torch.manual_seed(71)
    steps, batch_size = 200, 128
    count = steps * batch_size
    loader = DataLoader(
        TensorDataset(torch.randn(count, 128), torch.randint(8, (count,))), batch_size=batch_size
    )
    model = Encoder()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    start = time.perf_counter()
    for x, y in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    train_s = time.perf_counter() - start
    print(json.dumps({"lost_s": 0.0, "train_s": train_s, "steps": steps}))


if __name__ == "__main__":
    main()
