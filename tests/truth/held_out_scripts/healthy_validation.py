"""Three epochs, a short validation after each, and the best weights are saved."""

import json
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split


def train_one_epoch(model, loader, optimizer):
    model.train()
    for x, y in loader:
        loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return len(loader)


@torch.no_grad()
def validate(model, loader):
    model.eval()
    return sum(nn.functional.mse_loss(model(x), y).item() for x, y in loader) / len(loader)


def main():
    torch.manual_seed(89)
    x = torch.randn(63 * 64, 100)
    training, validation = random_split(TensorDataset(x, x.cumsum(1)), [60 * 64, 3 * 64])
    model = nn.Sequential(
        nn.Linear(100, 1400), nn.ReLU(), nn.Linear(1400, 1400), nn.ReLU(), nn.Linear(1400, 100)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    best, steps = float("inf"), 0
    begun = time.perf_counter()
    for epoch in range(3):
        steps += train_one_epoch(model, DataLoader(training, 64, shuffle=True), optimizer)
        loss = validate(model, DataLoader(validation, 64))
        schedule.step()
        if loss < best:
            best = loss
            torch.save(model.state_dict(), "best.pt")
        print(f"epoch {epoch}: {loss:.3f}")
    train_s = time.perf_counter() - begun
    print(json.dumps({"lost_s": 0.0, "train_s": train_s, "steps": steps}))


if __name__ == "__main__":
    main()
