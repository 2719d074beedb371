"""A LightningModule: `TRACEML_ENABLE=1 python examples/lightning_module.py`.

Needs `pip install lightning traceml-agent`. The import hook of the agent sees the Trainer; with
`--by-hand` it is started and its callback given by the script, which counts nothing twice.
"""

import sys

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(pl.LightningModule):
    """A small network on random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 2))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        """The loss of a batch."""
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self.network(inputs), labels)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        """Logs how often the network is right."""
        inputs, labels = batch
        self.log("accuracy", (self.network(inputs).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One for all parameters."""
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def loader(samples: int) -> DataLoader[tuple[torch.Tensor, ...]]:
    """Batches of 8."""
    data = TensorDataset(torch.randn(samples, 16), torch.randint(0, 2, (samples,)))
    return DataLoader(data, batch_size=8)


def main(by_hand: bool) -> None:
    """Three epochs of 12 batches, two batches a step."""
    pl.seed_everything(0)
    callbacks: list[pl.Callback] = [ModelCheckpoint("checkpoints", every_n_train_steps=4)]
    if by_hand:
        from traceml_agent.integrations import lightning

        lightning.init()
        callbacks.append(lightning.TraceMLCallback())
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        accumulate_grad_batches=2,
        val_check_interval=5,
        log_every_n_steps=2,
        logger=CSVLogger("logs"),
        callbacks=callbacks,
        enable_progress_bar=False,
    )
    model = Classifier()
    trainer.fit(model, loader(96), loader(24))
    print("weights", float(sum(parameter.double().sum() for parameter in model.parameters())))
    print("metrics", {name: float(value) for name, value in trainer.callback_metrics.items()})


if __name__ == "__main__":
    main("--by-hand" in sys.argv)
