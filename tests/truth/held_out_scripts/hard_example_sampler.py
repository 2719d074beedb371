"""A sampler that picks the hardest examples; two workers read them."""

import json
import random
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

BATCH = 48
STEPS = 360


class HardExamples(Sampler):
    """Batches of indices; sorts all examples by their difficulty for each batch."""

    def __init__(self, count, sort):
        self.difficulty = [random.random() for _ in range(count)]
        self.sort = sort
        self.lost_s = 0.0

    def __len__(self):
        return STEPS

    def __iter__(self):
        count = len(self.difficulty)
        for _ in range(STEPS):
            if not self.sort:
                yield random.sample(range(count), BATCH)
                continue
            begun = time.perf_counter()
            order = sorted(range(count), key=lambda index: self.difficulty[index])  # FAULT
            self.lost_s += time.perf_counter() - begun
            yield random.sample(order[-1000:], BATCH)


class Table(Dataset):
    def __init__(self, count):
        self.rows = torch.randn(count, 40)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        return row, row.sum()


def main():
    random.seed(43)
    torch.manual_seed(43)
    table = Table(20_000)
    sampler = HardExamples(len(table), sort=sys.argv[1] == "fault")
    loader = DataLoader(table, batch_sampler=sampler, num_workers=2)
    model = nn.Sequential(
        nn.Linear(40, 1536), nn.ReLU(), nn.Linear(1536, 1536), nn.ReLU(), nn.Linear(1536, 1)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    begun = time.perf_counter()
    for rows, target in loader:
        optimizer.zero_grad()
        loss = nn.functional.huber_loss(model(rows).squeeze(1), target)
        loss.backward()
        optimizer.step()
    train_s = time.perf_counter() - begun
    print(json.dumps({"lost_s": sampler.lost_s, "train_s": train_s, "steps": STEPS}))


if __name__ == "__main__":
    main()
