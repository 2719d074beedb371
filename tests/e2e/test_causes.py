"""Causes of known size in real trainings, found again: which, how much, where."""

import contextlib
import json
import mmap
import os
import uuid
from pathlib import Path

import pytest

from tests.e2e.harness import run, write

PREAMBLE = """
import gc, json, os, subprocess, sys, threading, time
import torch
from torch import nn
from torch.utils.data import DataLoader

torch.manual_seed(0)
model = nn.Linear(16, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)


def batches(count):
    return DataLoader([torch.randn(8, 16) for _ in range(count)], batch_size=None)


def update(batch):
    optimizer.zero_grad()
    model(batch).pow(2).mean().backward()
    optimizer.step()


def tell(**facts):
    print(json.dumps(facts))
"""
RARE = {
    "GC_PAUSES", "CPU_THROTTLED", "RECOMPILES", "PERIODIC_SPIKES", "CHECKPOINT_COST", "EVAL_COST",
    "MEMORY_PRESSURE", "GIL_CONTENTION", "PROCESS_STOPPED", "CREEP_EARLY", "CREEP_CONFIRMED",
}  # fmt: skip
"""Findings that a busy machine cannot cause in a healthy run."""


def train(tmp_path, body, *, name="train.py", **extra):
    """Runs the loop; what it told of itself, and its summary."""
    result = run(tmp_path, write(tmp_path, PREAMBLE + body, name), **extra)
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {}, result


def issues(result):
    return {issue["kind"]: issue for issue in result.summary["causes"]["issues"]}


def line_of(body, text):
    """The number of the line in the script on which a text stands."""
    return (PREAMBLE + body).split(text)[0].count("\n") + 1


COLLECT = """
gc.disable()
kept = [[number] for number in range(150_000)]
took = 0
for step, batch in enumerate(batches(60)):
    update(batch)
    time.sleep(0.01)
    if step % 5 == 4:
        begun = time.perf_counter()
        gc.collect()
        took += time.perf_counter() - begun
tell(took=took, callbacks=len(gc.callbacks))
"""


def test_forced_collections_are_found_with_their_time_and_their_line(tmp_path):
    told, result = train(tmp_path, COLLECT)
    found = result.summary["causes"]
    assert found["gc"]["collections"] == [0, 0, 12]
    # The loop's own clock also has what follows a collection: threads that waited for the
    # interpreter lock get it then, 12 times, and the core may be lost.
    for figure in (found["gc"]["total_s"], found["losses"]["gc"]["run_s"]):
        assert figure <= told["took"]
        assert figure == pytest.approx(told["took"], rel=0.01, abs=12 * 0.006)
    finding = issues(result)["GC_PAUSES"]
    assert finding["place"]["line"] == line_of(COLLECT, "gc.collect()\n        took")
    (regular,) = [p for p in found["spikes"]["periodic"] if p["cause"] == "gc"]
    assert regular["every"] == 5
    (again,) = [f for f in result.summary["findings"] if f["kind"] == "PERIODIC_SPIKES"]
    assert again["explains"] == "GC_PAUSES"  # one cause, told once


MOSTLY = """
gc.disable()
kept = [[number] for number in range(150_000)]
for batch in batches(60):
    update(batch)
    gc.collect()
"""


def test_what_explains_the_residual_says_what_is_saved_in_place_of_its_sampled_line(tmp_path):
    _, result = train(tmp_path, MOSTLY)
    found = {finding["kind"]: finding for finding in result.summary["findings"]}
    residual, collections = found["RESIDUAL_HEAVY"], found["GC_PAUSES"]
    assert collections["explains"] == "RESIDUAL_HEAVY"
    assert residual["saving"] == collections["saving"]
    assert residual["saving"]["without"] == "collections"
    assert residual["place"]["line"] == line_of(MOSTLY, "gc.collect()")


OFTEN = """
sys.setswitchinterval(1e-6)
gc.set_threshold(7, 2, 2)

def endless():
    end = time.monotonic() + 5
    while time.monotonic() < end:
        yield torch.randn(8, 16)

for batch in endless():
    update(batch)
tell(done=True)
"""


