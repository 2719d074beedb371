"""What noting a collective costs: calls as they are beside calls of torch's own function.

`TRACEML_ENABLE=1 TRACEML_SUMMARY=0 python tests/overhead/collectives.py` prints the paired
difference for a call, and for an async call with the wait for its handle; and beside it what the
agent reports of itself. One process of a group of one on gloo, blocks of 200 calls in random order,
CPU time of the calling thread.
"""

import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from traceml_agent.capture.session import SESSION

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.overhead.patches import original_of  # noqa: E402  # found through ROOT

BLOCKS = 100
CALLS = 200


def block(call) -> float:
    """Microseconds a call."""
    for _ in range(20):
        call()
    begun = time.thread_time_ns()
    for _ in range(CALLS):
        call()
    return (time.thread_time_ns() - begun) / CALLS / 1e3


def compare(name, with_patch, without) -> None:
    pairs = []
    for _ in range(BLOCKS):
        both = {}
        for key in random.sample(("with", "without"), 2):
            both[key] = block(with_patch if key == "with" else without)
        pairs.append((both["without"], both["with"]))
    added = sorted(on - off for off, on in pairs)
    base = statistics.median(off for off, _ in pairs)
    low, high = added[BLOCKS // 4], added[3 * BLOCKS // 4]
    print(f"{name}: {base:.1f} us, added {statistics.median(added):.1f} us ({low:.1f}-{high:.1f})")


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.NamedTemporaryFile() as store:
        dist.init_process_group("gloo", init_method=f"file://{store.name}", rank=0, world_size=1)
    wrapped, plain = dist.all_reduce, original_of(dist.all_reduce)
    waited, plain_wait = dist.Work.wait, original_of(dist.Work.wait)
    tensor = torch.ones(16)
    log = SESSION.collectives.log
    compare("all_reduce", lambda: wrapped(tensor), lambda: plain(tensor))
    noted, cost_ns = log.noted, log.cost_ns
    print(f"  reported: {cost_ns / noted / 1e3:.1f} us a call")
    compare(
        "all_reduce, async, and its wait",
        lambda: waited(wrapped(tensor, async_op=True)),
        lambda: plain_wait(plain(tensor, async_op=True)),
    )
    print(f"  reported: {2 * (log.cost_ns - cost_ns) / (log.noted - noted) / 1e3:.1f} us for both")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
