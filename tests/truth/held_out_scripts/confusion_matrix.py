"""Counts a confusion matrix, one prediction at a time."""

import json
import sys
import time

import torch
from torch.nn import Conv1d, CrossEntropyLoss, Flatten, Linear, MaxPool1d, Module, ReLU, Sequential
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 6


class Meter:
    def __init__(self):
        self.matrix = [[0] * CLASSES for _ in range(CLASSES)]
        self.seconds = 0.0

    def add(self, predictions, labels):
        start = time.perf_counter()
        for i in range(len(labels)):
            self.matrix[labels[i].item()][predictions[i].argmax().item()] += 1  # FAULT
        self.seconds += time.perf_counter() - start


class Signals(Module):
    def __init__(self):
        super().__init__()
        self.features = Sequential(
            Conv1d(4, 20, 5, padding=2), ReLU(), MaxPool1d(2), Conv1d(20, 20, 5, padding=2), ReLU()
        )
        self.classify = Sequential(Flatten(), Linear(20 * 32, CLASSES))

    def forward(self, signals):
        return self.classify(self.features(signals))


def run_epoch(model, loader, optimizer, meter):
    criterion = CrossEntropyLoss(label_smoothing=0.1)
    steps = 0
    for signals, labels in loader:
        predictions = model(signals)
        loss = criterion(predictions, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if meter is not None:
            meter.add(predictions.detach(), labels)
        steps += 1
    return steps


if __name__ == "__main__":
    torch.manual_seed(73)
    model = Signals()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    data = TensorDataset(torch.randn(60 * 256, 4, 64), torch.randint(CLASSES, (60 * 256,)))
    meter = Meter()
    begun = time.perf_counter()
    steps = 0
    for _ in range(6):
        loader = DataLoader(data, batch_size=256, shuffle=True)
        steps += run_epoch(model, loader, optimizer, meter if sys.argv[1] == "fault" else None)
    train_s = time.perf_counter() - begun
    print(json.dumps({"lost_s": meter.seconds, "train_s": train_s, "steps": steps}))
