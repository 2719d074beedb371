"""A loop of one's own with Accelerate: gradient accumulation, validation, a tracker, checkpoints.

pip install accelerate
TRACEML_ENABLE=1 python examples/accelerate_loop.py
TRACEML_ENABLE=1 accelerate launch --num_processes 2 examples/accelerate_loop.py
"""

import tempfile
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 3


class LineTracker(GeneralTracker):
    """Writes each entry to a file."""

    name = "lines"
    requires_logging_directory = False

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def tracker(self) -> Path:
        return self.path

    @on_main_process
    def log(self, values: dict, step: int | None = None, **kwargs) -> None:
        with self.path.open("a") as file:
            file.write(f"{step} {values}\n")


def main() -> None:
    torch.manual_seed(0)
    inputs = torch.randn(64, 16)
    labels = (inputs.sum(1) > 0).long()
    with tempfile.TemporaryDirectory() as directory:
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            gradient_accumulation_steps=3,
            log_with=LineTracker(Path(directory) / "log.txt"),
        )
        accelerator.init_trackers("example")
        model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        training = DataLoader(TensorDataset(inputs[:40], labels[:40]), batch_size=4, shuffle=True)
        validation = DataLoader(TensorDataset(inputs[40:], labels[40:]), batch_size=4)
        model, optimizer, training, validation = accelerator.prepare(
            model, optimizer, training, validation
        )
        updates = 0
        for epoch in range(EPOCHS):
            model.train()
            for batch, wanted in training:
                with accelerator.accumulate(model):
                    loss = nn.functional.cross_entropy(model(batch), wanted)
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()
                    updates += accelerator.sync_gradients
            model.eval()
            right = []
            with torch.no_grad():
                for batch, wanted in validation:
                    hits = model(batch).argmax(1) == wanted
                    right.append(accelerator.gather_for_metrics(hits))
            share = torch.cat(right).float().mean().item()
            accelerator.log({"loss": loss.item(), "accuracy": share}, step=epoch)
            accelerator.save_state(f"{directory}/state-{epoch}")
            accelerator.print(f"epoch {epoch}: {share:.1%} right")
        accelerator.print(f"{updates} updates")
        accelerator.end_training()


if __name__ == "__main__":
    main()