def test_a_collection_at_any_moment_leaves_the_process_whole(tmp_path):
    # Python 3.11 also collects while a generator is made: its frame is not to be looked at then.
    settings = {"PYTHONMALLOC": "debug", "TRACEML_STACK_HZ": "200", "TRACEML_MAX_OVERHEAD": "100"}
    told, result = train(tmp_path, OFTEN, **settings)
    assert told["done"]
    assert sum(result.summary["causes"]["gc"]["collections"]) > 1000


CLEARED = """
class Forked:
    pass

for step, batch in enumerate(batches(30)):
    update(batch)
    time.sleep(0.04)
    if step == 10:
        pid = os.fork()
        if not pid:
            os._exit(len(gc.callbacks))
        left = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        gc.callbacks.clear()
tell(left=left)
"""


def test_a_list_of_callbacks_that_the_program_clears_stays_clear_and_the_summary_says_so(tmp_path):
    told, result = train(tmp_path, CLEARED)
    assert told["left"] == 0  # nothing of the agent in a forked child
    assert "removed" in result.summary["traceml_agent"]["patches"]["gc"]


BURNED = """
def delay():
    with open(f"/proc/self/task/{os.getpid()}/schedstat") as file:
        return int(file.read().split()[1])

def spin(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        sum(range(200))

core = sorted(os.sched_getaffinity(0))[0]
os.sched_setaffinity(0, {core})
burner = subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"],
                          env={"PATH": os.environ["PATH"]})
waited = begun = 0
for step, batch in enumerate(batches(120)):
    update(batch)
    if step == 5:
        waited, begun = delay(), time.perf_counter_ns()
    spin(0.02)
waited, ended = delay() - waited, time.perf_counter_ns()
burner.kill()
burner.wait()
tell(waited=waited, begun=begun, ended=ended)
"""


def delays_between(spool, told):
    """The waits of the account in a stretch of time, and the throttled part of them."""
    waited = throttled = 0.0
    for record in spool.sched:
        at = record.start_ns
        held = record.throttled_ns or [0] * len(record.duration_ns)
        for duration, delay, ns in zip(record.duration_ns, record.delay_ns, held, strict=True):
            share = max(0, min(at + duration, told["ended"]) - max(at, told["begun"])) / duration
            waited += delay * share
            throttled += min(delay, ns) * share
            at += duration
    return waited, throttled


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="no schedstat")
def test_waiting_for_a_core_that_another_process_burns_is_measured(tmp_path):
    told, result = train(tmp_path, BURNED)
    assert told["waited"] > 0.5e9
    found, _ = delays_between(result.spools[0], told)
    # Two readings, 50 ms apart, lie at the ends of the stretch.
    assert found == pytest.approx(told["waited"], rel=0.02, abs=0.1e9)
    lost = result.summary["causes"]["losses"]["contention"]["run_s"]
    assert lost >= 0.95 * told["waited"] / 1e9
    assert issues(result)["CPU_CONTENTION"]["cost"]["share"] > 0.2
    assert "CPU_THROTTLED" not in issues(result)


@contextlib.contextmanager
def quota(share):
    """A control group of version 1 with a quota of that part of a core."""
    group = Path("/sys/fs/cgroup/cpu") / f"traceml-test-{uuid.uuid4().hex[:8]}"
    try:
        group.mkdir()
        (group / "cpu.cfs_period_us").write_text("100000")
        (group / "cpu.cfs_quota_us").write_text(str(round(100_000 * share)))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    try:
        yield group
    finally:
        group.rmdir()


THROTTLED = """
group = os.environ["TEST_GROUP"]

def held():
    with open(f"{group}/cpu.stat") as file:
        return int(dict(line.split() for line in file)["throttled_time"])

os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:1]))
for step, batch in enumerate(batches(60)):
    if step == 0:
        with open(f"{group}/cgroup.procs", "w") as file:
            file.write(str(os.getpid()))
    update(batch)
    if step == 5:
        before, begun = held(), time.perf_counter_ns()
    end = time.thread_time() + 0.015
    while time.thread_time() < end:
        pass
after, ended = held(), time.perf_counter_ns()
with open(os.path.join(os.path.dirname(group), "cgroup.procs"), "w") as file:
    file.write(str(os.getpid()))
tell(held=after - before, begun=begun, ended=ended)
"""


