"""Names its parts for torch's profiler, and validates every 20 steps."""

import json
import sys
import time

import torch
from torch import nn
from torch.profiler import record_function
from torch.utils.data import DataLoader, TensorDataset

EVAL_EVERY = 20


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.tower = nn.Sequential(
            nn.Linear(300, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 64)
        )

    def forward(self, left, right):
        return nn.functional.cosine_similarity(self.tower(left), self.tower(right))


def pairs(count):
    left = torch.randn(count, 300)
    return TensorDataset(left, left + torch.randn(count, 300), torch.rand(count))


def main():
    torch.manual_seed(47)
    validate = sys.argv[1] == "fault"
    model = Siamese()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    training = DataLoader(pairs(420 * 64), batch_size=64)
    held_back = list(DataLoader(pairs(20 * 64), batch_size=64))
    lost = 0.0
    begun = time.perf_counter()
    for step, (left, right, target) in enumerate(training, 1):
        with record_function("forward"):
            loss = (model(left, right) - target).square().mean()
        with record_function("backward"):
            optimizer.zero_grad()
            loss.backward()
        with record_function("update"):
            optimizer.step()
        if validate and step % EVAL_EVERY == 0:
            with record_function("validate"), torch.no_grad():
                before = time.perf_counter()
                model.eval()
                scores = [(model(a, b) - t).square().mean() for a, b, t in held_back]  # FAULT
                model.train()
                lost += time.perf_counter() - before
                print(f"step {step}: {torch.stack(scores).mean():.4f}")
    took = time.perf_counter() - begun
    print(json.dumps({"lost_s": lost, "train_s": took, "steps": step}))


if __name__ == "__main__":
    main()
