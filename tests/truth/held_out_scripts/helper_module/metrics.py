"""Metrics of a classifier."""

from time import perf_counter

ENABLED = False


class TopK:
    def __init__(self, k):
        self.k = k
        self.hits = 0
        self.seen = 0
        self.lost_s = 0.0

    def update(self, output, target):
        if not ENABLED:
            return
        start = perf_counter()
        for row, label in zip(output, target.tolist(), strict=True):
            best = sorted(range(len(row)), key=lambda i: -row[i].item())[: self.k]  # FAULT
            self.hits += label in best
        self.seen += len(target)
        self.lost_s += perf_counter() - start

    def result(self):
        return self.hits / max(self.seen, 1)
