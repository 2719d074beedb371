"""The digits again, but every image has to be decoded first: about 4 ms of work an item."""

import argparse
import zlib

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

COPIES = 2048
"""Each stored item holds this many copies of its image; decoding averages every other one."""


class PackedDigits(Dataset):
    """Images as compressed bytes, the way many data sets are stored."""

    def __init__(self, items: int) -> None:
        digits = load_digits()
        self.labels = digits.target[:items]
        self.packed = [
            zlib.compress(image.astype("uint8").tobytes() * COPIES, 6)
            for image in digits.images[:items]
        ]

    def __len__(self) -> int:
        return len(self.packed)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return decode(self.packed[index]), int(self.labels[index])


def decode(packed: bytes) -> torch.Tensor:
    """Unpacks an item and averages its copies."""
    raw = zlib.decompress(packed)
    total = [0] * 64
    for start in range(0, len(raw), 64 * 2):
        for pixel, value in enumerate(raw[start : start + 64]):
            total[pixel] += value
    return torch.tensor(total, dtype=torch.float32).view(1, 8, 8) / (16 * COPIES / 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--items", type=int, default=640)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--workers", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(0)
    loader = DataLoader(
        PackedDigits(args.items),
        batch_size=args.batch_size,
        shuffle=True,
        num_workers=args.workers,
    )
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 64, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    updates = 0
    for epoch in range(args.epochs):
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            updates += 1
        print(f"epoch {epoch}: loss {loss.item():.4f}")
    print(f"{updates} updates")


if __name__ == "__main__":
    main()
