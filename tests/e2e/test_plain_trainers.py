"""Loops as torchtitan and torchtune write them: plain PyTorch, in their own words and order."""

import pytest

from tests.e2e.harness import run, write
from traceml_agent.report.automatic import with_automatic
from traceml_agent.report.fold import fold
from traceml_agent.report.spans import forest, walk
from traceml_agent.spool.digested import read_spool

pytestmark = pytest.mark.slow

TITAN = """
import functools, gc, os
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, IterableDataset
import torch.distributed.checkpoint as dcp

torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
STEPS, ACCUMULATE, SEQUENCE, VOCABULARY = 12, 2, 16, 32


class Tokens(IterableDataset):
    def __iter__(self):
        generator = torch.Generator().manual_seed(rank)
        while True:
            row = torch.randint(VOCABULARY, (SEQUENCE + 1,), generator=generator)
            yield {"input": row[:-1]}, row[1:]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return x + self.down(self.up(self.norm(x)).relu())


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.layers = nn.ModuleDict({str(i): checkpoint_wrapper(Block()) for i in range(2)})
        self.output = nn.Linear(16, VOCABULARY)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers.values():
            x = layer(x)
        return self.output(x)


class Optimizers(torch.optim.Optimizer):
    # A container that is an optimizer itself, of one for each part of the model.
    def __init__(self, parts):
        self.parts = [torch.optim.AdamW(part, lr=1e-2) for part in parts]
        super().__init__([p for part in parts for p in part], {})

    def step(self):
        for part in self.parts:
            part.step()

    def zero_grad(self):
        for part in self.parts:
            part.zero_grad()


class Trainer:
    def __init__(self):
        torch.manual_seed(0)
        gc.disable()
        self.model = Transformer()
        for layer in self.model.layers.values():
            fully_shard(layer)
        fully_shard(self.model)
        parameters = list(self.model.parameters())
        self.optimizers = Optimizers([parameters[:4], parameters[4:]])
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizers.parts[0], lambda step: 1 / (1 + step)
        )
        self.step = 0

    def batches(self, loader):
        iterator = iter(loader)
        while True:
            yield next(iterator)

    def forward_backward(self, inputs, labels):
        logits = self.model(inputs["input"]).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, labels.flatten())
        (loss / ACCUMULATE).backward()
        return loss.detach()

    def train_step(self, batches):
        self.optimizers.zero_grad()
        losses = []
        for micro_batch in range(ACCUMULATE):
            self.model.set_requires_gradient_sync(micro_batch == ACCUMULATE - 1)
            losses.append(self.forward_backward(*next(batches)))
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizers.step()
        self.schedule.step()
        if self.step % 5 == 0:
            loss = torch.stack(losses).mean()
            dist.all_reduce(loss)
            norm = float(norm.full_tensor())
            print(f"{rank} {self.step} {loss.item():.6f} {norm:.6f}\\n", end="")

    @torch.no_grad()
    def validate(self):
        self.model.eval()
        loader = DataLoader(Tokens(), batch_size=2)
        for number, (inputs, labels) in enumerate(loader):
            if number == 3:
                break
            self.model(inputs["input"])
        self.model.train()

    def train(self):
        batches = self.batches(DataLoader(Tokens(), batch_size=4))
        while self.step < STEPS:
            self.step += 1
            if self.step % 4 == 0:
                gc.collect(1)
            self.train_step(batches)
            if self.step % 6 == 0:
                self.validate()
                state = get_model_state_dict(self.model)
                dcp.save({"model": state}, checkpoint_id=f"step-{self.step}")


trainer = Trainer()
trainer.train()
dist.destroy_process_group()
"""


def outline(spool_path):
    """Titles of the roots of the automatic tree, and what of steps and evaluations is in each."""
    spool = read_spool(spool_path, whole=True, spans=True)
    found = []
    for root in forest(with_automatic([], spool, 10_000)):
        names = [row.name for _, _, row in walk([root])]
        found.append((root.name, names.count("step"), names.count("evaluation")))
    return found


