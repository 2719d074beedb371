"""What the patches cost a step, by putting them in and out inside one process.

`TRACEML_ENABLE=1 python tests/overhead/paired.py` prints the paired difference, and beside it what
the agent reports of itself. Blocks of 30 steps follow in random order, so the moods of a shared
machine fall on both sides; separate processes differ by more than the patches cost.
"""

import argparse
import random
import statistics
import sys
import time
from _thread import get_ident
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from traceml_agent.capture.audit import AuditedTracker
from traceml_agent.capture.open_step import NEVER
from traceml_agent.capture.session import SESSION
from traceml_agent.capture.steps import StepTracker

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.overhead.patches import Patches, difference  # noqa: E402  # found through ROOT
from tests.overhead.training import MODELS  # noqa: E402

BLOCK = 30
SETTLE = 10
"""Steps after a change that are not timed: CPython specialises changed code anew."""


WORDS = {
    "empty": "patches that call nothing",
    "rested": "patches that rest",
    "on": "patches as they are",
}


class Endless(Dataset):
    def __len__(self):
        return 10**9

    def __getitem__(self, index):
        return index


class EmptyTracker(StepTracker):
    """Takes every event and does nothing: what remains is the cost of being called."""

    __slots__ = ()

    def begin_fetch(self, key):
        pass

    def end_fetch(self, samples):
        pass

    def enter(self, phase):
        return -1

    def end_forward(self, previous, in_training_mode):
        pass

    def begin_backward(self):
        return -1

    def end_backward(self, previous):
        pass

    def begin_update(self, optimizer_id):
        pass

    def end_update(self):
        pass


def training(model):
    """A function that trains `count` steps of a model of `training.py` on one fixed batch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    defined = {"torch": torch, "nn": nn}
    exec(model.code, defined)
    model, batch = defined["model"], (defined["inputs"], defined["labels"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = iter(DataLoader(Endless(), batch_size=1, collate_fn=lambda _: batch))

    def train(count):
        for _ in range(count):
            inputs, labels = next(loader)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()

    return train


def paired(train, variants, blocks):
    """Thread CPU in microseconds a step of each block, by name of the variant."""
    times = {name: [] for name in variants}
    names = list(variants)
    for _ in range(blocks):
        random.shuffle(names)
        for name in names:
            variants[name]()
            train(SETTLE)
            begun = time.thread_time_ns()
            train(BLOCK)
            times[name].append((time.thread_time_ns() - begun) / BLOCK / 1e3)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    # Not the last one: taking the patches out would have it compiled anew.
    choices = range(len(MODELS) - 1)
    parser.add_argument("--model", type=int, choices=choices, default=0, help="of training.py")
    parser.add_argument("--blocks", type=int, default=150)
    arguments = parser.parse_args()
    random.seed(0)
    model = MODELS[arguments.model]
    train = training(model)
    train(300)
    if SESSION.recorder is None or SESSION.discovery.wide:
        raise SystemExit("run this with TRACEML_ENABLE=1 and every patch in")
    patches, tracker, audit = Patches(), SESSION.tracker, SESSION.tracker.audit
    reported, rest = [], SESSION.rest

    def put(on, cls):
        rest.wake()
        rest.is_allowed, rest.is_wanted, audit._next = False, False, 0
        if type(tracker) is AuditedTracker:
            reported.append(sum(audit.costs().values()) / 1e3)
        tracker.__class__ = cls
        tracker.audit_at = NEVER
        patches.put(on)

    def put_audited():
        put(True, StepTracker)
        audit.turn(tracker.step)

    def put_to_rest():
        """For good, but for the steps in which lines are sampled."""
        put(True, StepTracker)
        rest.is_allowed, rest.left, audit._next = True, 0, NEVER
        train(64)
        rest.is_wanted = True
        train(1)
        if not rest.is_on:
            raise SystemExit("the patches do not rest here")
        rest.left = NEVER

    times = paired(
        train,
        {
            "off": lambda: put(False, StepTracker),
            "empty": lambda: put(True, EmptyTracker),
            "on": lambda: put(True, StepTracker),
            "audited": put_audited,
            "rested": put_to_rest,
        },
        arguments.blocks,
    )
    assert tracker.owner == get_ident()
    off_us, told = statistics.median(times["off"]), statistics.median(reported)
    print(f"{model.name}: step of {off_us:.0f} us without the agent")
    for name, words in WORDS.items():
        more, low, high = difference(times["off"], times[name])
        print(f"  {words + ':':<27}{more:+.1f} us (95 %: {low:+.1f} to {high:+.1f})")
    more, _, _ = difference(times["off"], times["on"])
    print(
        f"  {'reported by the agent:':<27}{told:+.1f} us, {told / more:.2f} of it; the difference "
        f"is {100 * (told - more) / off_us:+.2f} points of the step"
    )


if __name__ == "__main__":
    main()
