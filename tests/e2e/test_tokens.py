"""Tokens a second, from the batches of an unedited training."""

import pytest

from tests.e2e.harness import run, write

TRAIN = """
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

class Text(Dataset):
    def __len__(self):
        return 400
    def __getitem__(self, index):
        ids = torch.full((64,), index % 50)
        return {"input_ids": ids, "labels": ids}

def batches():
    for batch in DataLoader(Text(), batch_size=8):
        yield batch

torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 50))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for batch in batches():
    logits = model(batch["input_ids"])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(loss.item())
"""


def test_tokens_are_counted_and_the_training_computes_the_same(tmp_path):
    (tmp_path / "on").mkdir()
    (tmp_path / "off").mkdir()
    on = run(tmp_path / "on", write(tmp_path / "on", TRAIN))
    off = run(tmp_path / "off", write(tmp_path / "off", TRAIN), enabled=False)
    assert (on.returncode, on.stdout, on.other_stderr) == (0, off.stdout, off.stderr)
    found = on.summary["step_time"]["throughput"]
    assert found["tokens_per_s"] == pytest.approx(64 * found["samples_per_s"])
    assert "tokens/s" in on.stderr
