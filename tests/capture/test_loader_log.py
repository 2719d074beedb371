"""The shared memory of workers, and how their batches are joined to those that were asked for."""

import os
from dataclasses import replace

import pytest

from traceml_agent.capture.board import (
    BATCHES,
    COLLATE,
    CPU,
    DELAY,
    FETCH,
    IDLE,
    PID,
    ROWS,
    TEXT_BYTES,
    TEXT_TURN,
    find_slot,
    new_board,
)
from traceml_agent.capture.loader_log import LoaderLog
from traceml_agent.capture.loader_singles import FIRST, is_kept
from traceml_agent.capture.loaders import Facts, Iteration, LoaderWatch
from traceml_agent.capture.worker import WorkerClock

MS = 1_000_000
FACTS = Facts("Images", 1, False, 2, 4, 2, False, False, True, "fork", "RandomSampler")


class Resume:
    """What torch puts into the queue for a new epoch."""


Resume.__name__ = "_ResumeIteration"


def iteration(facts=FACTS, workers=2):
    log = LoaderLog(0, facts)
    found = Iteration(log, 7, facts.workers > 0)
    if facts.workers:
        found.board = new_board(workers, 0, inherited=True)
    found.starts_ns.append(0)
    return log, found


def push(found, worker, number, begun_ms, fetch_ms, epoch=0):
    """A batch that a worker made."""
    slot = found.board.slots[worker]
    slot.set(FETCH, slot.get(FETCH) + fetch_ms * MS)
    slot.push((epoch, number, begun_ms * MS, fetch_ms * MS, 0, 0))


def ask(found, number, asked_ms, came_ms, epoch=0):
    found.asks.append((epoch, number, int(asked_ms * MS), int(came_ms * MS)))


def test_rows_that_were_written_over_are_left_out_and_the_sums_are_whole():
    slot = new_board(1, 0, inherited=True).slots[0]
    for number in range(ROWS + 10):
        slot.push((0, number, number, 1, 0, 0))
    rows = slot.rows(0, slot.get(BATCHES))
    assert [row[1] for row in rows] == list(range(10, ROWS + 10))
    assert slot.get(BATCHES) == ROWS + 10
    assert slot.rows(ROWS + 8, slot.get(BATCHES)) == rows[-2:]


def test_a_text_in_the_making_is_not_read_and_one_that_is_too_long_not_written():
    slot = new_board(1, 0, inherited=True).slots[0]
    slot.write_text(b"one")
    assert (slot.read_text(), slot.turn()) == (b"one", 2)
    slot.write_text(b"x" * (TEXT_BYTES + 1))
    assert slot.read_text() == b"one"
    slot.set(TEXT_TURN, 3)  # its writer was killed
    assert slot.read_text() is None


def test_slots_do_not_touch_each_other():
    one, two = new_board(2, 0, inherited=True).slots
    one.write_text(b"\xff" * TEXT_BYTES)
    for number in range(ROWS):
        one.push((9, number, 9, 9, 9, 9))
    assert two.rows(0, two.get(BATCHES)) == []
    assert two.get(PID) == two.turn() == 0
    two.push((1, 2, 3, 4, 5, 6))
    assert two.rows(0, two.get(BATCHES)) == [(1, 2, 3, 4, 5, 6)]
    assert one.rows(ROWS - 1, one.get(BATCHES)) == [(9, ROWS - 1, 9, 9, 9, 9)]


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="Linux alone has memory of this kind")
def test_a_worker_finds_its_slot_by_its_process_and_no_other_does():
    board = new_board(3, 0, inherited=False)
    assert find_slot(os.getpid()) is None
    board.set_pids([1, os.getpid(), 2])
    slot = find_slot(os.getpid())
    slot.set(FETCH, 77)
    assert board.slots[1].get(FETCH) == 77
    files = len(os.listdir("/proc/self/fd"))
    del slot
    assert len(os.listdir("/proc/self/fd")) < files


def test_a_wait_is_split_at_the_moment_when_the_batch_was_made():
    log, found = iteration()
    push(found, 0, 0, 0, 10)
    push(found, 1, 1, 0, 10)
    push(found, 0, 2, 10, 30)
    ask(found, 0, 0, 12)
    ask(found, 1, 15, 18)  # it was ready: the 3 ms are the way to the loop
    ask(found, 2, 20, 45)  # made at 40: 20 ms until then, 5 ms after
    log.take(found)
    assert (log.batches, log.known, log.ready) == (2, 2, 1)
    assert log.first_wait_ns == 12 * MS
    assert (log.ready_wait_ns, log.made_wait_ns, log.transfer_ns) == (3 * MS, 20 * MS, 8 * MS)
    assert log.behind_ns == 0
    assert log.sums[0][FETCH] == 40 * MS


def test_the_wait_behind_a_slow_batch_counts_from_when_a_later_one_was_ready():
    log, found = iteration()
    push(found, 0, 0, 0, 10)
    push(found, 0, 2, 10, 90)  # until 100
    push(found, 1, 1, 0, 10)
    push(found, 1, 3, 10, 20)  # until 30
    ask(found, 0, 0, 10)
    ask(found, 1, 10, 10)
    ask(found, 2, 20, 100)
    log.take(found)
    assert log.behind_ns == 70 * MS
    assert log.made_wait_ns == 80 * MS


