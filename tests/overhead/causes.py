"""What watching for causes costs: a reading of the account, and a collection with the callback.

Run: python -m tests.overhead.causes
"""

import gc
import statistics
import threading
import time
from types import SimpleNamespace

from traceml_agent.capture.gc_watch import GcWatch
from traceml_agent.capture.samplers.account import Account
from traceml_agent.capture.samplers.causes import TICK_S

READINGS = 200
COLLECTIONS = 2_000
BLOCKS = 11


def account_us() -> float:
    """CPU time of one reading in microseconds, as often as the thread reads."""
    session = SimpleNamespace(tracker=SimpleNamespace(owner=threading.main_thread().ident))
    account = Account(session)  # type: ignore[arg-type]  # all that it looks at
    account.tick()
    spent = 0
    for _ in range(READINGS):
        time.sleep(TICK_S / 5)  # caches are cold again
        begun = time.thread_time_ns()
        account.tick()
        spent += time.thread_time_ns() - begun
        account.take()
    account.close()
    return spent / READINGS / 1e3


def collection_us(watched: bool) -> float:
    """Time of an empty collection of the youngest generation."""
    watch = GcWatch(SimpleNamespace(owner=threading.get_ident(), step=1, phase=-1))  # type: ignore[arg-type]  # all that it looks at
    if watched:
        watch.start()
    begun = time.perf_counter_ns()
    for _ in range(COLLECTIONS):
        gc.collect(0)
    took = time.perf_counter_ns() - begun
    watch.stop()
    return took / COLLECTIONS / 1e3


def main() -> None:
    """Prints the table of docs/overhead.md."""
    reading = account_us()
    pairs = [(collection_us(False), collection_us(True)) for _ in range(BLOCKS)]
    added = statistics.median(on - off for off, on in pairs)
    share = reading / 1e6 / TICK_S
    print(f"| a reading of the account | {reading:.0f} us, {100 * share:.2f} % of a core |")
    print(f"| a collection, added | {added:.1f} us |")


if __name__ == "__main__":
    main()
