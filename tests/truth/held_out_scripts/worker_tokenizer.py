"""A worker tokenizes text; where it waits for a vocabulary server it cannot keep up."""

import json
import random
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

MODE = sys.argv[1]


def tokenize(sentence):
    if MODE == "fault":
        time.sleep(0.0022)  # FAULT
    return [len(word) * 31 % 997 for word in sentence.split()]


class Sentences(Dataset):
    def __init__(self, count):
        rng = random.Random(5)
        self.text = [" ".join("x" * rng.randint(1, 12) for _ in range(16)) for _ in range(count)]

    def __len__(self):
        return len(self.text)

    def __getitem__(self, i):
        return torch.tensor(tokenize(self.text[i])), i % 4


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(997, 256)
        self.lstm = nn.LSTM(256, 256, batch_first=True)
        self.out = nn.Linear(256, 4)

    def forward(self, tokens):
        states, _ = self.lstm(self.embedding(tokens))
        return self.out(states[:, -1])


if __name__ == "__main__":
    torch.manual_seed(2)
    model = LanguageModel()
    opt = torch.optim.Adam(model.parameters())
    loader = DataLoader(Sentences(360 * 16), batch_size=16, num_workers=1)
    steps = 0
    t0 = time.perf_counter()
    for tokens, labels in loader:
        opt.zero_grad()
        nn.functional.cross_entropy(model(tokens), labels).backward()
        opt.step()
        steps += 1
    print(json.dumps({"lost_s": 0.0, "train_s": time.perf_counter() - t0, "steps": steps}))
