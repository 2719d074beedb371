"""How long a fold takes and how much memory it needs: `make bench-fold` prints two tables.

Jobs are simulated with digests, as real ones write them, and with a known straggler; each is folded
in a child process of its own. Wall and CPU time: on a machine with other work they differ. The
second table, and the figure that is drawn of it, has more and more ranks of 500 steps.
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
    "named": [f["ranks"] for f in payload["findings"] if f["kind"] == "INPUT_STRAGGLER"],
}))
"""
SLOW_RANK = 17
SERIES = (256, 512, 1_024, 2_048, 4_096)


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


def job_of(ranks: int, steps: int, step_ms: float, has_digests: bool) -> Job:
    straggler = Straggler(SLOW_RANK, "input_wait", 20)
    return Job(ranks, steps, step_ms=step_ms, stragglers=(straggler,), has_digests=has_digests)


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
    assert figures["named"] == [[SLOW_RANK]], f"not rank {SLOW_RANK}: {figures['named']}"
    return Fold(figures["wall_s"], figures["cpu_s"], figures["rss_mb"], size_mb)


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


def draw(found: list[tuple[int, Fold]], path: Path) -> None:
    """CPU time against ranks, and the line through the origin that fits best."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fold"
    from matplotlib import pyplot

    ranks, times = [n for n, _ in found], [fold.cpu_s for _, fold in found]
    slope = sum(n * t for n, t in zip(ranks, times, strict=True)) / sum(n * n for n in ranks)
    figure, axes = pyplot.subplots(figsize=(6.4, 4.0))
    axes.plot([0, max(ranks)], [0, slope * max(ranks)], "--", color="0.6",
              label=f"{slope * 1e3:.1f} ms a rank")  # fmt: skip
    axes.plot(ranks, times, "o", color="C0", label="measured")
    axes.set(xlabel="ranks of 500 steps", ylabel="CPU time of the fold (s)", xlim=0, ylim=0)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def series(job: Job, timeout_s: float, path: Path) -> None:
    """Twice as many ranks each time."""
    print("\n| ranks | spools and digests | fold | CPU | CPU a rank | peak RSS |")
    print("|---|---|---|---|---|---|")
    found: list[tuple[int, Fold]] = []
    for ranks in SERIES:
        part = measure(replace(job, ranks=ranks), timeout_s)
        if part is None:
            print(f"| {ranks:,} | | | | not done in time | |")
            continue
        found.append((ranks, part))
        print(f"| {ranks:,} | {part.size_mb:,.0f} MB | {part.wall_s:.1f} s | {part.cpu_s:.1f} s | "
              f"{part.cpu_s / ranks * 1e3:.1f} ms | {part.rss_mb:,.0f} MB |",
              flush=True)  # fmt: skip
    draw(found, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step-ms", type=float, default=100.0)  # 500 ms of them are a batch
    parser.add_argument("--only", type=int, help="only the goal with this many ranks")
    parser.add_argument("--no-digests", action="store_true", help="as if they were gone")
    parser.add_argument("--no-series", action="store_true", help="leave out what shows the growth")
    parser.add_argument("--figure", type=Path, default=Path("build/fold.svg"))
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds for one fold")
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
          f"Python {platform.python_version()}, steps of {arguments.step_ms:g} ms")  # fmt: skip
    print("| ranks x steps | spools and digests | fold | CPU | peak RSS | goal | |")
    print("|---|---|---|---|---|---|---|")
    for goal in GOALS:
        if arguments.only not in (None, goal.ranks):
            continue
        job = job_of(goal.ranks, goal.steps, arguments.step_ms, not arguments.no_digests)
        whole = measure(job, arguments.timeout)
        memory = f", {goal.rss_mb:.0f} MB" if goal.rss_mb else ""
        judged = "" if whole is None else f" | {verdict(goal, whole)}"
        row(job, whole, f"{goal.wall_s:.0f} s{memory}{judged}")
    if not arguments.no_series and arguments.only is None:
        arguments.figure.parent.mkdir(parents=True, exist_ok=True)
        growing = job_of(0, 500, arguments.step_ms, not arguments.no_digests)
        series(growing, arguments.timeout, arguments.figure)


if __name__ == "__main__":
    main()
