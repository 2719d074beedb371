"""Replays the policy of torch's DataLoader: how long would steps take with other settings?

Each worker makes its batches one after another. Tasks are handed out in turn, `prefetch` for each
worker at first and then one for each batch that the loop takes. In order, the loop waits for the
next batch by number; else it takes whatever is made first, and a task goes to the next worker that
has less than its share. Source: _MultiProcessingDataLoaderIter in torch/utils/data/dataloader.py.

What lies between a worker and the loop (pickling, the queue, pinning) is not replayed. So compare
two replays, never a replay with a measurement.
"""

from collections.abc import Sequence
from heapq import heappop, heappush


def replay(
    batch_ns: Sequence[int],
    main_ns: Sequence[int],
    workers: int,
    prefetch: int = 2,
    in_order: bool = True,
) -> list[int]:
    """How long each step takes: waiting for its batch, and then `main_ns` of its own.

    `batch_ns`: what a worker needs for each batch. Without workers the loop makes it itself. The
    shorter of the two columns says how many steps there are.
    """
    count = min(len(batch_ns), len(main_ns))
    if workers <= 0:
        return [batch_ns[i] + main_ns[i] for i in range(count)]
    if in_order:
        return _in_order(batch_ns, main_ns, count, workers, prefetch)
    return _as_they_come(batch_ns, main_ns, count, workers, prefetch)


def _in_order(
    batch_ns: Sequence[int], main_ns: Sequence[int], count: int, workers: int, prefetch: int
) -> list[int]:
    free = [0] * workers  # when each worker is done with what it has
    ahead = max(1, prefetch) * workers
    steps = [0] * count
    now = begun = 0
    done = [0] * count
    for number in range(min(ahead, count)):
        worker = number % workers
        free[worker] = done[number] = free[worker] + batch_ns[number]
    for number in range(count):
        now = max(now, done[number])
        task = number + ahead  # which is handed out as the loop takes this one
        if task < count:
            worker = task % workers
            free[worker] = done[task] = max(free[worker], now) + batch_ns[task]
        now += main_ns[number]
        steps[number] = now - begun
        begun = now
    return steps


def _as_they_come(
    batch_ns: Sequence[int], main_ns: Sequence[int], count: int, workers: int, prefetch: int
) -> list[int]:
    free = [0] * workers
    has = [0] * workers  # tasks handed out and not taken by the loop
    share = max(1, prefetch)
    made: list[tuple[int, int, int]] = []  # when, task, worker
    steps = [0] * count
    now = begun = task = turn = 0

    def hand_out() -> None:
        nonlocal task, turn
        if task >= count:
            return
        for _ in range(workers):
            worker, turn = turn, (turn + 1) % workers
            if has[worker] < share:
                break
        else:
            return
        has[worker] += 1
        free[worker] = max(free[worker], now) + batch_ns[task]
        heappush(made, (free[worker], task, worker))
        task += 1

    for _ in range(share * workers):
        hand_out()
    for number in range(count):
        done, _, worker = heappop(made)
        now = max(now, done)
        has[worker] -= 1
        hand_out()
        now += main_ns[number]
        steps[number] = now - begun
        begun = now
    return steps
