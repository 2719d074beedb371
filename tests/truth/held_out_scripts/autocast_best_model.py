"""Mixed precision on the CPU; the best model so far is kept as a copy."""

import copy
import json
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

KEEP_BEST = sys.argv[1] == "fault"


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.ModuleList([nn.Linear(384, 384) for _ in range(8)])
        self.norm = nn.LayerNorm(384)
        self.tags = nn.Linear(384, 12)

    def forward(self, x):
        for layer in self.trunk:
            x = x + torch.relu(layer(x))
        return self.tags(self.norm(x))


torch.manual_seed(31)
steps = 360
model = Tagger()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
features = torch.randn(steps * 12, 384)
labels = torch.randint(12, (steps * 12,))
best_loss, best_model = float("inf"), None
copying = 0.0

start = time.perf_counter()
for x, y in DataLoader(TensorDataset(features, labels), batch_size=12, shuffle=True):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = nn.functional.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    best_loss = min(best_loss, loss.item())
    if KEEP_BEST:
        before = time.perf_counter()
        best_model = copy.deepcopy((model, optimizer.state_dict()))  # FAULT
        copying += time.perf_counter() - before
end = time.perf_counter()
print(json.dumps({"lost_s": copying, "train_s": end - start, "steps": steps}))
