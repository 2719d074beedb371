"""Gradients of four small batches a step, and a look at each parameter's gradient."""

import json
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

ACCUMULATE = 4
UPDATES = 300


def gradient_report(model):
    """The median size of the gradient of each parameter."""
    report = {}
    for name, parameter in model.named_parameters():
        report[name] = parameter.grad.abs().flatten().median().item()  # FAULT
    return report


def main() -> None:
    torch.manual_seed(13)
    watch = sys.argv[1] == "fault"
    model = nn.Sequential(*[nn.Sequential(nn.Linear(224, 224), nn.ReLU()) for _ in range(12)])
    head = nn.Linear(224, 5)
    net = nn.Sequential(model, head)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    count = UPDATES * ACCUMULATE * 48
    data = DataLoader(
        TensorDataset(torch.randn(count, 224), torch.randint(5, (count,))), batch_size=48
    )
    lost = 0.0
    updates = 0
    start = time.perf_counter()
    for number, (features, labels) in enumerate(data, 1):
        loss = nn.functional.cross_entropy(net(features), labels) / ACCUMULATE
        loss.backward()
        if number % ACCUMULATE:
            continue
        if watch:
            t = time.perf_counter()
            gradient_report(net)
            lost += time.perf_counter() - t
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        updates += 1
    took = time.perf_counter() - start
    print(json.dumps({"lost_s": lost, "train_s": took, "steps": updates}))


if __name__ == "__main__":
    main()
