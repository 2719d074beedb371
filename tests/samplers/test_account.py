"""The account of the kernel, read in this process, and the watch over garbage collections."""

import gc
import signal
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import pytest

from traceml_agent.capture.gc_watch import NOTED_EACH, NOTED_NS, GcWatch
from traceml_agent.capture.samplers.account import LOUD_AT_ONCE, Account, thread_cpu_ns
from traceml_agent.capture.samplers.dynamo import DynamoWatch
from traceml_agent.schema.causes import GcTotals
from traceml_agent.spool.account import joined_intervals


def session_of(ident):
    return SimpleNamespace(tracker=SimpleNamespace(owner=ident, step=4), compiled=True)


def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_running_and_waiting_sum_to_no_more_than_the_interval():
    account = Account(session_of(threading.get_ident()))
    account.tick()
    begun = time.thread_time_ns()
    for _ in range(5):
        spin(0.02)
        account.tick()
    ran = time.thread_time_ns() - begun
    account.tick(last=True)
    (record,) = joined_intervals(account.take())
    account.close()
    assert record.source == "schedstat"
    # The kernel books the time on a core at its next tick, 10 ms at most.
    assert sum(record.run_ns) == pytest.approx(ran, abs=25e6)
    assert sum(record.run_ns) + sum(record.delay_ns) <= sum(record.duration_ns) + 25e6


def test_intervals_follow_each_other_and_are_few_while_nothing_happens():
    account = Account(session_of(threading.get_ident()))
    for _ in range(30):
        account.tick()
    account.tick(last=True)
    (record,) = account.take()
    account.close()
    assert len(record.duration_ns) <= 3
    assert account.take() == []


def test_loud_intervals_have_a_budget():
    account = Account(session_of(threading.get_ident()))
    account.tick()
    account._file = file = FakeSchedstat(account._file.read())
    for _ in range(2 * LOUD_AT_ONCE):
        file.delay_ns += 50_000_000
        account.tick()
    account.tick(last=True)
    records = account.take()
    assert sum(len(record.duration_ns) for record in records) <= LOUD_AT_ONCE + 5
    # Beyond the budget they are joined, and nothing is lost.
    assert sum(sum(r.delay_ns) for r in records) == 2 * LOUD_AT_ONCE * 50_000_000


class FakeSchedstat:
    """The file of a thread that waits."""

    def __init__(self, text):
        self.run_ns, self.delay_ns = map(int, text.split()[:2])

    def read(self):
        return f"{self.run_ns} {self.delay_ns} 5"

    def close(self):
        pass


def test_a_kernel_without_schedstat_gives_cpu_time_alone(tmp_path):
    account = Account(session_of(threading.get_ident()), tasks=str(tmp_path))
    account.tick()
    spin(0.03)
    account.tick(last=True)
    (record,) = account.take()
    assert record.source == "thread_time"
    assert record.delay_ns is None and record.throttled_ns is None
    assert sum(record.run_ns) >= 30e6


def test_the_clock_of_a_thread_that_ended_is_none_and_no_crash():
    ids = []
    thread = threading.Thread(target=lambda: ids.append(threading.get_native_id()))
    thread.start()
    thread.join()
    time.sleep(0.05)
    assert thread_cpu_ns(ids[0]) is None
    assert thread_cpu_ns(threading.get_native_id()) == pytest.approx(time.thread_time_ns(), rel=0.1)


def test_the_account_follows_the_thread_that_trains():
    session = session_of(threading.get_ident())
    account = Account(session)
    account.tick()
    account.tick()
    release = threading.Event()
    other = threading.Thread(target=release.wait)
    other.start()
    session.tracker.owner = other.ident
    account.tick()
    account.tick(last=True)
    release.set()
    other.join()
    time.sleep(0.05)
    account.tick()  # the thread has ended: nothing to read, and no error
    account.close()
    assert all(min(record.run_ns) >= 0 for record in account.take())


def test_other_threads_of_python_are_counted_and_the_busiest_is_named():
    account = Account(session_of(threading.get_ident()))
    account.tick()
    begun = threading.Event()

    def work():
        begun.set()
        spin(0.2)

    thread = threading.Thread(target=work, name="pump")
    thread.start()
    begun.wait()
    account._others_look_at = 0
    account.tick()
    time.sleep(0.1)
    account._others_look_at = 0
    account.tick(last=True)
    thread.join()
    account.close()
    (record,) = account.take()[-1:]
    assert record.busiest == "pump"
    assert sum(record.others_run_ns) > 20e6


