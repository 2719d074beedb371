"""What the agent costs a training on a GPU, at steps of 1, 5, 20 and 100 ms. Part of `make gpu`.

`TRACEML_ENABLE=1 TRACEML_MAX_OVERHEAD=0 python tests/gpu/overhead.py DIRECTORY` puts the patches in
and out inside one process, in blocks of steps in random order, and writes `overhead.json` and
`overhead.md`, the latter to be copied into docs/overhead.md.
"""

import argparse
import json
import platform
import random
import statistics
import sys
import time
from pathlib import Path

import pynvml
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from traceml_agent.capture.session import SESSION

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.overhead.patches import Patches, difference  # noqa: E402  # found through ROOT

DEVICE = "cuda"
STEPS_OF_MS = (1, 5, 20, 100)
BLOCK_S = 0.4
LEAST_BLOCK = 4
PAIRS = 12
"""Blocks of each kind: some 10 s for each length of a step."""
SETTLE = 3
"""Steps after a change that are not timed: CPython specialises changed code anew."""
WIDTH = 2048
GOALS = {1: "<= 50 us", 5: "<= 50 us", 20: "<= 0.3 %, <= 50 us", 100: "<= 50 us"}


class Endless(Dataset):
    def __len__(self):
        return 10**9

    def __getitem__(self, index):
        return index


class Training:
    """A loop whose step takes the device about as long as asked for."""

    def __init__(self, step_ms):
        torch.manual_seed(0)
        layers = [layer for _ in range(4) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
        self.model = nn.Sequential(*layers).to(DEVICE)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4)
        self.batch = torch.randn(64, WIDTH).pin_memory()
        self.loader = iter(DataLoader(Endless(), batch_size=1, collate_fn=lambda _: self.batch))
        self.target_s = step_ms / 1e3
        self.train(20)
        for _ in range(8):
            took_s = self.seconds(5) / 5
            if 0.9 < took_s / self.target_s < 1.1:
                break
            # Rows beyond which a step gets longer; the launches of a step alone may take 1 ms.
            rows = round(len(self.batch) * min(8.0, max(0.125, self.target_s / took_s)))
            if rows < 8:
                break
            self.batch = torch.randn(rows, WIDTH).pin_memory()
            self.train(3)

    def train(self, count):
        for _ in range(count):
            x = next(self.loader).to(DEVICE, non_blocking=True)
            self.model(x).square().mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def seconds(self, count):
        """Wall time of some steps, until the device has done them."""
        torch.cuda.synchronize()
        begun = time.perf_counter()
        self.train(count)
        torch.cuda.synchronize()
        return time.perf_counter() - begun


def compared(training, patches, count):
    """Wall and CPU seconds a step of each block, off and on."""
    found = {False: [], True: []}
    for _ in range(PAIRS):
        for on in random.sample((False, True), 2):
            patches.put(on)
            training.train(SETTLE)
            cpu = time.thread_time()
            wall = training.seconds(count)
            found[on].append((wall / count, (time.thread_time() - cpu) / count))
    patches.put(True)
    return found


def row_of(step_ms):
    """The figures for one length of a step."""
    training = Training(step_ms)
    count = max(LEAST_BLOCK, round(BLOCK_S / training.target_s))
    found = compared(training, Patches((torch.Tensor, "to")), count)
    off, on = ([wall for wall, _ in found[kind]] for kind in (False, True))
    cpu = [statistics.median(seconds for _, seconds in found[kind]) for kind in (False, True)]
    off_s, on_s = statistics.median(off), statistics.median(on)
    more, low, high = difference(off, on)
    return {
        "asked_ms": step_ms,
        "off_ms": 1e3 * off_s,
        "on_ms": 1e3 * on_s,
        "difference_us": 1e6 * more,
        "difference_low_us": 1e6 * low,
        "difference_high_us": 1e6 * high,
        "ratio": on_s / off_s,
        "host_cpu_us": 1e6 * (cpu[1] - cpu[0]),
        "goal": GOALS[step_ms],
    }


def machine():
    """What the figures belong to."""
    pynvml.nvmlInit()
    driver = pynvml.nvmlSystemGetDriverVersion()
    pynvml.nvmlShutdown()
    return {
        "device": torch.cuda.get_device_name(),
        "driver": driver.decode() if isinstance(driver, bytes) else driver,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def markdown(about, rows):
    """The block for docs/overhead.md."""
    lines = [
        "{device}, driver {driver}, CUDA {cuda}, torch {torch}, Python {python}, {system};".format(
            **about
        ),
        f"patches put in and out in one process, medians of {PAIRS} blocks each "
        "(`tests/gpu/overhead.py`).",
        "",
        "| step without | with | difference (95 %) | ratio | host CPU a step | goal |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['off_ms']:.3f} ms | {row['on_ms']:.3f} ms | {row['difference_us']:+.1f} us "
            f"({row['difference_low_us']:+.1f} to {row['difference_high_us']:+.1f}) "
            f"| {row['ratio']:.4f} | {row['host_cpu_us']:+.1f} us | {row['goal']} |"
        )
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    random.seed(0)
    Training(1).train(50)
    if SESSION.recorder is None or SESSION.discovery.wide or SESSION.tracker.device is None:
        raise SystemExit("run this with TRACEML_ENABLE=1, on a GPU, and with every patch in")
    rows = [row_of(step_ms) for step_ms in STEPS_OF_MS]
    about = machine()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    result = json.dumps({"machine": about, "steps": rows}, indent=2)
    (arguments.directory / "overhead.json").write_text(result + "\n")
    (arguments.directory / "overhead.md").write_text(markdown(about, rows))


if __name__ == "__main__":
    main()
