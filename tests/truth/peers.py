"""What other tools say of the same faults: one table, printed and kept in docs/accuracy.md.

    python tests/truth/peers.py [--only WORD] [--write docs/accuracy.md]

Each tool is used as its instructions say: traceml-ai and gpuprof with their edits of the script,
this agent without any. A tool has *found* a fault if it names anything to act on, and has its
*cause* if that is the fault. The tools are installed on first use, each into an environment of its
own.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tests.e2e.harness import environment
from tests.overhead.tools import Tool, by_python, free_port, python_of
from tests.truth.measure import false_alarms, is_right_cause, observe
from tests.truth.scenario import SCRIPT, Scenario
from tests.truth.scenarios import scenarios

BEGIN, END = "<!-- peers:begin -->", "<!-- peers:end -->"
SCALE = "2"
TIMEOUT_S = 300
FAULTS = {
    "metrics-50": "residual",
    "logging": "residual",
    "decode-main-50": "input",
    "decode-worker-60ms": "input",
    "one-slow-item": "input",
    "generator-50": "input",
    "forward-50": "line",
    "optimizer-50": "line",
    "checkpoint-every-20": "checkpoint",
    "eval-every-25": "evaluation",
    "gc-1000k": "collection",
    "recompiles": "recompilation",
    "one-core-two-burners": "cores",
    "memory-leak": "memory",
}
"""Scenarios, and the family of their fault."""
HEALTHY = ("healthy-plain", "healthy-adam", "healthy-rare-log", "healthy-slow-first-step")
CAUSES = {
    "residual": r"RESIDUAL|between phases|unaccounted|outside the (traced )?phases|host overhead",
    "input": r"INPUT|dataloader|loader|waiting on (the )?(data|loader|input)",
    "line": r"line \d|\.py:\d",
    "checkpoint": r"checkpoint|torch\.save",
    "evaluation": r"\beval|validation",
    "collection": r"garbage|\bgc\b",
    "recompilation": r"recompil|compil",
    "cores": r"CPU (contention|starv|pegged|oversub)|HIGH_CPU|CPU[- ]bound",
    "memory": r"CREEP|leak|memory (grow|creep)",
}
"""Words by which a tool names the cause; generous, so that nobody is wronged."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a tool said of one run."""

    names: str  # all that it would have one act on; empty: nothing
    is_found: bool
    is_right: bool
    train_s: float


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="scenarios whose name holds this")
    parser.add_argument("--write", type=Path, help="a page with the marks of the table in it")
    arguments = parser.parse_args()
    os.environ["TRUTH_SCALE"] = SCALE
    known = {scenario.name: scenario for scenario in scenarios()}
    wanted = [known[name] for name in (*FAULTS, *HEALTHY) if arguments.only in name]
    lines = [
        f"| fault | {' | '.join(TOOLS)} |",
        f"|---|{'---|' * len(TOOLS)}",
    ]
    for scenario in wanted:
        off = _off(scenario)
        cells = [_cell(scenario, run(scenario), off) for run in TOOLS.values()]
        lines.append(f"| {scenario.name} | {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines)
    print(text)
    if arguments.write is not None:
        page = arguments.write.read_text()
        before, _, rest = page.partition(BEGIN)
        after = rest.partition(END)[2]
        arguments.write.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")
    return 0


def _cell(scenario: Scenario, found: Verdict | str, off_s: float) -> str:
    if isinstance(found, str):
        return found
    cost = f"{100 * (found.train_s / off_s - 1):+.0f} %"
    if not scenario.kinds:
        return f"{'**false alarm**: ' + found.names[:60] if found.is_found else 'nothing'}; {cost}"
    said = "cause" if found.is_right else "found, other cause" if found.is_found else "not found"
    return f"{said}; {cost}"


def _ours(scenario: Scenario) -> Verdict | str:
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as name:
        outcome = observe(scenario, Path(name) / "run", "fault")
    kinds = false_alarms(outcome)
    right = bool(scenario.kinds) and is_right_cause(scenario, outcome)
    return Verdict(", ".join(kinds), bool(kinds) or right, right, outcome.seconds)


def _off(scenario: Scenario) -> float:
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as name:
        return _run(scenario, Path(name), scenario.text, by_python, Path(sys.executable))[1]


def _run(
    scenario: Scenario,
    directory: Path,
    text: str,
    command: Callable[[Path, Path], list[str]],
    python: Path,
) -> tuple[str, float]:
    """What it printed, and the seconds of the training by the script's own clock."""
    script = directory / SCRIPT
    script.write_text(text)
    done = subprocess.run(
        [*scenario.command, *command(python, script), *_ARGUMENTS.get(command, ("fault",))],
        env=environment(directory, enabled=False, **scenario.variables) | {"TMPDIR": "/tmp"},
        capture_output=True, text=True, timeout=TIMEOUT_S, cwd=directory,
    )  # fmt: skip
    told = re.search(r'\{"lost_s.*\}', done.stdout)
    if done.returncode or told is None:
        raise subprocess.CalledProcessError(done.returncode, command.__name__, stderr=done.stderr)
    return done.stdout + done.stderr, float(json.loads(told[0])["train_s"])


def _peer(tool: Tool, edit: Callable[[str], str], read: Callable[[Path, str], str]):  # type: ignore[no-untyped-def]
    def run(scenario: Scenario) -> Verdict | str:
        python = python_of(tool)
        with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as name:
            directory = Path(name)
            try:
                output, train_s = _run(
                    scenario, directory, edit(scenario.text), tool.command, python
                )
            except subprocess.CalledProcessError as error:
                return f"failed: {(error.stderr or '').strip().splitlines()[-1:]}"
            names = read(directory, output)
        pattern = CAUSES.get(FAULTS.get(scenario.name, ""), r"(?!)")
        return Verdict(names, bool(names), bool(re.search(pattern, names, re.I)), train_s)

    return run


# traceml-ai: two lines and a `with` around each step, started by its own command


def _by_traceml(python: Path, script: Path) -> list[str]:
    ports = ["--aggregator-port", free_port(), "--master-port", free_port()]
    return [str(python.with_name("traceml")), "run", "--logs-dir", "logs", *ports, str(script)]


_ARGUMENTS: dict[object, tuple[str, ...]] = {_by_traceml: ("--args", "fault")}


def _traced(text: str) -> str:
    lines = text.splitlines()
    first = next(n for n, line in enumerate(lines) if "loss = criterion(" in line)
    last = next(n for n, line in enumerate(lines) if line.strip().startswith("ends.append("))
    body = textwrap.indent("\n".join(lines[first:last]), "    ").splitlines()
    lines[first:last] = ["            with traceml_ai.trace_step(model):", *body]
    begin = next(n for n, line in enumerate(lines) if line.startswith("def main"))
    lines.insert(begin + 2, '    import traceml_ai\n    traceml_ai.init(mode="auto")')
    text = "\n".join(lines)
    return text.replace("def main():\n", "def main():\n    global traceml_ai\n", 1)


def _of_traceml(directory: Path, _output: str) -> str:
    (file,) = directory.glob("logs/*/final_summary.json")
    summary = json.loads(file.read_text())
    found = [summary["primary_diagnosis"]]
    for section in ("system", "process", "step_time", "step_memory"):
        found += (summary.get(section) or {}).get("issues") or []
    return ", ".join(
        dict.fromkeys(
            f"{one['kind']} {one.get('summary') or ''}"
            for one in found
            if one.get("severity") in ("warn", "crit") and "CPU" not in one["kind"]
        )
    )


# gpuprof: one line and a `with` around the loop


def _profiled(text: str) -> str:
    lines = text.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("    for epoch in"))
    last = next(n for n, line in enumerate(lines) if line.startswith("    truth = {"))
    body = textwrap.indent("\n".join(lines[first:last]), "    ").splitlines()
    lines[first:last] = ['    with gpuprof.profile("run"):', *body]
    return "import gpuprof\n" + "\n".join(lines)


def _of_gpuprof(_directory: Path, output: str) -> str:
    return ", ".join(re.findall(r"\[(?:HIGH|MED(?:IUM)?)\]\s*(.*)", output))


TOOLS: dict[str, Callable[[Scenario], Verdict | str]] = {
    "traceml-agent": _ours,
    "traceml-ai 0.5.0": _peer(
        Tool("traceml-ai", "traceml-ai==0.5.0", command=_by_traceml), _traced, _of_traceml
    ),
    "gpuprof 0.7.1": _peer(Tool("gpuprof", "gpuprof[host]==0.7.1"), _profiled, _of_gpuprof),
}


if __name__ == "__main__":
    sys.exit(main())
