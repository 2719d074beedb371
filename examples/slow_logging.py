"""Writes statistics of every parameter to disk after each step, and waits for the disk."""

import argparse
import json
import os
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def log_parameters(model: nn.Module, step: int, path: Path) -> None:
    """Appends a line with a summary and a histogram of each parameter."""
    record: dict[str, object] = {"step": step}
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        record[name] = {
            "mean": values.mean().item(),
            "std": values.std().item(),
            "histogram": torch.histc(values, 64).tolist(),
            "largest": sorted(values.abs().flatten().tolist())[-10:],
        }
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
        file.flush()
        os.fsync(file.fileno())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()

    torch.manual_seed(0)
    digits = load_digits()
    dataset = TensorDataset(
        torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    )
    loader = DataLoader(dataset, batch_size=args.batch_size, shuffle=True)
    model = nn.Sequential(
        nn.Linear(64, 512),
        nn.ReLU(),
        nn.Linear(512, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    criterion = nn.CrossEntropyLoss()
    log = Path(tempfile.mkdtemp(prefix="logging-")) / "parameters.jsonl"
    updates = 0
    for epoch in range(args.epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            updates += 1
            log_parameters(model, updates, log)
        print(f"epoch {epoch}: loss {loss.item():.4f}")
    print(f"{updates} updates")


if __name__ == "__main__":
    main()
