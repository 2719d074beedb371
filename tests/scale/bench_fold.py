"""How long a fold takes and how much memory it needs: `make bench-fold` prints one table.

Jobs are simulated, with a known straggler; each is folded in a child process of its own. Wall and
CPU time: on a machine with other work they differ. Below each goal half the ranks, then half the
steps: their share of the CPU time is 0.50 where a fold grows linearly.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.scale.job import Job, Straggler
from tests.scale.simulate import write_job

FOLD = """
import json, resource, sys, time
from pathlib import Path
from traceml_agent.report.fold import fold

wall, cpu = time.perf_counter(), time.process_time()
payload = fold(Path(sys.argv[1])).payload
print(json.dumps({
    "wall_s": time.perf_counter() - wall,
    "cpu_s": time.process_time() - cpu,
    "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    "ranks": payload["meta"]["world_size"],
    "worst": payload["step_time"]["global"]["worst"]["input_wait_ms"]["idx"],
    "named": [
        rank
        for issue in payload["step_time"]["issues"]
        if issue["kind"] == "INPUT_STRAGGLER"
        for rank in issue["ranks"]
    ],
}))
"""
SLOW_RANK = 17


@dataclass(frozen=True, slots=True)
class Goal:
    """A size of job, and what a fold of it may take."""

    ranks: int
    steps: int
    wall_s: float
    rss_mb: float | None = None


GOALS = (Goal(64, 20_000, 5.0), Goal(1_024, 2_000, 10.0, 500.0), Goal(8_192, 500, 40.0))


@dataclass(frozen=True, slots=True)
class Fold:
    """What one fold took."""

    wall_s: float
    cpu_s: float
    rss_mb: float
    size_mb: float
    worst: str | None
    named: list[int]  # by the finding INPUT_STRAGGLER


def job_of(ranks: int, steps: int, step_ms: float) -> Job:
    return Job(ranks, steps, step_ms=step_ms, stragglers=(Straggler(SLOW_RANK, "input_wait", 20),))


def measure(job: Job, timeout_s: float) -> Fold | None:
    """Writes the job, folds it in a child and removes it; None if that took too long."""
    with tempfile.TemporaryDirectory() as directory:
        run_dir = write_job(job, Path(directory) / "run")
        size_mb = sum(path.stat().st_size for path in run_dir.iterdir()) / 1e6
        try:
            found = subprocess.run(
                [sys.executable, "-c", FOLD, str(run_dir)],
                capture_output=True,
                text=True,
                check=True,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired:
            return None
    figures = json.loads(found.stdout)
    assert figures["ranks"] == job.ranks
    took = figures["wall_s"], figures["cpu_s"], figures["rss_mb"]
    return Fold(*took, size_mb, figures["worst"], figures["named"])


def verdict(goal: Goal, found: Fold) -> str:
    fits = found.rss_mb <= (goal.rss_mb or found.rss_mb)
    return "met" if found.wall_s <= goal.wall_s and fits else "**missed**"


def row(job: Job, found: Fold | None, last: str) -> None:
    shape = f"{job.ranks:,} x {job.steps:,}"
    if found is None:
        print(f"| {shape} | | | | | {last} | not done in time |", flush=True)
        return
    print(f"| {shape} | {found.size_mb:,.0f} MB | {found.wall_s:.1f} s | {found.cpu_s:.1f} s "
          f"| {found.rss_mb:,.0f} MB | {last} |", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step-ms", type=float, default=100.0)  # 500 ms of them are a batch
    parser.add_argument("--only", type=int, help="only the goal with this many ranks")
    parser.add_argument("--no-halves", action="store_true", help="leave out what shows the growth")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one fold")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
          f"Python {platform.python_version()}, steps of {arguments.step_ms:g} ms")  # fmt: skip
    print("| ranks x steps | spools | fold | CPU | peak RSS | goal | |")
    print("|---|---|---|---|---|---|---|")
    for goal in GOALS:
        if arguments.only not in (None, goal.ranks):
            continue
        job = job_of(goal.ranks, goal.steps, arguments.step_ms)
        whole = measure(job, arguments.timeout)
        memory = f", {goal.rss_mb:.0f} MB" if goal.rss_mb else ""
        judged = "" if whole is None else f" | {verdict(goal, whole)}"
        row(job, whole, f"{goal.wall_s:.0f} s{memory}{judged}")
        if whole is None:
            continue
        assert whole.worst == str(SLOW_RANK), f"rank {whole.worst} named instead of {SLOW_RANK}"
        assert whole.named == [SLOW_RANK], f"the finding names {whole.named}, not {SLOW_RANK}"
        if arguments.no_halves:
            continue
        for half in (replace(job, ranks=goal.ranks // 2), replace(job, steps=goal.steps // 2)):
            part = measure(half, arguments.timeout)
            if part is not None:
                row(half, part, f"linear: 0.50 | {part.cpu_s / whole.cpu_s:.2f}")


if __name__ == "__main__":
    main()
