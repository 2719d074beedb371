"""What looking at the line of the training thread costs: `python tests/overhead/lines.py`.

Interleaved child processes, each at one setting of TRACEML_STACK_HZ. The CPU time of the thread is
that of the kernel; the time of a step is that of the program, medians over blocks of 20 steps.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.overhead.bench import environment  # noqa: E402  # needs the path above

TRAINING = """
import json, statistics, sys, threading, time
import torch
from torch import nn
torch.set_num_threads(1)
layers = [layer for _ in range(30) for layer in (nn.Linear(64, 64), nn.ReLU())]
model = nn.Sequential(*layers, nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for _ in range(int(sys.argv[2])):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
def step():
    optimizer.zero_grad()
    model(torch.randn(32, 64)).sum().backward()
    optimizer.step()
for _ in range(100):
    step()
def cpu():
    found = [t.native_id for t in threading.enumerate() if t.name == "traceml-stacks"]
    return int(open(f"/proc/self/task/{found[0]}/schedstat").read().split()[0]) if found else 0
begun, begun_cpu, blocks = time.perf_counter_ns(), cpu(), []
while time.perf_counter_ns() - begun < float(sys.argv[1]) * 1e9:
    at = time.process_time_ns()
    for _ in range(20):
        step()
    blocks.append((time.process_time_ns() - at) / 20 / 1e3)
share = (cpu() - begun_cpu) / (time.perf_counter_ns() - begun)
print(json.dumps({"us": statistics.median(blocks), "share": 100 * share}))
"""


def main() -> None:
    """Prints one line a setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="idle threads beside the training")
    options = parser.parse_args()
    settings = ("0", "20", "50", "200")
    found: dict[str, list[dict[str, float]]] = {setting: [] for setting in settings}
    for _ in range(options.runs):
        for setting in settings:
            found[setting].append(measured(setting, options.seconds, options.threads))
    for setting, results in found.items():
        share = statistics.median(result["share"] for result in results)
        step = statistics.median(result["us"] for result in results)
        print(
            f"TRACEML_STACK_HZ={setting:<4} thread {share:.2f} % of a core, {step:,.0f} us a step"
        )


def measured(setting: str, seconds: float, threads: int) -> dict[str, float]:
    """What one child found."""
    with tempfile.TemporaryDirectory() as directory:
        variables = {"TRACEML_ENABLE": "1", "TRACEML_DIR": directory, "TRACEML_SUMMARY": "0"}
        done = subprocess.run(
            [sys.executable, "-c", TRAINING, str(seconds), str(threads)],
            env=environment(**variables, TRACEML_STACK_HZ=setting),
            capture_output=True,
            text=True,
            check=True,
            cwd=directory,
        )
    result: dict[str, float] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    main()