def test_a_cpu_quota_is_told_apart_from_other_processes(tmp_path):
    with quota(0.2) as group:
        told, result = train(tmp_path, THROTTLED, TEST_GROUP=str(group))
    assert told["held"] > 0.5e9
    _, found = delays_between(result.spools[0], told)
    # Readings lie 50 ms apart, and a throttled stretch of 80 ms is booked when it ends.
    assert found == pytest.approx(told["held"], rel=0.02, abs=0.3e9)
    lost = result.summary["causes"]["losses"]["throttled"]["run_s"]
    assert lost >= 0.8 * told["held"] / 1e9
    finding = issues(result)["CPU_THROTTLED"]
    assert "of 0.2 CPUs" in finding["summary"]
    assert finding["cost"]["share"] > 0.3


SAVED = """
class Slow:
    def __reduce__(self):
        time.sleep(0.15)
        return (int, ())

for step, batch in enumerate(batches(110)):
    update(batch)
    time.sleep(0.01)
    if step % 20 == 19:
        torch.save({"model": model.state_dict(), "slow": Slow()}, "checkpoint.pt")
"""


def test_a_checkpoint_every_20_steps_is_named_with_period_and_line(tmp_path):
    _, result = train(tmp_path, SAVED)
    found = issues(result)
    place = f"train.py:{line_of(SAVED, 'torch.save({')}"
    assert "Every 20 steps" in found["PERIODIC_SPIKES"]["summary"]
    assert f"torch.save at {place}" in found["PERIODIC_SPIKES"]["summary"]
    assert place in found["CHECKPOINT_COST"]["summary"]
    assert found["CHECKPOINT_COST"]["cost"]["run_s"] == pytest.approx(5 * 0.15, rel=0.25)


EVALUATED = """
class Slow(nn.Module):
    def forward(self, batch):
        time.sleep(0.004)
        return batch

model = nn.Sequential(model, Slow())

def validate(batch):
    model.eval()
    with torch.no_grad():
        for _ in range(40):
            model(batch)
    model.train()

for step, batch in enumerate(batches(120)):
    update(batch)
    if step % 25 == 24:
        validate(batch)
"""


def test_an_evaluation_every_25_steps_is_named_with_its_period_and_its_call(tmp_path):
    _, result = train(tmp_path, EVALUATED)
    found = issues(result)
    assert "Every 25 steps" in found["PERIODIC_SPIKES"]["summary"]
    assert "evaluation" in found["PERIODIC_SPIKES"]["summary"]
    assert found["EVAL_COST"]["cost"]["run_s"] == pytest.approx(4 * 40 * 0.0045, rel=0.4)
    assert found["EVAL_COST"]["place"]["line"] == line_of(EVALUATED, "        validate(batch)")


HOGGED = """
stop = threading.Event()

def hog():
    number = 0
    while not stop.is_set():
        number += 1

thread = threading.Thread(target=hog, name="metrics-pump", daemon=True)
for step, batch in enumerate(batches(200)):
    if step == 5:
        thread.start()
    update(batch)
    time.sleep(0.001)
stop.set()
thread.join()
"""


def test_a_thread_that_holds_the_interpreter_lock_is_named(tmp_path):
    _, result = train(tmp_path, HOGGED)
    finding = issues(result)["GIL_CONTENTION"]
    assert '"metrics-pump"' in finding["summary"]
    assert finding["confidence"] == "low"


LEAKED = """
kept = []
for step, batch in enumerate(batches(150)):
    update(batch)
    kept.append(bytearray(os.urandom(1) * 1_500_000))
    time.sleep(0.02)
"""


def test_resident_memory_that_grows_is_a_finding_with_its_end(tmp_path):
    _, result = train(tmp_path, LEAKED, TRACEML_SAMPLE_INTERVAL_S="0.1")
    (finding,) = [f for f in result.summary["findings"] if f["kind"].startswith("CREEP")]
    slope = finding["evidence"]["slope_bytes_per_step"]
    assert slope == pytest.approx(1.5e6, rel=0.1)
    assert "full in at most" in finding["summary"]


HEALTHY = """
for step, batch in enumerate(batches(100)):
    update(batch)
    time.sleep(0.02)
"""


