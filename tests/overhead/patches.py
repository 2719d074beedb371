"""The patches of the hot path, out and in again inside one process, and what that tells."""

import random
import statistics

import torch
import torch.optim.optimizer as optimizers
from torch import nn
from torch.utils.data import dataloader


class Patches:
    """Takes the patches of the hot path out and puts them back."""

    def __init__(self, *further):
        """`further`: pairs of an owner and a name that are patched too."""
        self.places = [
            (dataloader._BaseDataLoaderIter, "__next__"),
            (torch.autograd, "backward"),
            (nn.Sequential, "__call__"),  # where the forward patch has moved to
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


def interval(off, on, rounds=1000):
    """The middle 95 % of the difference of medians, on minus off, under resampling of blocks."""
    differences = sorted(
        statistics.median(random.choices(on, k=len(on)))
        - statistics.median(random.choices(off, k=len(off)))
        for _ in range(rounds)
    )
    return differences[round(0.025 * rounds)], differences[round(0.975 * rounds)]