def test_a_loop_of_torchtitan_over_sharded_parts_is_counted_exactly(tmp_path):
    script = write(tmp_path, TITAN)
    command = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script)
    off = run(tmp_path, *command, enabled=False)
    on = run(tmp_path, *command)
    assert (on.returncode, off.returncode) == (0, 0), on.stderr
    assert sorted(on.stdout.splitlines()) == sorted(off.stdout.splitlines())
    assert len(on.stdout.splitlines()) == 2 * 2
    for spool in on.spools:
        assert (spool.end.steps, spool.end.micro_batches, spool.end.samples) == (12, 24, 96)
        saved = [event.step for event in spool.events if event.name == "checkpoint"]
        assert saved == [6, 12]
        assert spool.faults == []
    payload = fold(on.run_dir).payload
    assert payload["meta"]["world_size"] == 2
    # One pass without end, and an evaluation that is left after three batches, twice.
    assert [outline(spool.path) for spool in on.spools] == [[("epoch", 12, 2)]] * 2


TUNE = """
import sys
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

torch.set_num_threads(1)
torch.manual_seed(0)
ACCUMULATE, EPOCHS, IGNORED = 3, 2, -100


class Texts(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        tokens = torch.randint(32, (5 + index % 7,), generator=generator)
        return {"tokens": tokens, "labels": tokens.roll(-1)}


def padded(items):
    return {
        key: nn.utils.rnn.pad_sequence([item[key] for item in items], True, value)
        for key, value in (("tokens", 0), ("labels", IGNORED))
    }


class Recipe:
    def __init__(self):
        self.model = nn.Sequential(
            nn.Embedding(32, 16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 0.9**step)
        self.loss = nn.CrossEntropyLoss(ignore_index=IGNORED)
        self.sampler = DistributedSampler(Texts(), num_replicas=1, rank=0, shuffle=True)
        self.loader = DataLoader(Texts(), batch_size=4, sampler=self.sampler, collate_fn=padded)

    def train(self):
        self.optimizer.zero_grad(set_to_none=True)
        running, tokens, step = 0.0, 0, 0
        for epoch in range(EPOCHS):
            self.sampler.set_epoch(epoch)
            for index, batch in enumerate(self.loader):
                batch = {key: value.to("cpu") for key, value in batch.items()}
                counted = (batch["labels"] != IGNORED).sum()
                tokens += counted
                logits = self.model(batch["tokens"]).flatten(0, 1)
                loss = self.loss(logits, batch["labels"].flatten())
                running += loss.detach() * counted
                (loss * counted).backward()
                if (index + 1) % ACCUMULATE == 0 or index + 1 == len(self.loader):
                    for parameter in self.model.parameters():
                        parameter.grad /= tokens
                    torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                    self.optimizer.step()
                    self.optimizer.zero_grad(set_to_none=True)
                    self.schedule.step()
                    step += 1
                    print(step, (running / tokens).item())
                    running, tokens = 0.0, 0
            torch.save(self.model.state_dict(), f"epoch_{epoch}.pt")


Recipe().train()
"""


def test_a_recipe_of_torchtune_is_counted_exactly(tmp_path):
    script = write(tmp_path, TUNE)
    off, on = run(tmp_path, script, enabled=False), run(tmp_path, script)
    assert (on.returncode, on.stdout) == (0, off.stdout), on.stderr
    assert len(on.stdout.splitlines()) == 8
    (spool,) = on.spools
    assert (spool.end.steps, spool.end.micro_batches, spool.end.samples) == (8, 20, 80)
    sizes = [
        n
        for batch in spool.batches
        for n in (
            [batch.micro_batches] * batch.count
            if isinstance(batch.micro_batches, int)
            else batch.micro_batches
        )
    ]
    assert sizes == [3, 3, 3, 1] * 2
    assert outline(spool.path) == [("epoch", 4, 0)] * 2
