"""Input pipelines with a known defect, as users write them; none knows the agent.

`python pipelines.py NAME` trains with one. Costs are sleeps, so that the number of cores does not
matter, unless a core or a disk is what is short.
"""

import os
import signal
import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

BATCH = 4
MS = 1e-3


class Images(Dataset):
    """Items of which each costs `item_s`, and some of them `slow_s`."""

    def __init__(self, batches=40, item_s=0.0, slow_s=0.0, slow_every=1 << 30):
        self.count = batches * BATCH
        self.item_s, self.slow_s, self.slow_every = item_s, slow_s, slow_every

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index % self.slow_every == self.slow_every - 1:
            time.sleep(self.slow_s)
        if self.item_s:
            self.decode()
        return torch.full((8,), float(index))

    def decode(self):
        time.sleep(self.item_s)  # the decoder


class Stream(IterableDataset):
    """Each worker gives its share; the first one has one batch less."""

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        for number in range(10 - (info.id == 0)):
            for _ in range(BATCH):
                time.sleep(2 * MS)
                yield torch.full((8,), float(number))


class Objects(Dataset):
    """Batches of many small objects: cheap to get, dear to send."""

    def __init__(self, batches=40):
        self.count = batches * BATCH
        self.words = [str(number) for number in range(100_000)]

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.full((8,), float(index)), self.words


def first_words(items):
    return default_collate([item[0] for item in items]), items[0][1]


class Burning(Images):
    """Items that cost CPU time."""

    def decode(self):
        until = time.thread_time() + self.item_s
        while time.thread_time() < until:
            pass


class Files(Dataset):
    """Parts of a large file that lies on the disk and not in the page cache."""

    PART = 8 << 20

    def __init__(self, path, parts):
        self.path, self.parts = path, parts

    def __len__(self):
        return self.parts

    def __getitem__(self, index):
        fd = os.open(self.path, os.O_RDONLY)
        os.posix_fadvise(fd, index * self.PART, self.PART, os.POSIX_FADV_DONTNEED)
        data = os.pread(fd, self.PART, index * self.PART)
        os.close(fd)
        return torch.full((8,), float(data[0]))


class Raising(Images):
    def __getitem__(self, index):
        if index == 9 * BATCH + 1:
            raise KeyError("no such image")
        return super().__getitem__(index)


class Dying(Images):
    def __getitem__(self, index):
        if index == 9 * BATCH + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


class Uneven(Images):
    """Batches of 4, 24 and 92 ms, 40 in the mean, in an order that never changes."""

    def __getitem__(self, index):
        if index % BATCH == 0:
            time.sleep((4, 4, 92, 24, 92, 24, 40)[index // BATCH * 5 % 7] * MS)
        return torch.full((8,), float(index))


def slow_collate(items):
    time.sleep(40 * MS)
    return default_collate(items)


def raising_collate(items):
    if float(items[0][0]) >= 9 * BATCH:
        raise ValueError("shapes differ")
    return default_collate(items)


def slow_start(worker):
    time.sleep(300 * MS)


def train(loader, own_s=0.0, epochs=1, evaluate=None):
    """The loop; prints what it got."""
    torch.manual_seed(0)
    model = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    total = 0.0
    for _ in range(epochs):
        for batch in loader:
            inputs = batch[0] if isinstance(batch, (list, tuple)) else batch
            optimizer.zero_grad()
            loss = model(inputs).square().mean()
            loss.backward()
            optimizer.step()
            total += float(inputs.sum())
            time.sleep(own_s)
        if evaluate is not None:
            with torch.no_grad():
                for inputs in evaluate:
                    total += float(model(inputs).sum())
    print(f"{total:.6f}", flush=True)


def loader(dataset, workers=2, **settings):
    return DataLoader(dataset, batch_size=BATCH, num_workers=workers, **settings)


def storage():
    path = sys.argv[2]
    return train(DataLoader(Files(path, 12), batch_size=1, num_workers=1), epochs=4)


def starved():
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    train(loader(Burning(batches=24, item_s=5 * MS), workers=4))


def modes(**settings):
    return train(loader(Images(batches=10, item_s=4 * MS), **settings), epochs=3)


def uneven():
    """`uneven WORKERS IN_ORDER`"""
    settings = {} if sys.argv[3] == "in order" else {"in_order": False}
    train(loader(Uneven(batches=120), workers=int(sys.argv[2]), **settings), own_s=10 * MS)


PIPELINES = {
    "uneven": uneven,
    "slow line": lambda: train(loader(Images(item_s=10 * MS)), own_s=5 * MS),
    "slow collate": lambda: train(loader(Images(), collate_fn=slow_collate), own_s=5 * MS),
    "one slow item": lambda: train(
        loader(Images(batches=96, slow_s=600 * MS, slow_every=16 * BATCH), workers=4),
        own_s=10 * MS,
    ),
    "one slow item passed": lambda: train(
        loader(
            Images(batches=96, slow_s=600 * MS, slow_every=16 * BATCH), workers=4, in_order=False
        ),
        own_s=10 * MS,
    ),
    "many objects": lambda: train(
        loader(Objects(), collate_fn=first_words, persistent_workers=True), own_s=2 * MS
    ),
    "main process": lambda: train(loader(Images(item_s=5 * MS), workers=0), own_s=5 * MS),
    "main collate": lambda: train(
        loader(Images(), workers=0, collate_fn=slow_collate), own_s=5 * MS
    ),
    "restarts": lambda: train(
        loader(Images(batches=6), worker_init_fn=slow_start), own_s=20 * MS, epochs=6
    ),
    "healthy": lambda: train(loader(Images(item_s=1 * MS)), own_s=40 * MS),
    "storage": storage,
    "starved": starved,
    "fork": lambda: modes(),
    "spawn": lambda: modes(multiprocessing_context="spawn", persistent_workers=True),
    "forkserver": lambda: modes(multiprocessing_context="forkserver", persistent_workers=True),
    "persistent": lambda: modes(persistent_workers=True),
    "out of order": lambda: modes(in_order=False),
    "stream": lambda: train(loader(Stream())),
    "raising": lambda: train(loader(Raising())),
    "raising collate": lambda: train(loader(Images(), collate_fn=raising_collate)),
    "raising in main": lambda: train(loader(Raising(), workers=0)),
    "raising collate in main": lambda: train(
        loader(Images(), workers=0, collate_fn=raising_collate)
    ),
    "dying": lambda: train(loader(Dying())),
    "evaluation": lambda: train(
        loader(Images(batches=10, item_s=4 * MS)),
        epochs=2,
        evaluate=loader(Images(batches=4, item_s=10 * MS)),
    ),
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    PIPELINES[sys.argv[1]]()
