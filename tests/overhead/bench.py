"""What the agent costs: `make bench` prints one table, off and on side by side in one run.

Every figure is a median over interleaved child processes with one torch thread. The absolute
numbers belong to the machine; the ratios travel. Not a test: a timed test on a shared machine
lies half of the time.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

TRAINING = """
import json, os, resource, sys, threading, time
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

torch.set_num_threads(1)
torch.manual_seed(0)
modules, steps = int(sys.argv[1]), int(sys.argv[2])
if modules == 3:
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))
else:
    layers = [layer for _ in range(modules // 2) for layer in (nn.Linear(32, 32), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(32, 10))
batch = (torch.randn(32, 32), torch.randint(0, 10, (32,)))

class Endless(Dataset):
    def __len__(self):
        return 10**9
    def __getitem__(self, index):
        return index

loader = iter(DataLoader(Endless(), batch_size=1, collate_fn=lambda _: batch))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

def train(count):
    for _ in range(count):
        inputs, labels = next(loader)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

train(200)
blocks = []
for _ in range(20):
    begun = time.process_time_ns()
    train(steps // 20)
    blocks.append((time.process_time_ns() - begun) / (steps // 20) / 1e3)
print(json.dumps({
    "us": sorted(blocks)[5],
    "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    "threads": threading.active_count(),
    "end": time.time(),
}))
"""


AGENT_ON = {"TRACEML_ENABLE": "1"}


def environment(**variables):
    """The environment of a measured child: one thread, and no setting of a tool but those given."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TRACEML_", "CIRRON_"))}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)  # or every child compiles every module anew
    return kept | {"OMP_NUM_THREADS": "1"} | variables


def machine():
    """The machine and the versions that figures belong to, in one line."""
    import torch

    with Path("/proc/cpuinfo").open() as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    cores = f"{os.cpu_count()} cores" + (f" of {names[0]}" if names else "")
    system = f"{platform.system()} {platform.release()}"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{platform.machine()}, {cores}, {system}, {versions}"


def child(code, *arguments, on, runs):
    """Runs a child; its JSON, its wall time, and the time from its last line to its end."""
    enabled = AGENT_ON | {"TRACEML_DIR": str(runs)} if on else {}
    begun = time.time()
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment(**enabled), capture_output=True, text=True, check=True,
    )  # fmt: skip
    ended = time.time()
    data = json.loads(done.stdout) if done.stdout.startswith("{") else {}
    data["wall_s"] = ended - begun
    data["exit_s"] = ended - data.get("end", ended)
    return data


def pairs(code, *arguments, repetitions, runs):
    """Results off and on, interleaved, the order turning around each time."""
    found = {False: [], True: []}
    for number in range(repetitions):
        for on in (False, True) if number % 2 else (True, False):
            found[on].append(child(code, *arguments, on=on, runs=runs))
    return found[False], found[True]


def median(results, name):
    return statistics.median(result[name] for result in results)


def row(label, off, on, unit, goal=""):
    ratio = f"{on / off:.3f}x" if off else ""
    print(f"{label:<44}{off:>12.2f}{on:>12.2f}{on - off:>11.2f} {unit:<6}{ratio:>8}  {goal}")


def steps_table(repetitions, runs):
    for modules, steps, goal in (
        (3, 20_000, "<= 15 us"),
        (61, 6000, "<= 25 us"),
        (601, 400, "as 61"),
    ):
        off, on = pairs(TRAINING, modules, steps, repetitions=repetitions, runs=runs)
        row(f"CPU a step, {modules} modules", median(off, "us"), median(on, "us"), "us", goal)
        if modules == 3:
            row("RSS at the end", median(off, "rss_mib"), median(on, "rss_mib"), "MiB", "<= 12")
            row("Python threads", median(off, "threads"), median(on, "threads"), "", "+ 1")
            row("last line to exit", median(off, "exit_s"), median(on, "exit_s"), "s", "<= 0.3")


def start_table(repetitions, runs):
    off, on = pairs("pass", repetitions=repetitions, runs=runs)
    row("start of Python, no torch", 1e3 * median(off, "wall_s"), 1e3 * median(on, "wall_s"), "ms")
    code = "import json, time, torch; print(json.dumps({'cpu': 1e3 * time.process_time()}))"
    off, on = pairs(code, repetitions=max(3, repetitions // 4), runs=runs)
    row("CPU after import torch", median(off, "cpu"), median(on, "cpu"), "ms", "<= 60")


def fold_table(directory):
    from tests.report import synthetic_run as made
    from traceml_agent.report.fold import fold

    for count in (10_000, 1_000_000):
        run_dir = directory / f"fold{count}"
        batches, start = [], made.FIRST_STEP_NS
        for first in range(1, count + 1, 1000):
            batches.append(made.steps(1000, first=first, start_ns=start))
            start += 1000 * 10 * made.MS
        made.run_of(run_dir, *batches)
        begun = time.perf_counter()
        fold(run_dir)
        goal = "<= 3 s" if count == 1_000_000 else ""
        print(f"{f'fold of {count:,} steps':<44}{'':>12}{time.perf_counter() - begun:>12.2f}"
              f"{'':>11} s{'':>13}  {goal}")  # fmt: skip


def spool_table(runs):
    from traceml_agent.spool.digested import read_spool

    before = set(runs.iterdir()) if runs.is_dir() else set()
    child(TRAINING, 3, 30_000, on=True, runs=runs)
    (run_dir,) = set(runs.iterdir()) - before
    (path,) = run_dir.glob("*.jsonl")
    spool = read_spool(path)
    print(f"{'spool, bytes a step':<44}{'':>12}{path.stat().st_size / spool.end.steps:>12.1f}"
          f"{'':>11} B{'':>13}  <= 48")  # fmt: skip
    print(f"{'steps of 0.4 ms recorded, of 30,200':<44}{'':>12}{spool.end.steps:>12}"
          f"{'':>25}  none dropped: {spool.end.dropped or 'none'}")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--starts", type=int, default=100)
    arguments = parser.parse_args()
    print(machine())
    print(f"medians of {arguments.repetitions} interleaved pairs")
    print(f"{'':<44}{'off':>12}{'on':>12}{'difference':>11} {'':<6}{'ratio':>8}  goal")
    with tempfile.TemporaryDirectory() as directory:
        runs = Path(directory) / "runs"
        steps_table(arguments.repetitions, runs)
        start_table(arguments.starts, runs)
        spool_table(runs)
        fold_table(Path(directory))


if __name__ == "__main__":
    main()
