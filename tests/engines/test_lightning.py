"""PyTorch Lightning under both of its names, and Fabric, as users install them."""

from pathlib import Path
from typing import Any

import pytest

from tests.boot.conftest import REPOSITORY
from tests.e2e.harness import Result, write
from tests.engines.conftest import Engine, assert_one_run, outline, same_lines
from traceml_agent.report.fold import fold
from traceml_agent.schema.records import Steps
from traceml_agent.spool.reader import Spool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # an environment is made first

EXAMPLE = str(REPOSITORY / "examples" / "lightning_module.py")

MANUAL = """
import sys
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

torch.set_num_threads(1)
pl.seed_everything(0, verbose=False)


class Pair(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()

        def closure():
            loss = self.one(batch).square().mean()
            first.zero_grad()
            self.manual_backward(loss)
            return loss

        first.step(closure=closure)
        loss = self.other(self.one(batch).detach()).square().mean()
        second.zero_grad()
        self.manual_backward(loss)
        second.step()
        print(f"{self.global_rank} {loss.item()}\\n", end="", flush=True)

    def validation_step(self, batch, batch_idx):
        self.log("norm", self.one(batch).norm(), sync_dist=True)

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), 0.1) for part in (self.one, self.other)]


trainer = pl.Trainer(
    accelerator="cpu", devices=2, max_epochs=2, num_sanity_val_steps=1,
    strategy="ddp_find_unused_parameters_true",
    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
)
data = torch.randn(24, 4)
trainer.fit(Pair(), DataLoader(data, batch_size=2), DataLoader(data[:8], batch_size=2))
trainer.save_checkpoint("last.ckpt")
"""

AGAIN = """
import inspect
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

torch.set_num_threads(1)
pl.seed_everything(0, verbose=False)
print(inspect.getsource(pl.Trainer.save_checkpoint).split("(")[0])


class Net(pl.LightningModule):
    def __init__(self, bad=None):
        super().__init__()
        self.layer, self.bad = nn.Linear(4, 1), bad

    def training_step(self, batch, batch_idx):
        if batch_idx == self.bad:
            raise ValueError("no loss")
        loss = self.layer(batch).square().mean()
        print(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("norm", self.layer(batch).norm())

    test_step = validation_step

    @torch.enable_grad()
    def on_validation_epoch_end(self):
        probe = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(probe.parameters(), 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            probe(torch.ones(2, 4)).sum().backward()
            optimizer.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.layer.parameters(), 0.1)


data = torch.randn(12, 4)
for bad in (None, None, 2):
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=1, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    net = Net(bad)
    try:
        trainer.fit(net, DataLoader(data, batch_size=2), DataLoader(data, batch_size=2))
        trainer.test(net, DataLoader(data, batch_size=2), verbose=False)
    except ValueError as error:
        print(error)
"""

FABRIC = """
import os
import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader

torch.set_num_threads(1)
devices = int(os.environ["DEVICES"])
fabric = Fabric(accelerator="cpu", devices=devices, loggers=CSVLogger("logs"))
fabric.launch()
fabric.seed_everything(0, verbose=False)
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1))
batches = fabric.setup_dataloaders(DataLoader(torch.randn(24, 4), batch_size=2))
for epoch in range(2):
    for number, inputs in enumerate(batches):
        with fabric.no_backward_sync(model, enabled=number % 2 == 0):
            loss = model(inputs).square().mean()
            fabric.backward(loss)
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()
            fabric.log("loss", loss)
        print(f"{fabric.global_rank} {loss.item()}\\n", end="", flush=True)
    fabric.save("fabric.ckpt", {"model": model})
"""

ACCUMULATED = """
import sys
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

torch.set_num_threads(1)


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        loss = self.layer(batch).square().mean()
        print(f"{self.global_rank} {loss.item()}\\n", end="", flush=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("norm", self.layer(batch).norm(), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.layer.parameters(), 0.1)


if __name__ == "__main__":
    pl.seed_everything(0, verbose=False)
    trainer = pl.Trainer(
        accelerator="cpu", devices=2, max_epochs=2, strategy=sys.argv[1],
        accumulate_grad_batches=4, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )
    data = torch.randn(36, 4)
    trainer.fit(Net(), DataLoader(data, batch_size=2), DataLoader(data[:8], batch_size=2))
"""


def on_and_off(engine: Engine, *command: str, **extra: str) -> Result:
    """The result with the agent on, which printed and computed what it did without."""
    off = engine.run("python", *command, **extra | {"TRACEML_ENABLE": "0"})
    on = engine.run("python", *command, enabled="TRACEML_DIR" not in extra, **extra)
    assert (on.returncode, off.returncode) == (0, 0), on.stderr
    assert same_lines(on.stdout, off.stdout)
    assert on.stdout.strip()
    return on


def events(spool: Spool, name: str, *keys: str) -> list[tuple[Any, ...]]:
    """Of each event of this name its step and these parts of its detail."""
    found = [event for event in spool.events if event.name == name]
    assert all(event.duration_ns for event in found)
    return [(event.step, *(event.detail.get(key) for key in keys)) for event in found]


def counts(spool: Spool) -> tuple[int, int, int]:
    assert spool.end is not None
    return spool.end.steps, spool.end.micro_batches, spool.end.updates


