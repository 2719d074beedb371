"""What figures of weights and gradients take from the training thread: 25 million parameters.

Run: TRACEML_ENABLE=1 TRACEML_SUMMARY=0 TRACEML_SNAPSHOTS=stats python -m tests.overhead.snapshots

Blocks with and without snapshots follow in random order inside one process; each block is an epoch
of updates of 60 tensors of 2.5 to 0.1 million elements, whose gradients are there already.
"""

import argparse
import random
import statistics
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import traceml_agent
from tests.overhead.patches import difference
from traceml_agent.capture.session import SESSION
from traceml_agent.spool.digested import read_spool

SIZES = (2_500_000, *[1_000_000] * 9, *[400_000] * 25, *[140_000] * 25)
STEPS = 60
PAUSE_S = 2.0
"""After a block: the other thread is done, and the snapshot written."""


def epoch(optimizer: torch.optim.Optimizer) -> float:
    """CPU time of the training thread in an epoch, in milliseconds: the machine may be busy."""
    begun = time.thread_time()
    for _ in DataLoader(TensorDataset(torch.rand(STEPS)), batch_size=1):
        optimizer.step()
    return (time.thread_time() - begun) * 1e3


def main() -> None:
    """Prints the rows of docs/overhead.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=3)
    arguments = parser.parse_args()
    random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    parameters = [nn.Parameter(torch.randn(size)) for size in SIZES]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.SGD(parameters, lr=1e-6)
    for _ in range(2):  # the first snapshot learns how many steps it needs
        epoch(optimizer)
        time.sleep(PAUSE_S)
    watch = SESSION.snapshots
    if SESSION.recorder is None or watch is None:
        raise SystemExit("run this with TRACEML_ENABLE=1 and TRACEML_SNAPSHOTS=stats")
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(arguments.blocks):
        for is_on in random.sample((True, False), 2):
            SESSION.snapshots = watch if is_on else None
            times[is_on].append(epoch(optimizer))
            SESSION.snapshots = watch
            time.sleep(PAUSE_S)
    traceml_agent.flush()
    taken = read_spool(SESSION.recorder.path).snapshots[2:]
    more, low, high = difference(times[False], times[True])
    count = sum(p.numel() for p in parameters)
    stalls = [found.stall_ns / 1e6 for found in taken]
    longest = [found.longest_stall_ns / 1e6 for found in taken]
    whole = sum(
        all(row.gradient is not None for row in found.tensors)
        and sum(row.elements for row in found.tensors) == count
        for found in taken
    )
    print(
        f"{count / 1e6:.1f} million parameters in {len(SIZES)} tensors, torch {torch.__version__}"
    )
    print(f"CPU of the training thread, {STEPS} steps: {statistics.median(times[False]):.0f} ms")
    print(f"the same with a snapshot: {more:+.0f} ms (95 %: {low:+.0f} to {high:+.0f})")
    print(
        f"wall time of the training thread, a snapshot: {statistics.median(stalls):.1f} ms (most "
        f"{max(stalls):.1f}); at once at most {max(longest):.1f} ms"
    )
    print(f"the other thread: {statistics.median(f.reduced_ns / 1e6 for f in taken):.0f} ms of CPU")
    print(f"{whole} of {len(taken)} snapshots have all weights and gradients")


if __name__ == "__main__":
    main()