# Garbage collections


RINGS = 30


def watched(**known):
    facts = {"owner": threading.get_ident(), "step": 3, "phase": -1} | known
    return GcWatch(SimpleNamespace(**facts))


def totals(watch):
    (found,) = [record for record in watch.take() if isinstance(record, GcTotals)]
    return found


def test_collections_are_counted_by_generation_and_thread():
    watch = watched()
    watch.start()
    try:
        gc.collect(0)
        gc.collect(2)
        thread = threading.Thread(target=gc.collect)
        thread.start()
        thread.join()
    finally:
        watch.stop()
    found = totals(watch)
    assert found.count[2] == 1 and found.count[0] >= 1
    assert found.other_count >= 1
    assert not any(callback in gc.callbacks for callback in watch.callbacks)


def test_callbacks_that_the_program_removes_in_part_are_taken_out():
    watch = watched()
    watch.start()
    try:
        gc.callbacks.remove(watch.callbacks[1])
        assert watch.was_removed()
        assert not any(callback in gc.callbacks for callback in watch.callbacks)
    finally:
        watch.stop()


def test_a_pause_has_its_place_its_step_and_its_phase():
    watch = watched(phase=2)
    held = [[number] for number in range(400_000)]
    watch.start()
    try:
        gc.collect()  # the place
    finally:
        watch.stop()
    del held
    (event,) = [found for found in watch.take() if found.kind == "event"]
    assert (event.step, event.detail["phase"], event.detail["generation"]) == (4, "forward", 2)
    code = test_a_pause_has_its_place_its_step_and_its_phase.__code__
    assert event.detail["at"] == f"{code.co_filename}:{code.co_firstlineno + 5}"


def test_no_signal_that_comes_during_a_collection_is_lost():
    class Rung(Exception):
        pass

    def ring(*_):
        raise Rung

    before = signal.signal(signal.SIGALRM, ring)
    held = [[number] for number in range(300_000)]  # a collection takes some 10 ms
    others, gc.callbacks[:] = gc.callbacks[:], []  # those of pytest's plugins do lose signals
    watch, rung = watched(), 0
    watch.start()
    try:
        for _ in range(RINGS):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.001)
                gc.collect()
                time.sleep(0.05)
            except Rung:
                rung += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        watch.stop()
        gc.callbacks[:] = others
        signal.signal(signal.SIGALRM, before)
    del held
    assert rung == RINGS
    pauses = [found for found in watch.take() if found.kind == "event"]
    assert len(pauses) >= RINGS / 2  # else no signal came during one


def test_after_many_pauses_only_longer_ones_are_events(monkeypatch):
    now = [0]
    monkeypatch.setattr("time.perf_counter_ns", lambda: now[0])
    watch = watched()
    _, on_start, on_stop, on_info = watch.callbacks
    for _ in range(5 * NOTED_EACH):
        now[0] += 1
        on_start("start", {"generation": 1})
        now[0] += int(1.5 * NOTED_NS)
        on_stop("stop", {"generation": 1})
        on_info("stop", {"generation": 1})
    found = totals(watch)
    assert found.noted == NOTED_EACH
    assert found.duration_ns[1] == 5 * NOTED_EACH * int(1.5 * NOTED_NS)


# Dynamo


def test_compilations_and_graph_breaks_are_told_once(monkeypatch):
    metrics = SimpleNamespace(
        compile_id="3/1",
        co_name="step",
        co_filename="/home/u/train.py",
        co_firstlineno=12,
        recompile_reason="tensor 'x' size mismatch\n at index 0",
        fail_type=None,
    )
    utils = ModuleType("torch._dynamo.utils")
    utils.get_compilation_metrics = lambda: [metrics]
    utils.counters = {"graph_break": {"print": 2, "item": 5}}
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", utils)
    watch = DynamoWatch(session_of(threading.get_ident()))
    compiled, broken = watch.take()
    assert compiled.detail == {
        "id": "3/1",
        "function": "step",
        "at": "/home/u/train.py:12",
        "reason": "tensor 'x' size mismatch at index 0",
    }
    assert broken.detail == {"count": 7, "reasons": 2, "reason": "item"}
    watch.hurry()
    assert watch.take() == []


def test_a_dynamo_of_another_shape_tells_nothing(monkeypatch):
    utils = ModuleType("torch._dynamo.utils")
    monkeypatch.setitem(sys.modules, "torch._dynamo.utils", utils)
    assert DynamoWatch(session_of(threading.get_ident())).take() == []
