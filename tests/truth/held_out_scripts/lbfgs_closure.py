"""LBFGS, which calls the loss several times a step; each call is written to a JSON log."""

import json
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Fit:
    def __init__(self, log):
        self.log = log
        self.lost_s = 0.0
        self.net = nn.Sequential(nn.Linear(8, 96), nn.Tanh(), nn.Linear(96, 96), nn.Tanh())
        self.last = nn.Linear(96, 1)
        parameters = [*self.net.parameters(), *self.last.parameters()]
        self.optimizer = torch.optim.LBFGS(parameters, lr=0.3, max_iter=4, history_size=5)

    def closure(self):
        self.optimizer.zero_grad()
        residuals = self.last(self.net(self.x)) - self.y
        loss = residuals.square().mean()
        loss.backward()
        if self.log is not None:
            self.write(residuals.detach().flatten().tolist())
        return loss

    def write(self, residuals):
        begun = time.perf_counter()
        self.log.write(json.dumps({"residuals": residuals, "time": time.time()}))  # FAULT
        self.log.flush()
        self.lost_s += time.perf_counter() - begun

    def run(self, loader):
        for self.x, self.y in loader:
            self.optimizer.step(self.closure)


def main():
    torch.manual_seed(37)
    steps = 270
    x = torch.randn(steps * 1500, 8)
    y = x.sin().sum(dim=1, keepdim=True)
    loader = DataLoader(TensorDataset(x, y), batch_size=1500)
    with open("closure.jsonl", "w") as log:
        fit = Fit(log if sys.argv[1] == "fault" else None)
        begun = time.perf_counter()
        fit.run(loader)
        train_s = time.perf_counter() - begun
    print(json.dumps({"lost_s": fit.lost_s, "train_s": train_s, "steps": steps}))


if __name__ == "__main__":
    main()
