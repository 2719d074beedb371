"""The patches of the hot path, out and in again inside one process, and what that tells."""

import random
import statistics

import torch
import torch.optim.optimizer as optimizers
from torch.utils.data import dataloader

from traceml_agent.capture.session import SESSION


class Patches:
    """Takes the patches of the hot path out and puts them back."""

    def __init__(self, *further):
        """`further`: pairs of an owner and a name that are patched too."""
        self.places = [
            (dataloader._BaseDataLoaderIter, "__next__"),
            (torch.autograd, "backward"),
            # The forward patch has moved to the types of the outermost models.
            *((root, "__call__") for root in SESSION.discovery.roots if "__call__" in vars(root)),
            *further,
        ]
        self.patched = [vars(owner)[name] for owner, name in self.places]
        self.originals = [original_of(function) for function in self.patched]
        self.before = dict(optimizers._global_optimizer_pre_hooks)
        self.after = dict(optimizers._global_optimizer_post_hooks)

    def put(self, on):
        functions = self.patched if on else self.originals
        for (owner, name), function in zip(self.places, functions, strict=True):
            setattr(owner, name, function)
        optimizers._global_optimizer_pre_hooks.clear()
        optimizers._global_optimizer_post_hooks.clear()
        if on:
            optimizers._global_optimizer_pre_hooks.update(self.before)
            optimizers._global_optimizer_post_hooks.update(self.after)


def original_of(function):
    names = function.__code__.co_freevars
    return function.__closure__[names.index("original")].cell_contents


def difference(off, on, rounds=1000):
    """The median of on minus off, block by block, and the middle 95 % of it under resampling.

    Blocks that follow each other share the mood of the machine; medians of all blocks do not.
    """
    pairs = [after - before for before, after in zip(off, on, strict=True)]
    medians = sorted(statistics.median(random.choices(pairs, k=len(pairs))) for _ in range(rounds))
    low, high = medians[round(0.025 * rounds)], medians[round(0.975 * rounds)]
    return statistics.median(pairs), low, high
