"""What this agent and three other tools cost, measured side by side in one run: one table.

Each figure is a median over child processes with one torch thread; those of all tools and models
follow in random order. The other tools are installed on first use, each into an environment of its
own, and used as their instructions say. Not a test: a timed test on a shared machine lies half of
the time.
"""

import argparse
import contextlib
import json
import os
import random
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.overhead.bench import environment, machine  # noqa: E402 - found through ROOT
from tests.overhead.tools import OFF, TOOLS, VENVS, NotInstalled, Tool, python_of  # noqa: E402
from tests.overhead.training import MODELS, TRAINING, Model  # noqa: E402 - found through ROOT

TIMEOUT_S = 300  # chosen: a cold compilation of the transformer takes a minute
KILL_AFTER_STEPS = 500
KILL_WITHIN_S = (1.0, 5.0)  # chosen: longer than the flush intervals here, 0.5 to 2 s

COLUMNS = (
    "model", "tool", "steps", "us a step", "ratio", "lowest-highest", "others", "RSS MiB", "others",
    "threads", "processes", "start s", "others", "exit s", "B a step", "kept %", "lost at SIGKILL",
)  # fmt: skip
NOTES = """\
us a step: CPU of the training process, all its threads. others: the same figure for all other
processes of the tool. ratio: to off, in pairs of children; the middle one, and the range.
RSS, threads (native ones too), processes: when the measured steps end. start: CPU until the first
step has ended, `import torch` and what the tool does with it included. exit: wall time from the
last step until the command has returned. B a step: all files that the tool left, by the steps of
the run; in a run of few steps that is mostly what it writes once. kept: share of the steps that
these files hold after a run that ended by itself. lost at SIGKILL: steps that had ended when the
training process alone was killed at a random moment (first model only), and that no file of the
tool holds afterwards: the median and the worst of the kills. torch.profiler writes 3 of 9 steps, by
the schedule for long jobs in PyTorch's recipe (skip_first=10, wait=5, warmup=1, active=3)."""


class Failed(Exception):
    """A child ended without a result; the message is its last line."""


@dataclass(slots=True)
class Found:
    """What the repetitions of one tool on one model gave; None where one failed."""

    readings: list[dict[str, float] | None] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    reason: str = ""  # of the last failure


class Child:
    """A training under a tool, in a directory of its own."""

    def __init__(self, tool: Tool, model: Model, directory: Path, window_s: float, kill: bool):
        self.tool, self.control, self.work = tool, directory / "control", directory / "work"
        self.control.mkdir(parents=True)
        self.work.mkdir()
        script = self.control / "train.py"
        script.write_text(
            TRAINING.substitute(
                setup=tool.setup,
                model=model.code,
                window_s=10 * TIMEOUT_S if kill else window_s,
                warm_steps=model.warm_steps,
                progress='os.write(progress, b".")' if kill else "",
                around=tool.around,
                after=tool.after,
                finish=tool.finish,
            )
        )
        variables = {
            "OVERHEAD_CHILD": uuid.uuid4().hex,
            "TORCHINDUCTOR_CACHE_DIR": str(VENVS.resolve() / "overhead-inductor"),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",  # or it keeps a pool of processes
            **dict(tool.variables),
        }
        self.log = self.control / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                tool.command(python_of(tool), script),
                env=environment(**variables), cwd=self.work, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def stop(self) -> None:
        """Ends what still runs: first the command, which may have processes of its own to end."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def last_line(self) -> str:
        return (self.log.read_text().strip().splitlines() or ["no output"])[-1]

    def reading(self) -> dict[str, float]:
        """The figures of a child that ran to its end. Raises Failed."""
        self.process.wait(TIMEOUT_S)
        ended = time.time()
        result = self.control / "result.json"
        if self.process.returncode or not result.exists():
            raise Failed(self.last_line())
        reading: dict[str, float] = json.loads(result.read_text())
        reading["exit_s"] = ended - reading["end"]
        if self.tool.count_steps:
            reading["kept"] = 100 * min(1, self.tool.count_steps(self.work) / reading["steps"])
        files = [path for path in self.work.rglob("*") if path.is_file()]
        reading["bytes"] = sum(path.stat().st_size for path in files) / reading["steps"]
        return reading

    def lost_by_kill(self, after_s: float) -> int:
        """Steps that ended before a SIGKILL and that the tool's files do not hold."""
        progress = self.control / "progress"
        given_up = time.monotonic() + TIMEOUT_S
        while not progress.exists() or progress.stat().st_size < KILL_AFTER_STEPS:
            if self.process.poll() is not None or time.monotonic() > given_up:
                raise Failed(self.last_line())
            time.sleep(0.02)
        time.sleep(after_s)
        os.kill(int((self.control / "pid").read_text()), signal.SIGKILL)
        self.process.wait(TIMEOUT_S)
        # One mark with each batch, and one step less has ended than batches were there.
        ended = progress.stat().st_size - 1
        return max(0, ended - self.tool.count_steps(self.work))


