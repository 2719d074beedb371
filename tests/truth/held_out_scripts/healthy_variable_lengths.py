"""A GRU on sentences of many lengths: longer batches take longer, and that is all."""

import json
import random
import time

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset


class Sentences(Dataset):
    def __init__(self, count):
        rng = random.Random(83)
        self.tokens = [torch.randint(500, (rng.randint(8, 20),)) for _ in range(count)]

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return self.tokens[index], index % 3


def pad(samples):
    tokens, labels = zip(*samples, strict=True)
    lengths = torch.tensor([len(t) for t in tokens])
    return pad_sequence(tokens, batch_first=True), lengths, torch.tensor(labels)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(500, 128)
        self.gru = nn.GRU(128, 256, batch_first=True)
        self.out = nn.Linear(256, 3)

    def forward(self, tokens, lengths):
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        _, last = self.gru(packed)
        return self.out(last[0])


def main():
    torch.manual_seed(83)
    steps = 150
    loader = DataLoader(Sentences(steps * 16), batch_size=16, collate_fn=pad, shuffle=True)
    model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    begun = time.perf_counter()
    for tokens, lengths, labels in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens, lengths), labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    train_s = time.perf_counter() - begun
    print(json.dumps({"lost_s": 0.0, "train_s": train_s, "steps": steps}))


if __name__ == "__main__":
    main()
