"""The watch: when it writes, when it does not, and what it keeps of a stack."""

import json
import threading
import time

import pytest

from traceml_agent.capture.recorder import Recorder
from traceml_agent.capture.samplers.stall import MOST_STALLS, PAUSE_NS, STEPS_RATIO, StallWatch
from traceml_agent.capture.samplers.threads import (
    INNERMOST,
    MOST_CHARACTERS,
    MOST_THREADS,
    OUTERMOST,
    stacks_of_all_threads,
)
from traceml_agent.capture.session import Session
from traceml_agent.config import Config
from traceml_agent.schema.phases import CHECKPOINT
from traceml_agent.spool.writer import SpoolWriter

SECOND = 1_000_000_000
TICK = SECOND // 2


class Watched:
    """A watch over a training whose clock and steps the test moves."""

    def __init__(self, tmp_path, hang_s=60.0):
        self.session = Session()
        self.session.config = Config(hang_s=hang_s)
        self.session.tracker.owner = threading.get_ident()
        self.path = tmp_path / "spool.jsonl"
        self.recorder = Recorder(self.path, SpoolWriter(self.path, 10**7), None)
        self.watch = StallWatch(self.session, self.recorder)
        self.now = 1000 * SECOND

    def steps(self, count, each_ns):
        for _ in range(count):
            self.now += each_ns
            self.recorder.last_step += 1
            self.session.tracker.last_duration = each_ns
            self.session.tracker.since = self.now
            self.watch.tick(self.now)

    def wait(self, seconds, active=False):
        for _ in range(int(seconds * SECOND / TICK)):
            self.now += TICK
            if active:
                self.session.tracker.since = self.now
            self.watch.tick(self.now)

    def written(self):
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def kinds(self):
        return [record.get("name", record["kind"]) for record in self.written()]


