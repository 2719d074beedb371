"""`make truth`: every scenario, faulty between two clean twins; prints docs/accuracy.md's tables.

    python tests/truth/bench.py [--only WORD] [--healthy N] [--rows FILE [--kept]]
        [--write docs/accuracy.md]

Exit code 1: a goal of the page was missed. A quiet machine: other work changes the twins. `--rows`:
each scenario is kept in that file as soon as it has run, and one that is there is not run again;
with `--kept` no other one is run.
"""

import argparse
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch

from tests.truth.measure import (
    Outcome,
    false_alarms,
    holds_clean_twin,
    is_narrow,
    is_right_cause,
    is_right_line,
    observe,
    observe_both,
)
from tests.truth.scenario import Scenario
from tests.truth.scenarios import scenarios
from traceml_agent.version import __version__

BEGIN, END = "<!-- truth:begin -->", "<!-- truth:end -->"
SHARE_POINTS = 0.05
SCALE = "3"
"""Runs of some 9 s: a line that takes a tenth of it is then in 18 samples."""
GOALS = {"cause": 0.95, "line": 0.90, "share": 0.95, "what-if": 0.95, "width": 0.95}


@dataclass(frozen=True, slots=True)
class Row:
    """A scenario and how each of its claims came out; None: it makes no such claim."""

    scenario: Scenario
    fault: Outcome
    rated: Outcome  # the run whose interval is judged
    clean_ms: Sequence[float]  # what has to be met: of each twin, or from and to
    cause: bool
    line: bool | None
    share: bool | None
    what_if: bool | None
    width: bool | None


