"""What a scope and a mark cost the thread that makes them, and the one that writes them.

`python tests/overhead/scopes.py` prints the least of 40 blocks of 3,000 each, on the clock of the
wall: the API as a program calls it, two readings of the CPU clock as each scope once made them,
and what the agent's thread takes to turn scopes into lines of a spool.
"""

import time

import traceml_agent as traceml
from traceml_agent import api
from traceml_agent.capture import scopes, span_log
from traceml_agent.spool.format import encode

BLOCKS, CALLS = 40, 3_000


def block_of_scopes() -> float:
    """Nanoseconds a scope."""
    begun = time.perf_counter_ns()
    for number in range(CALLS):
        with traceml.scope("load", number):
            pass
    return (time.perf_counter_ns() - begun) / CALLS


def block_of_marks() -> float:
    """Nanoseconds a mark."""
    with traceml.scope("load"):
        begun = time.perf_counter_ns()
        for number in range(CALLS):
            traceml.mark("loss", number)
        return (time.perf_counter_ns() - begun) / CALLS


def block_of_readings() -> float:
    """Nanoseconds for two readings of the CPU clock."""
    begun = time.perf_counter_ns()
    for _ in range(CALLS):
        time.thread_time_ns()
        time.thread_time_ns()
    return (time.perf_counter_ns() - begun) / CALLS


def block_of_writing(tree: scopes.Tree) -> float:
    """Nanoseconds to write a scope with one mark."""
    tree.fresh.clear()
    for number in range(CALLS):
        with traceml.scope("load", number):
            traceml.mark("loss", 0.5)
    begun = time.perf_counter_ns()
    for record in span_log.take(begun):
        encode(record)
    return (time.perf_counter_ns() - begun) / CALLS


def main() -> None:
    tree = scopes.Tree(100_000)
    scopes.HERE.begin(tree)
    api._HERE.tree = tree
    blocks = {
        "scope": block_of_scopes,
        "mark": block_of_marks,
        "two readings of the CPU clock": block_of_readings,
        "writing a scope with a mark": lambda: block_of_writing(tree),
    }
    found: dict[str, list[float]] = {name: [] for name in blocks}
    for _ in range(BLOCKS):
        for name, measure in blocks.items():
            found[name].append(measure())
    for name, values in found.items():
        print(f"{name}: {min(values) / 1e3:.2f} us")


if __name__ == "__main__":
    main()