def measure(
    tools: list[Tool], repetitions: int, kills: int, window_s: float, directory: Path
) -> dict[tuple[str, str], Found]:
    """What all children gave, by model and tool; each failure is also told on stderr."""
    found = {(model.name, tool.name): Found() for model in MODELS for tool in tools}
    shuffled = random.Random(0)
    pairs = [(model, tool) for model in MODELS for tool in tools]
    plan = [(MODELS[-1], tool, "compile") for tool in tools]  # fills the cache of inductor
    for _ in range(repetitions):
        plan += [(*pair, "measure") for pair in shuffled.sample(pairs, len(pairs))]
    plan += [(MODELS[0], t, "kill") for _ in range(kills) for t in tools if t.count_steps]
    begun = time.monotonic()
    for number, (model, tool, purpose) in enumerate(plan):
        step = f"{number + 1}/{len(plan)} {purpose}: {model.name}, {tool.name}"
        if sys.stderr.isatty():
            print(f"\r{time.monotonic() - begun:4.0f} s {step:<70}", end="", file=sys.stderr)
        one = found[model.name, tool.name]
        child = Child(tool, model, directory / str(number), window_s, purpose == "kill")
        try:
            if purpose == "kill":
                one.lost.append(child.lost_by_kill(shuffled.uniform(*KILL_WITHIN_S)))
            elif purpose == "measure":
                one.readings.append(child.reading())
            else:
                child.reading()
        except (Failed, subprocess.TimeoutExpired) as error:
            one.reason = str(error)
            if purpose == "measure":
                one.readings.append(None)
            print(f"\n{step}: {error}", file=sys.stderr)
        finally:
            child.stop()
    print(f"\r{time.monotonic() - begun:4.0f} s {'in all':<70}", file=sys.stderr)
    return found


def row(model: Model, tool: Tool, one: Found, off: Found) -> list[str]:
    """The cells of one line of the table; three where nothing was measured."""
    readings = [reading for reading in one.readings if reading]
    if not readings:
        return [model.name, tool.name, f"failed: {one.reason}"]

    def middle(name: str, form: str = ",.0f") -> str:
        if name not in readings[0]:
            return "-"
        return format(statistics.median(reading[name] for reading in readings), form)

    both = zip(one.readings, off.readings, strict=True)
    ratios = sorted(mine["us"] / without["us"] for mine, without in both if mine and without)
    compared = tool is not OFF and ratios
    lost = "failed" if tool.count_steps and model is MODELS[0] else "-"
    if one.lost:
        lost = f"{statistics.median(one.lost):.0f}, {max(one.lost)}"
    return [
        model.name, tool.name, middle("steps"), middle("us"),
        f"{statistics.median(ratios):.3f}" if compared else "",
        f"{ratios[0]:.3f}-{ratios[-1]:.3f}" if compared else "",
        middle("others_us"), middle("mib"), middle("others_mib"), middle("threads"),
        middle("processes"), middle("start_s", ".2f"), middle("start_others_s", ".2f"),
        middle("exit_s", ".2f"), middle("bytes"), middle("kept", ".1f"), lost,
    ]  # fmt: skip


def plain(rows: list[list[str]]) -> str:
    """The rows in aligned columns: names to the left, numbers to the right."""
    whole = [cells for cells in rows if len(cells) == len(COLUMNS)]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *whole, strict=True)]
    lines = []
    for cells in [list(COLUMNS), *rows]:
        short = len(cells) < len(COLUMNS)
        padded = [
            cell.ljust(width) if number < 2 or short else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(cells, widths, strict=False))
        ]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def markdown(rows: list[list[str]], head: list[str]) -> str:
    """The block for docs/overhead.md."""
    table = [COLUMNS, ["---"] * len(COLUMNS)]
    table += [cells + [""] * (len(COLUMNS) - len(cells)) for cells in rows]
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    return "\n".join([*head, "", *lines, "", NOTES, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one short repetition, for trying")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    repetitions = 1 if arguments.quick else arguments.repetitions
    kills, window_s = (1, 0.5) if arguments.quick else (3, 3.0)
    tools, absent = [], []
    for tool in TOOLS:
        try:
            python_of(tool)
            tools.append(tool)
        except NotInstalled as reason:
            absent.append(["all", tool.name, f"not installed: {reason}"])
    with tempfile.TemporaryDirectory() as directory:
        found = measure(tools, repetitions, kills, window_s, Path(directory))
    rows = [
        row(model, tool, found[model.name, tool.name], found[model.name, OFF.name])
        for model in MODELS
        for tool in tools
    ]
    head = [
        f"{machine()}, one torch thread, {date.today()}.",
        f"Runs of {window_s} s after a warm-up, {repetitions} of each; {kills} kills of each tool:",
        f"`python {shlex.join(sys.argv)}`",
    ]
    print(*head, "", plain(rows + absent), "", NOTES, sep="\n")
    if arguments.markdown:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(markdown(rows + absent, head))


if __name__ == "__main__":
    main()
