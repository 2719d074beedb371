"""Plain functions and a tuple of state; a CSV log that is flushed each step."""

import csv
import json
import sys
import time
from functools import partial

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset


def make_state(seed):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(32, 64, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(1024, 10),
    )
    return model, torch.optim.Adam(model.parameters(), lr=1e-3)


def compute_loss(model, batch):
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def apply_gradients(optimizer, loss):
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def write_row(writer, file, values):
    started = time.perf_counter()
    writer.writerow(values.view(-1).tolist())  # FAULT
    file.flush()
    return time.perf_counter() - started


def no_row(values):
    return 0.0


def train(state, batches, log_row):
    model, optimizer = state
    lost = 0.0
    for batch in batches:
        loss = compute_loss(model, batch)
        apply_gradients(optimizer, loss)
        lost += log_row(batch[0][:10].detach())
    return lost


def main(mode):
    steps, size = 300, 20
    state = make_state(3)
    images = torch.randn(size * steps, 1, 24, 24)
    labels = torch.randint(10, (size * steps,))
    batches = DataLoader(TensorDataset(images, labels), batch_size=size)
    with open("inputs.csv", "w", newline="") as file:
        log_row = partial(write_row, csv.writer(file), file) if mode == "fault" else no_row
        started = time.perf_counter()
        lost = train(state, batches, log_row)
        took = time.perf_counter() - started
    print(json.dumps({"lost_s": lost, "train_s": took, "steps": steps}))


if __name__ == "__main__":
    main(sys.argv[1])
