"""Trains a classifier; its metrics are in a module of their own."""

import json
import sys
from time import perf_counter

import metrics
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(7)
metrics.ENABLED = sys.argv[1] == "fault"

STEPS = 330
BATCH = 128

dataset = TensorDataset(torch.randn(STEPS * BATCH, 64), torch.randint(0, 20, (STEPS * BATCH,)))
model = torch.nn.Sequential(
    torch.nn.Linear(64, 1200),
    torch.nn.Tanh(),
    torch.nn.Linear(1200, 1200),
    torch.nn.Tanh(),
    torch.nn.Linear(1200, 20),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
scores = metrics.TopK(k=5)

start = perf_counter()
for data, target in DataLoader(dataset, batch_size=BATCH):
    optimizer.zero_grad()
    output = model(data)
    loss = F.cross_entropy(output, target)
    loss.backward()
    optimizer.step()
    scores.update(output.detach(), target)
elapsed = perf_counter() - start

print("top-5 accuracy", scores.result())
print(json.dumps({"lost_s": scores.lost_s, "train_s": elapsed, "steps": STEPS}))
