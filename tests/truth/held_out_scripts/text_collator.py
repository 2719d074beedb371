"""A transformer that is trained on dicts, as Hugging Face's examples are; the collator is slow."""

import json
import random
import sys
import time
from types import SimpleNamespace

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

VOCABULARY = 2000
LENGTH = 24


class Comments(Dataset):
    def __init__(self, count):
        rng = random.Random(11)
        self.rows = [
            {
                "text": " ".join(str(rng.randrange(VOCABULARY)) for _ in range(LENGTH)),
                "label": i % 2,
            }
            for i in range(count)
        ]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class DataCollatorWithPadding:
    def __init__(self, spell_check):
        self.spell_check = spell_check
        self.known = [str(i) for i in range(VOCABULARY)]
        self.lost_s = 0.0

    def __call__(self, features):
        words = [feature["text"].split() for feature in features]
        if self.spell_check:
            begun = time.perf_counter()
            words = [[self.known[self.known.index(word)] for word in row] for row in words]  # FAULT
            self.lost_s += time.perf_counter() - begun
        return {
            "input_ids": torch.tensor([[int(word) for word in row] for row in words]),
            "attention_mask": torch.ones(len(words), LENGTH, dtype=torch.long),
            "labels": torch.tensor([feature["label"] for feature in features]),
        }


class Classifier(nn.Module):
    def __init__(self, width=128):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        layer = nn.TransformerEncoderLayer(width, 4, 256, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2)

    def forward(self, input_ids, attention_mask, labels):
        hidden = self.encoder(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)
        logits = self.head(hidden.mean(dim=1))
        return SimpleNamespace(loss=nn.functional.cross_entropy(logits, labels), logits=logits)


def main():
    torch.manual_seed(0)
    steps, batch_size = 330, 20
    collator = DataCollatorWithPadding(spell_check=sys.argv[1] == "fault")
    loader = DataLoader(Comments(steps * batch_size), batch_size=batch_size, collate_fn=collator)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (steps + 1))
    model.train()
    begun = time.perf_counter()
    for batch in loader:
        batch = {name: value.to("cpu") for name, value in batch.items()}
        outputs = model(**batch)
        outputs.loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    train_s = time.perf_counter() - begun
    print(json.dumps({"lost_s": collator.lost_s, "train_s": train_s, "steps": steps}))


if __name__ == "__main__":
    main()
