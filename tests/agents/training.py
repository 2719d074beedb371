"""A small training, with queries to a database.

Arguments: exit code, batches a loop, seconds of work in Python, and a worker count for each loop.
"""

import hashlib
import sqlite3
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def main(code, batches, busy_s, *worker_counts):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = TensorDataset(torch.randn(4 * batches, 16), torch.randint(0, 4, (4 * batches,)))
    database = sqlite3.connect(":memory:")
    for workers in worker_counts:
        for inputs, labels in DataLoader(data, batch_size=4, shuffle=True, num_workers=workers):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            optimizer.step()
            print("loss", loss.item())
        database.cursor().execute("select 1")
    until = time.thread_time() + busy_s
    while time.thread_time() < until:
        pass
    parameters = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    print("parameters", hashlib.sha256(parameters).hexdigest())
    print("database", type(database).__module__)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
