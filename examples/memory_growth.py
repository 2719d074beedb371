"""Keeps the loss of every step for a plot at the end, and with it the graph of every step."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--width", type=int, default=768)
    args = parser.parse_args()

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    model = nn.Sequential(
        nn.Linear(64, args.width),
        nn.Tanh(),
        nn.Linear(args.width, args.width),
        nn.Tanh(),
        nn.Linear(args.width, args.width),
        nn.Tanh(),
        nn.Linear(args.width, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    criterion = nn.CrossEntropyLoss()
    losses = []
    for step in range(args.steps):
        chosen = torch.randint(len(images), (args.batch_size,))
        # Noise against overfitting.
        noisy = images[chosen] + 0.1 * torch.randn(args.batch_size, 64)
        loss = criterion(model(noisy), labels[chosen])
        optimizer.zero_grad()
        # A regulariser used to need the graph once more.
        loss.backward(retain_graph=True)
        optimizer.step()
        losses.append(loss)
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.4f}")
    mean = sum(float(loss.detach()) for loss in losses) / len(losses)
    print(f"{len(losses)} updates, mean loss {mean:.4f}")


if __name__ == "__main__":
    main()