def test_without_order_the_batch_that_was_made_first_comes_first():
    facts = replace(FACTS, in_order=False)
    log, found = iteration(facts)
    push(found, 0, 0, 0, 90)
    push(found, 1, 1, 0, 10)
    push(found, 1, 2, 10, 10)
    ask(found, -1, 0, 10)
    ask(found, -1, 15, 22)  # made at 20
    ask(found, -1, 30, 95)  # made at 90
    log.take(found)
    assert log.known == 2
    assert (log.made_wait_ns, log.transfer_ns) == (65 * MS, 7 * MS)


def test_batches_of_the_next_epoch_wait_until_it_is_asked_for():
    log, found = iteration()
    for epoch in range(2):
        push(found, 0, 0, 100 * epoch, 10, epoch)
        push(found, 1, 1, 100 * epoch, 10, epoch)
    push(found, 0, 2, 10, 10)  # of the first epoch, which was left
    ask(found, 0, 0, 10)
    ask(found, 1, 10, 11)
    found.starts_ns.append(4 * MS)
    ask(found, 0, 104, 110, epoch=1)
    ask(found, 1, 115, 116, epoch=1)
    log.take(found)
    assert (log.epochs, log.batches, log.known, log.ready) == (2, 2, 2, 2)
    assert log.first_wait_ns == 16 * MS
    assert log.restart_ns == 10 * MS  # 4 to resume, 6 for the first batch


def test_a_batch_that_nobody_saw_made_is_waited_for_and_not_explained():
    log, found = iteration()
    ask(found, 0, 0, 10)
    ask(found, 1, 10, 30)
    log.take(found)
    assert (log.batches, log.wait_ns, log.known) == (1, 20 * MS, 0)
    passes, record = log.records(0, is_last=True, all_passes=True)
    assert (passes.number, passes.batches, passes.end_ns) == ([0], [2], [None])
    assert record.status.startswith("workers not seen")


def test_what_is_taken_twice_is_counted_once():
    log, found = iteration()
    push(found, 0, 0, 0, 10)
    for _ in range(3):
        log.take(found)
    assert log.sums[0][BATCHES] == 1
    assert log.sums[0][FETCH] == 10 * MS
    assert log.sums[0][DELAY] is None


def test_the_worker_of_a_second_iterator_adds_to_that_of_the_first():
    log, found = iteration()
    push(found, 0, 0, 0, 10)
    found.ended = True
    log.take(found)
    _, second = iteration()
    push(second, 0, 0, 50, 30)
    log.take(second)
    assert log.sums[0][FETCH] == 40 * MS
    assert log.sums[0][BATCHES] == 2


def test_the_first_batches_are_kept_one_by_one_and_later_ones_in_blocks():
    kept = [number for number in range(1_000_000) if is_kept(number)]
    assert kept[:FIRST] == list(range(FIRST))
    assert len(kept) == 2000 + 9 * 200 + 9 * 200 + 4 * 200 + 0
    assert len([n for n in kept if n >= 20_000]) % 200 == 0


def test_loaders_made_anew_count_as_one_and_those_that_live_together_do_not():
    class Loader:
        pass

    watch = LoaderWatch()
    one, two = Loader(), Loader()
    first = watch.log_of(one, FACTS)
    assert watch.log_of(one, FACTS) is first
    assert watch.log_of(two, FACTS) is not first
    del one
    assert watch.log_of(Loader(), FACTS) is first
    assert watch.log_of(Loader(), replace(FACTS, workers=5)) is not first


def test_a_program_that_makes_a_loader_a_step_does_not_grow():
    class Loader:
        pass

    watch = LoaderWatch()
    made = [watch.log_of(Loader(), replace(FACTS, identity=number)) for number in range(500)]
    assert len({id(log) for log in made}) == 8
    several = [Loader() for _ in range(50)]
    found = [watch.log_of(each, replace(FACTS, identity=-1)) for each in several]
    assert sum(log is None for log in found) == 50 - 32


def test_a_worker_writes_down_each_batch_and_its_idle_time():
    slot = new_board(1, 0, inherited=True).slots[0]
    worker = WorkerClock(lambda: slot, 20.0)
    for number in range(3):
        worker.received((number, [1, 2]))
        worker.timed(sorted)([3, 1])
        worker.finished("a batch")
    assert [row[:2] for row in slot.rows(0, slot.get(BATCHES))] == [(0, 0), (0, 1), (0, 2)]
    assert slot.get(FETCH) >= slot.get(COLLATE) > 0
    assert slot.get(CPU) > 0
    assert slot.get(IDLE) > 0
    worker.received(Resume())
    worker.finished((None, None))  # it says that it resumes: no batch
    worker.received((0, [1]))
    worker.finished("a batch")
    assert slot.rows(3, slot.get(BATCHES))[0][:2] == (1, 0)


def test_the_end_of_a_stream_is_no_batch_and_an_error_is_one_that_failed():
    slot = new_board(1, 0, inherited=True).slots[0]
    worker = WorkerClock(lambda: slot, 20.0)
    end = type("_IterableDatasetStopIteration", (), {})()
    worker.received((0, [1]))
    worker.finished(end)
    assert slot.get(BATCHES) == 0
    worker.received((1, [1]))
    worker.finished(type("ExceptionWrapper", (), {})())
    assert slot.get(BATCHES) == 1


def test_a_worker_that_has_no_slot_yet_looks_again_ever_more_seldom():
    looks = []
    worker = WorkerClock(lambda: looks.append(1), 0.0)
    for number in range(100):
        worker.received((number, []))
        worker.finished(None)
    assert len(looks) == 1 + 7  # at once, and at 1, 2, 4, ... 64