def test_one_stall_is_written_after_the_floor_and_its_end_is_an_event(tmp_path):
    watched = Watched(tmp_path)
    watched.steps(20, SECOND // 100)
    watched.wait(59)
    assert watched.kinds() == []
    watched.wait(600)
    assert watched.kinds() == ["stall"]
    watched.steps(2, SECOND // 100)
    stall, event = watched.written()
    assert stall["step"] == 20
    assert stall["monotonic_ns"] - stall["since_ns"] == 60 * SECOND
    assert event["name"] == "stall"
    assert event["duration_ns"] == pytest.approx(659 * SECOND, rel=0.001)


def test_long_steps_are_waited_for_ten_times(tmp_path):
    watched = Watched(tmp_path)
    watched.steps(5, 20 * SECOND)
    watched.wait(STEPS_RATIO * 20 - 1)
    assert watched.kinds() == []
    watched.wait(1)
    assert watched.kinds() == ["stall"]


def test_a_slow_first_step_does_not_set_the_limit(tmp_path):
    watched = Watched(tmp_path)
    watched.steps(1, 100 * SECOND)
    watched.recorder.last_step += 40  # within one tick
    watched.session.tracker.last_duration = SECOND // 100
    watched.wait(61)
    assert watched.kinds() == ["stall"]


def test_a_first_step_that_does_not_come_is_written_again_each_time_it_took_twice_as_long(tmp_path):
    watched = Watched(tmp_path)
    watched.watch.wait_for_first(watched.now)
    watched.wait(59)
    assert watched.kinds() == []
    watched.wait(1000 - 59)
    since = watched.written()[0]["since_ns"]
    waited = [(stall["monotonic_ns"] - since) // SECOND for stall in watched.written()]
    assert waited == [60, 120, 240, 480, 960]
    assert {stall["step"] for stall in watched.written()} == {0}
    watched.steps(1, SECOND)
    assert watched.kinds() == ["stall"] * 5  # start-up is no stall that ended
    watched.wait(61)
    assert watched.kinds() == ["stall"] * 6


def test_zero_seconds_turn_it_off(tmp_path):
    watched = Watched(tmp_path, hang_s=0)
    watched.steps(20, SECOND)
    watched.wait(100_000)
    assert watched.kinds() == []


def test_a_busy_process_is_noted_once_and_written_when_it_comes_to_rest(tmp_path):
    watched = Watched(tmp_path)
    watched.steps(20, SECOND)
    watched.wait(500, active=True)
    assert [r["quiet_ns"] < r["limit_ns"] for r in watched.written()] == [True]
    watched.wait(100)
    assert [r["quiet_ns"] < r["limit_ns"] for r in watched.written()] == [True, False]


def test_a_checkpoint_is_written_with_its_phase_and_its_end_is_no_stall(tmp_path):
    watched = Watched(tmp_path)
    watched.steps(20, SECOND)
    watched.session.tracker.phase = CHECKPOINT
    watched.wait(100)
    watched.steps(2, SECOND)
    assert [record["phase"] for record in watched.written()] == ["checkpoint"]


def test_the_time_in_which_nothing_ran_does_not_count(tmp_path):
    watched = Watched(tmp_path)
    watched.steps(20, SECOND)
    watched.now += 3600 * SECOND
    watched.watch.overslept(3600 * SECOND)
    watched.wait(59)
    assert watched.kinds() == ["pause"]
    watched.wait(2)
    assert watched.kinds() == ["pause", "stall"]


def test_a_thread_that_was_late_while_steps_closed_saw_no_pause(tmp_path):
    watched = Watched(tmp_path)
    watched.steps(20, SECOND // 100)
    watched.recorder.last_step += PAUSE_NS // (SECOND // 100)
    watched.watch.overslept(PAUSE_NS)
    assert watched.kinds() == []


def test_patches_that_pass_through_close_no_steps_and_that_is_no_stall(tmp_path):
    watched = Watched(tmp_path)
    watched.steps(20, SECOND)
    watched.session.gates["optimizer"].shut = True
    watched.wait(1000)
    assert watched.kinds() == []


def test_the_number_of_stalls_with_stacks_is_bounded(tmp_path):
    watched = Watched(tmp_path)
    for _ in range(MOST_STALLS + 5):
        watched.steps(1, SECOND)
        watched.wait(61)
    assert watched.kinds().count("stall") == 2 * MOST_STALLS + 4  # and an event for each but one


def test_a_tick_without_a_stall_costs_microseconds(tmp_path):
    watched = Watched(tmp_path)
    watched.steps(20, SECOND)
    begun = time.perf_counter()
    for _ in range(1000):
        watched.watch.tick(watched.now)
    assert time.perf_counter() - begun < 0.1  # measured: 0.0002


def nested(depth, inside):
    return nested(depth - 1, inside) if depth else inside()


def test_threads_and_frames_are_bounded_and_the_ends_of_a_deep_stack_are_kept():
    release = threading.Event()
    stacks, left_out = nested(300, lambda: stacks_of_all_threads(threading.get_ident() + 1))
    own = threading.Thread(target=nested, args=(300, release.wait), name="deep", daemon=True)
    others = [threading.Thread(target=release.wait, daemon=True) for _ in range(MOST_THREADS)]
    for thread in (own, *others):
        thread.start()
    while not all(thread.ident for thread in others):
        time.sleep(0.01)
    time.sleep(0.2)
    try:
        stacks, left_out = stacks_of_all_threads(own.ident)
    finally:
        release.set()
    assert stacks[0].training
    lines = stacks[0].stack.splitlines()
    assert len(lines) == INNERMOST + OUTERMOST + 1
    assert "threading.py" in lines[0]
    assert "wait" in lines[-1]
    assert "nested" in lines[20]
    assert len(stacks) == MOST_THREADS
    assert left_out >= 1
    assert sum(len(stack.stack) for stack in stacks) <= 2 * MOST_CHARACTERS


def test_names_and_files_pass_through_the_redaction():
    release = threading.Event()
    token = "hf_" + "a1B2" * 8
    source = compile("def wait(): release.wait()", f"/job/token={token}/x.py", "exec")
    space = {"release": release}
    exec(source, space)
    thread = threading.Thread(target=space["wait"], name=f"upload {token}", daemon=True)
    thread.start()
    time.sleep(0.2)
    try:
        stacks, _ = stacks_of_all_threads(thread.ident)
    finally:
        release.set()
    assert token not in json.dumps([stack.name + stack.stack for stack in stacks])
    assert stacks[0].name == "upload [redacted]"
