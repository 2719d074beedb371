"""A small convolutional net on images that are augmented while they are read."""

import json
import random
import sys
import time

import torch
import torch.nn as nn
from torch.utils.data import DataLoader, Dataset

lost_s = 0.0


class Compose:
    def __init__(self, *transforms):
        self.transforms = transforms

    def __call__(self, image):
        for transform in self.transforms:
            image = transform(image)
        return image


def flip(image):
    return image.flip(-1) if random.random() < 0.5 else image


def salt_and_pepper(image):
    """Sets some pixels to black or white, one after the other."""
    global lost_s
    begun = time.perf_counter()
    draw = random.random
    pixels = [p if draw() > 0.05 else float(draw() > 0.5) for p in image.ravel().tolist()]  # FAULT
    noisy = torch.tensor(pixels).view_as(image)
    lost_s += time.perf_counter() - begun
    return noisy


class Images(Dataset):
    def __init__(self, count, transform):
        self.pixels = torch.rand(64, 3, 32, 32)
        self.count = count
        self.transform = transform

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.transform(self.pixels[index % 64]), index % 10


def block(inputs, outputs):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    )


def main():
    random.seed(9)
    torch.manual_seed(9)
    batch_size, steps = 8, 360
    transform = Compose(flip, salt_and_pepper) if sys.argv[1] == "fault" else Compose(flip)
    loader = DataLoader(Images(batch_size * steps, transform), batch_size=batch_size)
    net = nn.Sequential(block(3, 48), block(48, 96), block(96, 96))
    net.extend([nn.Flatten(), nn.Linear(1536, 10)])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    criterion = nn.CrossEntropyLoss()
    begun = time.perf_counter()
    for images, labels in loader:
        optimizer.zero_grad()
        criterion(net(images), labels).backward()
        optimizer.step()
    print(json.dumps({"lost_s": lost_s, "train_s": time.perf_counter() - begun, "steps": steps}))


if __name__ == "__main__":
    main()
