#!/usr/bin/env python
"""Trains an autoencoder. Options on the command line, progress by logging."""

import argparse
import json
import logging
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

logger = logging.getLogger("autoencoder")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=("fault", "clean"))
    parser.add_argument("--steps", type=int, default=360)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=29)
    return parser.parse_args()


class Autoencoder(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 32))
        self.decoder = nn.Sequential(nn.Linear(32, width), nn.ReLU(), nn.Linear(width, 784))

    def forward(self, images):
        return self.decoder(self.encoder(images))


def main():
    args = parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s")
    torch.manual_seed(args.seed)
    images = torch.rand(args.steps * args.batch_size, 784)
    loader = DataLoader(TensorDataset(images), batch_size=args.batch_size, drop_last=True)
    model = Autoencoder(args.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr)
    loss_fn = nn.MSELoss()
    lost = 0.0
    begun = time.perf_counter()
    for step, (batch,) in enumerate(loader):
        output = model(batch)
        loss = loss_fn(output, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if args.mode == "fault":
            t = time.perf_counter()
            errors = torch.stack([batch, output, output - batch]).tolist()  # FAULT
            lost += time.perf_counter() - t
            logger.debug("errors %s", errors)
        if step % 30 == 0:
            logger.info("step %d loss %.4f", step, loss.item())
    took = time.perf_counter() - begun
    print(json.dumps({"lost_s": lost, "train_s": took, "steps": args.steps}))


if __name__ == "__main__":
    main()
