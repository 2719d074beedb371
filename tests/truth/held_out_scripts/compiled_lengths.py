"""A compiled function that sees sequences of ever new lengths."""

import json
import random
import sys
import time

import torch
import torch._dynamo
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch._dynamo.config.cache_size_limit = 1000
LONGEST = 120


@torch.compile(backend="eager", dynamic=False)
def pool(sequence):
    weights = torch.softmax(sequence.mean(dim=-1, keepdim=True), dim=1)
    return (sequence * weights).sum(dim=1)


def main(mode):
    random.seed(61)
    torch.manual_seed(61)
    steps = 150
    net = nn.Sequential(nn.Linear(64, 1500), nn.ReLU(), nn.Linear(1500, 1500), nn.ReLU())
    head = nn.Linear(1500, 2)
    optimizer = torch.optim.SGD([*net.parameters(), *head.parameters()], lr=0.01)
    data = TensorDataset(torch.randn(1000, LONGEST, 64), torch.randint(2, (1000,)))
    loader = iter(DataLoader(data, batch_size=40, shuffle=True))
    pool(torch.randn(40, LONGEST, 64))
    known = {LONGEST}
    compiling = 0.0
    begun = time.perf_counter()
    step = 0
    while step < steps:
        batch = next(loader, None)
        if batch is None:
            loader = iter(DataLoader(data, batch_size=40, shuffle=True))
            continue
        sequence, label = batch
        length = random.randint(100, LONGEST) if mode == "fault" else LONGEST
        before = time.perf_counter()
        pooled = pool(sequence[:, :length])  # FAULT
        if length not in known:
            compiling += time.perf_counter() - before
            known.add(length)
        loss = nn.functional.cross_entropy(head(net(pooled)), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    train_s = time.perf_counter() - begun
    print(json.dumps({"lost_s": compiling, "train_s": train_s, "steps": steps}))


if __name__ == "__main__":
    main(sys.argv[1])