@pytest.mark.parametrize("begun", ["by both", "by hand alone", "by the program"])
def test_a_trainer_has_its_steps_evaluations_checkpoints_and_epochs_once_with_hook_and_callback(
    engine: Engine, tmp_path: Path, begun: str
) -> None:
    extra = {"TRACEML_SKIP": "lightning"} if begun == "by hand alone" else {}
    if begun == "by the program":
        extra = {"TRACEML_DIR": str(tmp_path / "runs")}
    on = on_and_off(engine, EXAMPLE, "--by-hand", **extra)
    (spool,) = on.spools
    assert spool.statuses["lightning"] == spool.statuses["fabric"] == "active"
    assert counts(spool) == (18, 36, 18)
    assert events(spool, "sanity_check", "batches") == [(1, 2)]
    every_five_batches = [(step, "validate", 3) for step in (3, 5, 9, 11, 15, 17)]
    assert events(spool, "eval", "stage", "batches") == every_five_batches
    assert [done for _, done in events(spool, "checkpoint", "steps_done")] == [4, 8, 12, 16]
    (places,) = {at for _, at in events(spool, "checkpoint", "at")}
    assert places.startswith("lightning_module.py:")
    assert events(spool, "epoch", "epoch") == [(6, 0), (12, 1), (18, 2)]
    epochs = [(f"epoch[{number}]", 6, 2) for number in range(3)]
    assert outline(on) == [("evaluation[0]", 0, 1), *epochs]  # first the sanity check
    payload = fold(on.run_dir).payload
    (told,) = payload["run_context"]["frameworks"]
    assert (told["name"], told["steps"], told["epochs"], told["trainings"]) == (
        "lightning",
        18,
        3,
        1,
    )
    assert (told["evaluations"], told["checkpoints"]) == (6, 4)
    assert told["logs"] == 9 + 6  # every second step, each validation
    assert spool.end is not None and spool.end.phase_ns["logging"] > 0
    assert payload["traceml_agent"]["faults"] == []
    # The sanity check belongs to no step; an evaluation is all of it, not the calls of the model.
    assert spool.outside_ns["eval"] > 0
    evaluated = sum(event.duration_ns or 0 for event in spool.events if event.name == "eval")
    assert spool.end is not None
    assert 0 <= spool.end.phase_ns["eval"] - evaluated < 0.2 * evaluated


def test_manual_optimization_with_two_optimizers_and_a_closure_on_two_ranks(
    engine: Engine, tmp_path: Path
) -> None:
    on = on_and_off(engine, write(tmp_path, MANUAL))
    assert_one_run(on, "process group", 12)
    for spool in on.spools:
        assert counts(spool) == (12, 12, 24)
        assert events(spool, "sanity_check", "batches") == [(1, 1)]
        assert events(spool, "eval", "batches") == [(6, 2), (12, 2)]
        assert events(spool, "epoch", "epoch") == [(6, 0), (12, 1)]
        # All ranks are busy with it, not the one alone that writes.
        assert len(events(spool, "checkpoint")) == 1
    assert not (tmp_path / "logs").exists()


def test_each_of_several_trainings_ends_with_its_last_step_and_what_raises_is_none(
    engine: Engine, tmp_path: Path
) -> None:
    """Nor are updates of another model within a validation."""
    on = on_and_off(engine, write(tmp_path, AGAIN))
    assert on.stdout.splitlines()[0].endswith("def save_checkpoint")
    (spool,) = on.spools
    assert counts(spool) == (6 + 6 + 2, 6 + 6 + 2, 6 + 6 + 2)
    assert [count for batch in spool.batches for count in _each(batch)] == [1] * 14
    stages = [stage for _, stage in events(spool, "eval", "stage")]
    assert stages == ["validate", "test"] * 2


def _each(batch: Steps) -> list[int]:
    """Updates of each step."""
    updates = batch.updates
    return [updates] * batch.count if isinstance(updates, int) else updates


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn", "ddp_fork"])
def test_accumulated_batches_of_two_ranks_are_steps_whoever_starts_the_ranks(
    engine: Engine, tmp_path: Path, strategy: str
) -> None:
    """Of 9 batches a rank each epoch has steps of 4, 4 and 1."""
    on = on_and_off(engine, write(tmp_path, ACCUMULATED), strategy)
    spools = [spool for spool in on.spools if spool.end is not None and spool.end.steps]
    assert [spool.header.identity.rank for spool in spools] == [0, 1]
    for spool in spools:
        assert counts(spool) == (6, 18, 6)
        assert events(spool, "eval", "batches") == [(3, 2), (6, 2)]
        assert events(spool, "epoch", "epoch") == [(3, 0), (6, 1)]


def test_a_loop_of_fabric_on_two_ranks_has_the_steps_of_each(
    engine: Engine, tmp_path: Path
) -> None:
    on = on_and_off(engine, write(tmp_path, FABRIC), DEVICES="2")
    assert [counts(spool) for spool in on.spools] == [(6, 12, 6)] * 2
    for spool in on.spools:
        assert [done for _, done in events(spool, "checkpoint", "steps_done")] == [3, 6]
    assert fold(on.run_dir).payload["meta"]["world_size"] == 2


def test_a_loop_of_fabric_has_its_steps_checkpoints_and_logging(
    engine: Engine, tmp_path: Path
) -> None:
    on = on_and_off(engine, write(tmp_path, FABRIC), DEVICES="1")
    (spool,) = on.spools
    assert counts(spool) == (12, 24, 12)
    assert [done for _, done in events(spool, "checkpoint", "steps_done")] == [6, 12]
    (told,) = fold(on.run_dir).payload["run_context"]["frameworks"]
    assert (told["name"], told["logs"], told["checkpoints"]) == ("lightning", 12, 2)
    assert spool.end is not None and spool.end.phase_ns["logging"] > 0
