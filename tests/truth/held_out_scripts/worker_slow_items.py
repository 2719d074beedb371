"""Two workers read recordings; few of them come from a slow archive."""

import json
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


def read_recording(index, archive_is_slow):
    if archive_is_slow and index % 210 == 5:
        time.sleep(0.2)  # FAULT
    return torch.sin(torch.arange(400) * (1 + index % 5))


class Recordings(Dataset):
    def __init__(self, length, archive_is_slow):
        self.length = length
        self.archive_is_slow = archive_is_slow

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return read_recording(index, self.archive_is_slow), index % 5


def main():
    torch.manual_seed(79)
    steps, batch_size = 450, 16
    data = Recordings(steps * batch_size, archive_is_slow=sys.argv[1] == "fault")
    loader = DataLoader(data, batch_size=batch_size, num_workers=2)
    model = nn.Sequential(
        nn.Linear(400, 1800), nn.ReLU(), nn.Linear(1800, 1800), nn.ReLU(), nn.Linear(1800, 5)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    begun = time.perf_counter()
    for signal, label in loader:
        loss = nn.functional.cross_entropy(model(signal), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    train_s = time.perf_counter() - begun
    print(json.dumps({"lost_s": 0.0, "train_s": train_s, "steps": steps}))


if __name__ == "__main__":
    main()
