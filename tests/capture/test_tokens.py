"""Which batches hold sequences of tokens."""

import pytest
import torch

from traceml_agent.capture.patches.dataloader import tokens_in

TEXT = torch.zeros(4, 128, dtype=torch.int64)
IMAGES = torch.zeros(4, 3, 32, 32)


@pytest.mark.parametrize(
    ("batch", "tokens"),
    [
        (TEXT, 512),
        ((TEXT, TEXT), 512),
        ({"attention_mask": TEXT[:, :64], "input_ids": TEXT}, 512),
        ([{"text": TEXT.int()}], 512),
        (IMAGES, None),
        ((IMAGES, torch.zeros(4, dtype=torch.int64)), None),
        (torch.zeros(4, 3, dtype=torch.int64), None),  # three columns of a table
        (torch.zeros(4, 32, 32, dtype=torch.uint8), None),
        ("text", None),
        ([], None),
        ({}, None),
    ],
)
def test_tokens_are_counted_in_sequences_of_integers_alone(batch, tokens):
    assert tokens_in(batch) == tokens