def test_a_healthy_run_has_no_finding_of_a_cause(tmp_path):
    _, result = train(tmp_path, HEALTHY)
    kinds = {finding["kind"] for finding in result.summary["findings"]}
    assert kinds & RARE == set()
    account = result.summary["causes"]["account"]
    parts = ("running_percent", "waiting_for_core_percent", "blocked_percent")
    assert sum(account[name] for name in parts) == pytest.approx(100, abs=1)
    assert account["throttled_percent"] is None or account["throttled_percent"] < 5


@pytest.mark.slow
def test_more_threads_than_cores_are_told_from_other_processes(tmp_path):
    cores = len(os.sched_getaffinity(0))
    body = f"""
torch.set_num_threads({4 * cores})
big = nn.Linear(1024, 1024)
optimizer = torch.optim.SGD(big.parameters(), lr=0.01)
for batch in DataLoader([torch.randn(256, 1024) for _ in range(40)], batch_size=None):
    optimizer.zero_grad()
    big(batch).pow(2).mean().backward()
    optimizer.step()
"""
    _, result = train(tmp_path, body)
    finding = issues(result)["CPU_OVERSUBSCRIBED"]
    assert f"with {4 * cores} threads" in finding["summary"]
    assert f"OMP_NUM_THREADS={cores}" in finding["action"]


COMPILED = """
@torch.compile(backend="eager", dynamic=False)
def normalized(batch):
    return batch / batch.norm()

for step, batch in enumerate(batches(40)):
    update(batch)
    time.sleep(0.005)
    if step % 8 == 7:
        normalized(torch.randn(4 + step))
"""


@pytest.mark.slow
def test_recompilations_are_counted_and_name_the_function(tmp_path):
    _, result = train(tmp_path, COMPILED)
    finding = issues(result)["RECOMPILES"]
    assert finding["evidence"]["count"] == 4
    assert "normalized" in finding["summary"]
    assert finding["place"]["line"] in (
        line_of(COMPILED, "@torch.compile"),
        line_of(COMPILED, "def normalized"),
    )
    assert "size" in finding["evidence"]["reason"]


_HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
HUGE_PAGES = _HUGE.read_text() if _HUGE.exists() else ""
CHURN = """
for batch in batches(150):
    update(batch)
    torch.empty(12 << 20).fill_(1.0)  # 48 MiB: glibc maps that anew each time
"""


@pytest.mark.skipif("[always]" in HUGE_PAGES, reason="one fault is 512 pages")
def test_memory_that_is_new_in_each_step_is_named_and_gone_with_the_advice(tmp_path):
    settings = {"TRACEML_SAMPLE_INTERVAL_S": "0.2"}
    for name in ("on", "kept"):
        (tmp_path / name).mkdir()
    _, result = train(tmp_path / "on", CHURN, **settings)
    finding = issues(result)["ALLOCATION_CHURN"]
    assert finding["evidence"]["new_pages_per_step"] >= 0.9 * (48 << 20) / mmap.PAGESIZE
    advised = dict(
        word.split("=") for word in finding["action"].split() if word.startswith("MALLOC")
    )
    _, kept = train(tmp_path / "kept", CHURN, **settings, **advised)
    assert "ALLOCATION_CHURN" not in issues(kept)


KEEPING = """
class Keeping:
    kept = []

    def __len__(self):
        return 400

    def __getitem__(self, index):
        self.kept.append(torch.ones(1 << 18))  # 1 MiB
        time.sleep(0.01)
        return torch.ones(8, 16)

for batch in DataLoader(Keeping(), batch_size=None, num_workers=1):
    update(batch)
"""


def test_memory_that_a_worker_keeps_is_found_in_the_training_process(tmp_path):
    settings = {"TRACEML_SAMPLE_INTERVAL_S": "0.2", "TMPDIR": "/tmp"}
    _, result = train(tmp_path, KEEPING, **settings)
    found = [f for f in result.summary["findings"] if f["metric"] == "workers_grown_bytes"]
    assert [f["kind"] for f in found] == ["CREEP_CONFIRMED"], result.summary["findings"]
    assert "loader workers of Keeping grows by" in found[0]["summary"]
    assert found[0]["evidence"]["slope_bytes_per_step"] == pytest.approx(1 << 20, rel=0.2)
