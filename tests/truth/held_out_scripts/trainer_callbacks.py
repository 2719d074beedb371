"""A Trainer with callbacks; one of them works out a metric in Python."""

import json
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Callback:
    def on_train_begin(self, trainer): ...

    def on_step_end(self, trainer, outputs, targets): ...

    def on_train_end(self, trainer): ...


class RankingMetric(Callback):
    """Share of pairs of samples that the scores put into the right order."""

    def __init__(self, enabled):
        self.enabled = enabled
        self.lost_s = 0.0
        self.history = []

    def on_step_end(self, trainer, outputs, targets):
        if not self.enabled:
            return
        begun = time.perf_counter()
        scores = outputs[:, 0].tolist()
        right = [[a > b for a in scores for b in scores] for _ in range(16)]  # FAULT
        self.lost_s += time.perf_counter() - begun
        self.history.append(len(right))


class LossLog(Callback):
    def __init__(self, every):
        self.every = every

    def on_step_end(self, trainer, outputs, targets):
        if trainer.global_step % self.every == 0:
            print(f"step {trainer.global_step}: loss {trainer.last_loss.item():.4f}")


class Trainer:
    def __init__(self, model, optimizer, callbacks):
        self.model = model
        self.optimizer = optimizer
        self.criterion = nn.CrossEntropyLoss()
        self.callbacks = callbacks
        self.global_step = 0
        self.last_loss = None

    def call(self, hook, *arguments):
        for callback in self.callbacks:
            getattr(callback, hook)(self, *arguments)

    def training_step(self, batch):
        inputs, targets = batch
        outputs = self.model(inputs)
        self.last_loss = self.criterion(outputs, targets)
        self.optimizer.zero_grad(set_to_none=True)
        self.last_loss.backward()
        self.optimizer.step()
        return outputs.detach()

    def fit(self, loader):
        self.call("on_train_begin")
        self.model.train()
        for batch in loader:
            outputs = self.training_step(batch)
            self.global_step += 1
            self.call("on_step_end", outputs, batch[1])
        self.call("on_train_end")


def main():
    torch.manual_seed(1)
    steps, batch = 360, 96
    inputs = torch.randn(batch * steps, 256)
    loader = DataLoader(
        TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=batch, shuffle=True
    )
    model = nn.Sequential(
        nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 1024), nn.GELU(), nn.Linear(1024, 2)
    )
    metric = RankingMetric(enabled=sys.argv[1] == "fault")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    trainer = Trainer(model, optimizer, [metric, LossLog(every=40)])
    begun = time.perf_counter()
    trainer.fit(loader)
    train_s = time.perf_counter() - begun
    print(json.dumps({"lost_s": metric.lost_s, "train_s": train_s, "steps": trainer.global_step}))


if __name__ == "__main__":
    main()
