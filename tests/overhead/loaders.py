"""What looking into the workers costs: a batch in the worker, its thread, and the training thread.

`python tests/overhead/loaders.py` prints medians of many short rounds, in microseconds.
"""

import os
import statistics
import threading
import time
from collections import deque
from pathlib import Path

from traceml_agent.capture.board import new_board
from traceml_agent.capture.loader_log import LoaderLog
from traceml_agent.capture.loaders import Facts, Iteration
from traceml_agent.capture.worker import WorkerClock

ROUNDS, BATCHES = 200, 100
WATCHED_S = 10
FACTS = Facts("Images", 1, False, 2, 4, 2, False, False, True, "fork", "RandomSampler")


def per_call_us(call):
    """Median over the rounds of the time of one call."""
    found = []
    for _ in range(ROUNDS):
        begun = time.perf_counter_ns()
        for number in range(BATCHES):
            call(number)
        found.append((time.perf_counter_ns() - begun) / BATCHES / 1e3)
    return statistics.median(found)


def in_worker():
    """One batch: two clocks twice, the sums, the row; collate aside, which is 0.4 us more."""
    slot = new_board(1, 0, inherited=True).slots[0]
    worker = WorkerClock(lambda: slot, 0.0)
    task = (0, [])

    def batch(number):
        worker.received(task)
        worker.finished(None)

    return per_call_us(batch)


def in_training():
    """What `next()` of a DataLoader does more: a look-up, and one tuple."""
    iteration = Iteration(None, 0, True)
    live = {id(iteration): iteration}
    tracker = threading.local()
    tracker.since = 1

    class Iterator:
        _rcvd_idx = 1

    iterator = Iterator()
    live[id(iterator)] = iteration

    def ask(_):
        asked = tracker.since
        found = live.get(id(iterator))
        if found is not None:
            number = iterator._rcvd_idx if found.has_workers else 0
            found.asks.append((found.epoch, number - 1, asked, tracker.since))

    return per_call_us(ask)


def in_agent_thread():
    """Joining one batch that was asked for with the one that was made."""
    log = LoaderLog(0, FACTS)
    iteration = Iteration(log, 0, True)
    iteration.board = new_board(2, 0, inherited=True)
    iteration.asks = deque(maxlen=100_000)
    slots, found = iteration.board.slots, []
    for turn in range(50):
        for number in range(turn * 400, turn * 400 + 400):
            slots[number % 2].push((0, number, number, 1, 0, 0))
            iteration.asks.append((0, number, number, number + 2))
        begun = time.perf_counter_ns()
        log.take(iteration)
        found.append((time.perf_counter_ns() - begun) / 400 / 1e3)
    return statistics.median(found)


def of_worker_thread():
    """CPU time of the thread of a worker that is always at work, in percent of a core."""
    slot = new_board(1, 0, inherited=True).slots[0]
    worker = WorkerClock(lambda: slot, 20.0)
    worker.received((0, []))
    before = set(os.listdir("/proc/self/task"))
    worker.handed_on()
    time.sleep(0.5)
    (thread,) = set(os.listdir("/proc/self/task")) - before

    def cpu_s():
        return int(Path(f"/proc/self/task/{thread}/schedstat").read_text().split()[0]) / 1e9

    begun, at = cpu_s(), time.perf_counter()
    total = 0
    while time.perf_counter() - at < WATCHED_S:
        total += sum(range(1000))
    return 100 * (cpu_s() - begun) / (time.perf_counter() - at)


if __name__ == "__main__":
    print(f"a batch in the worker       {in_worker():6.2f} us")
    print(f"next() in the training      {in_training():6.2f} us")
    print(f"a batch in the agent thread {in_agent_thread():6.2f} us")
    print(f"the thread of a worker      {of_worker_thread():6.3f} % of a core")