class _Kept:
    """Results by their name, in a file of JSON lines; without a file it keeps nothing."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        lines = file.read_text().splitlines() if file is not None and file.exists() else []
        self._known: dict[str, Any] = dict(map(json.loads, lines))

    def get(self, name: str) -> Any:
        return self._known.get(name)

    def add(self, name: str, value: Any) -> None:
        if self._file is not None:
            with self._file.open("a") as out:
                out.write(json.dumps([name, value]) + "\n")


def main() -> int:
    arguments = _arguments()
    wanted = [s for s in scenarios() if arguments.only in s.name]
    faulty, healthy = [s for s in wanted if s.kinds], [s for s in wanted if not s.kinds]
    directory = Path(tempfile.mkdtemp(prefix="truth-"))
    try:
        os.environ["TRUTH_SCALE"] = SCALE
        kept = _Kept(arguments.rows)
        if arguments.kept:
            faulty = [scenario for scenario in faulty if kept.get(scenario.name) is not None]
        rows = [_row(scenario, directory, kept) for scenario in faulty]
        os.environ["TRUTH_SCALE"] = "1"
        alarms = _healthy(healthy, arguments.healthy, directory, kept)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    text = _report(rows, alarms)
    print(text)
    if arguments.write is not None:
        _write(arguments.write, text)
    return 0 if _reached(rows, alarms) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="scenarios whose name holds this")
    parser.add_argument("--healthy", type=int, default=200, help="healthy runs")
    parser.add_argument("--rows", type=Path, help="what has run is kept here, a line each")
    parser.add_argument("--kept", action="store_true", help="only what is there already")
    parser.add_argument("--write", type=Path, help="a page with the marks of the tables in it")
    return parser.parse_args()


def _row(scenario: Scenario, directory: Path, kept: _Kept) -> Row:
    known = kept.get(scenario.name)
    if known is None:
        fault, rated, clean = _measured(scenario, directory)
        kept.add(scenario.name, [asdict(fault), asdict(rated), clean])
    else:
        fault, rated, clean = _outcome(known[0]), _outcome(known[1]), known[2]
    row = _judged(scenario, fault, rated, clean)
    print(_line(row), file=sys.stderr, flush=True)
    return row


def _outcome(values: dict[str, Any]) -> Outcome:
    """As it was kept: JSON knows no tuples."""
    lists = {f.name for f in fields(Outcome) if isinstance(values[f.name], list)}
    return Outcome(**{k: tuple(v) if k in lists else v for k, v in values.items()})


def _measured(scenario: Scenario, directory: Path) -> tuple[Outcome, Outcome, list[float]]:
    """The run with the fault, that whose interval is judged, and the steps without the fault."""
    place = directory / scenario.name
    twins = scenario.has_clean_twin and not scenario.toggles
    clean = [observe(scenario, place / "before", "clean").step_ms] if twins else []
    fault = observe(scenario, place / "fault", "fault")
    if twins:
        clean.append(observe(scenario, place / "after", "clean").step_ms)
    rated = fault
    if scenario.toggles:
        rated, clean = observe_both(scenario, place / "both", fault)
    shutil.rmtree(place)
    return fault, rated, clean


def _judged(scenario: Scenario, fault: Outcome, rated: Outcome, clean: list[float]) -> Row:
    known = fault.share is not None and fault.true_share is not None
    return Row(
        scenario,
        fault,
        rated,
        clean,
        cause=is_right_cause(scenario, fault),
        line=is_right_line(scenario, fault) if scenario.has_line else None,
        share=abs((fault.share or 0.0) - (fault.true_share or 0.0)) <= SHARE_POINTS
        if known
        else None,
        what_if=holds_clean_twin(rated, clean),
        width=is_narrow(rated, clean),
    )


def _healthy(
    healthy: Sequence[Scenario], runs: int, directory: Path, kept: _Kept
) -> list[tuple[str, tuple[str, ...]]]:
    """Name and false alarms of each healthy run."""
    found = []
    for number in range(runs if healthy else 0):
        scenario = healthy[number % len(healthy)]
        name = f"{scenario.name}-{number}"
        alarms = kept.get(name)
        if alarms is None:
            place = directory / name
            alarms = false_alarms(observe(scenario, place, "fault"))
            shutil.rmtree(place)
            kept.add(name, alarms)
        found.append((scenario.name, tuple(alarms)))
        if found[-1][1]:
            print(f"false alarm: {found[-1]}", file=sys.stderr, flush=True)
    return found


def _share(rows: Sequence[Row], claim: str) -> tuple[int, int]:
    """How many of the scenarios with this claim are right, and how many there are."""
    name = claim.replace("-", "_")
    known = [value for row in rows if (value := getattr(row, name)) is not None]
    return sum(known), len(known)


def _reached(rows: Sequence[Row], alarms: Sequence[tuple[str, tuple[str, ...]]]) -> bool:
    for claim, goal in GOALS.items():
        right, count = _share(rows, claim)
        if count and right / count < goal:
            return False
    return sum(bool(found) for _, found in alarms) <= 0.01 * len(alarms)


def _report(rows: Sequence[Row], alarms: Sequence[tuple[str, tuple[str, ...]]]) -> str:
    lines = [
        f"traceml-agent {__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, {platform.machine()}; `make truth`",
        "",
        "| | scenarios | cause | line | share | what-if | width |",
        "|---|---|---|---|---|---|---|",
    ]
    for title, chosen in (
        ("tuned on", [row for row in rows if not row.scenario.held_out]),
        ("held out", [row for row in rows if row.scenario.held_out]),
    ):
        cells = [f"{right} of {count}" for right, count in (_share(chosen, c) for c in GOALS)]
        lines.append(f"| {title} | {len(chosen)} | {' | '.join(cells)} |")
    wrong = [(name, found) for name, found in alarms if found]
    lines += ["", f"False alarms: {len(wrong)} of {len(alarms)} healthy runs."]
    lines += [f"* {name}: {', '.join(found)}" for name, found in wrong]
    lines += [
        "",
        "| scenario | found | line | share: true, found | step without: twin, interval |",
        "|---|---|---|---|---|",
        *(f"| {_cells(row)} |" for row in rows),
    ]
    return "\n".join(lines)


def _cells(row: Row) -> str:
    fault = row.fault
    found = fault.found or ", ".join((fault.primary, *fault.kinds[:2]))
    shares = "-"
    if fault.true_share is not None:
        shares = f"{fault.true_share:.1%}, "
        shares += "-" if fault.share is None else f"{fault.share:.1%}"
    left = " and ".join(f"{ms:.1f}" for ms in row.clean_ms) + " ms" if row.clean_ms else "-"
    if row.rated.low_ms is not None and row.clean_ms:
        left += f", {row.rated.low_ms:.1f} to {row.rated.high_ms:.1f} ms"
    marks = [_mark(value) for value in (row.cause, row.line, row.share, row.what_if)]
    return " | ".join(
        (
            row.scenario.name,
            f"{found} {marks[0]}",
            marks[1],
            f"{shares} {marks[2]}".rstrip(),
            f"{left} {marks[3]}".rstrip() + (", wide" if row.width is False else ""),
        )
    )


def _mark(value: bool | None) -> str:
    return "" if value is None else "right" if value else "**wrong**"


def _line(row: Row) -> str:
    return re.sub(r"\*\*", "", _cells(row))


def _write(page: Path, text: str) -> None:
    old = page.read_text()
    before, _, rest = old.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
