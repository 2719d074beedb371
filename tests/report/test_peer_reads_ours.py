"""The tools of traceml-ai 0.5.0, from PyPI, accept our summaries and show the same numbers.

`final_summary.json` promises to be a superset of that program's format, so that program is asked.
Its `view` and `compare` need no dependency. Where it cannot be installed these tests fail: a
promise that was not checked is not kept.
"""

import json
import re
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import run, write
from tests.ranks.job import Job, write_job
from tests.report import synthetic_run as made
from tests.report.test_communication import STATUSES, calls
from traceml_agent.report.fold import fold_and_write

PEER = "traceml-ai==0.5.0"
SECTIONS = ("system", "process", "step_time", "step_memory")
MS_ROUNDING = 0.05 + 1e-9
PERCENT_ROUNDING = 0.5 + 1e-9
MIB = 1024**2

pytestmark = pytest.mark.slow

WAITING = """
import time
import torch
from torch.utils.data import DataLoader, Dataset

class Slow(Dataset):
    def __len__(self):
        return 240

    def __getitem__(self, index):
        time.sleep(0.004)
        return torch.full((64,), float(index)), index % 10

model = torch.nn.Linear(64, 10)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for items, labels in DataLoader(Slow(), batch_size=8):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(items), labels).backward()
    optimizer.step()
"""

COMPUTING = """
import torch
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
layers = [torch.nn.Linear(2048, 2048) for _ in range(3)]
model = torch.nn.Sequential(*layers, torch.nn.Linear(2048, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
data = TensorDataset(torch.randn(1280, 2048), torch.randint(10, (1280,)))
for step, (items, labels) in enumerate(DataLoader(data, batch_size=32)):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(items), labels).backward()
    optimizer.step()
    if step % 10 == 9:
        model.eval()
        with torch.no_grad():
            for _ in range(5):
                model(items)
        model.train()
"""

TREE = {
    "Step Time": "step_time_ms",
    "Input Wait": "input_wait_ms",
    "Compute": "compute_ms",
    "Forward": "forward_ms",
    "Backward": "backward_ms",
    "Optimizer": "optimizer_ms",
    "H2D": "h2d_ms",
    "Residual": "residual_ms",
}
"""Label in the peer's card -> metric."""
TREE_ROW = re.compile(rf"({'|'.join(TREE)})\s+([\d.]+) ms\s+(<?)(\d+)%")
COMPARED_SYSTEM = {"cpu_avg_percent": "cpu_percent", "gpu_util_avg_percent": "gpu_util_percent"}
COMPARED_STEP_TIME = {
    "step_time_ms": "step_time_cpu_ms",
    "input_ms": "input_wait_ms",
    **{name: name for name in ("dataloader_fetch_cpu_ms", "h2d_ms", "compute_ms", "residual_ms")},
    **{name: name for name in ("forward_ms", "backward_ms", "optimizer_ms")},
}
"""Name in the peer's comparison -> metric."""


@dataclass(frozen=True)
class Peer:
    """An environment that holds the peer and nothing else."""

    bin: Path

    def traceml(self, *arguments: object) -> str:
        """Standard output of its command, which must succeed."""
        return output_of(self.bin / "traceml", *arguments)

    def python(self, code: str, *arguments: object) -> str:
        return output_of(self.bin / "python", "-c", code, *arguments)


@dataclass(frozen=True)
class Ours:
    """A summary that our agent wrote."""

    path: Path
    payload: dict[str, Any]

    @property
    def average(self) -> dict[str, Any]:
        return dict(self.payload["step_time"]["global"]["average"])


def output_of(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Peer:
    """A fresh environment with the peer from the package index."""
    where = tmp_path_factory.mktemp("peer") / "venv"
    uv = Path(sys.executable).with_name("uv")
    venv.create(where, with_pip=not uv.exists())
    python = where / "bin" / "python"
    install = [uv, "pip", "install", "--python", python] if uv.exists() else None
    output_of(*(install or [python, "-m", "pip", "install"]), "-q", "--no-deps", PEER)
    return Peer(where / "bin")


def trained(directory: Path, script: str) -> Ours:
    """The summary of a child process that runs the script under our agent."""
    result = run(directory, write(directory, script))
    assert result.returncode == 0, result.stderr
    return Ours(result.run_dir / "final_summary.json", result.summary)


@pytest.fixture(scope="session")
def waiting(tmp_path_factory: pytest.TempPathFactory) -> Ours:
    """A training that waits for its input."""
    return trained(tmp_path_factory.mktemp("waiting"), WAITING)


@pytest.fixture(scope="session")
def computing(tmp_path_factory: pytest.TempPathFactory) -> Ours:
    """A training that computes, and validates now and then."""
    return trained(tmp_path_factory.mktemp("computing"), COMPUTING)


@pytest.fixture(params=["waiting", "computing"])
def ours(request: pytest.FixtureRequest) -> Ours:
    """Each of the two."""
    summary: Ours = request.getfixturevalue(request.param)
    return summary


def folded(run_dir: Path) -> Ours:
    """The summary of a run written by hand."""
    summary = fold_and_write(run_dir)
    return Ours(run_dir / "final_summary.json", summary.payload)


def assert_tree_shows(card: str, metrics: Mapping[str, float]) -> None:
    """The step times of a card, and their shares, are these metrics to the last digit shown."""
    found = {TREE[name]: row for name, *row in TREE_ROW.findall(card)}
    assert set(found) == {name for name in TREE.values() if metrics[name] is not None}
    for name, (shown_ms, less_than, percent) in found.items():
        assert float(shown_ms) == pytest.approx(metrics[name], abs=MS_ROUNDING), name
        share = 100 * metrics[name] / metrics["step_time_ms"]
        shown = 0 if less_than else float(percent)
        assert share == pytest.approx(shown, abs=1 if less_than else PERCENT_ROUNDING), name


def test_the_two_runs_have_the_verdicts_they_were_made_for(waiting: Ours, computing: Ours) -> None:
    assert waiting.payload["primary_diagnosis"]["kind"] == "INPUT_BOUND"
    assert computing.payload["primary_diagnosis"]["kind"] == "COMPUTE_BOUND"
    assert computing.average["eval_ms"] > 0


def test_view_prints_our_text(peer: Peer, ours: Ours) -> None:
    assert peer.traceml("view", ours.path).rstrip() == ours.payload["text"].rstrip()


def test_the_card_that_view_makes_anew_shows_our_verdict_and_times(peer: Peer, ours: Ours) -> None:
    card = peer.traceml("view", ours.path, "--re-render")
    assert "TraceML Run Summary" in card
    primary, used = ours.payload["primary_diagnosis"], ours.payload["analysis_window"]
    assert re.search(rf"Verdict: {re.escape(primary['status'])} ", card)
    assert ("(CRITICAL)" in card) == (primary["severity"] == "crit")
    assert f" {used['end_step'] - used['start_step'] + 1} common steps" in card
    assert_tree_shows(card, ours.average)


def test_the_reason_that_view_gives_has_the_share_of_its_table(peer: Peer, ours: Ours) -> None:
    why = re.search(
        r"Why: (.+) took (\d+)% of Step Time", peer.traceml("view", ours.path, "--re-render")
    )
    assert why is not None
    name = {"Input Wait": "input_wait_ms", "Compute": "compute_ms"}[why[1]]
    share = 100 * ours.average[name] / ours.average["step_time_ms"]
    assert float(why[2]) == pytest.approx(share, abs=PERCENT_ROUNDING)


def test_the_card_shows_our_figures_of_process_and_host(peer: Peer, ours: Ours) -> None:
    card = peer.traceml("view", ours.path, "--re-render")
    process = ours.payload["process"]["global"]["average"]
    system = ours.payload["system"]["global"]["average"]
    shown = re.search(r"\|  CPU +(\d+)% .*CPU capacity +(\d+)%", card)
    memory = re.search(r"RAM used +([\d.]+) GB \((\d+)%\).*RSS used +([\d.]+) GB \((\d+)%\)", card)
    assert shown is not None and memory is not None, card
    expected = (system["cpu_percent"], process["cpu_capacity_percent"])
    assert list(map(float, shown.groups())) == pytest.approx(list(expected), abs=PERCENT_ROUNDING)
    used = (system["ram_bytes"], process["ram_bytes"])
    assert [float(memory[1]), float(memory[3])] == pytest.approx([n / 1e9 for n in used], abs=0.051)


def test_the_page_that_view_writes_has_each_average_of_each_section(
    peer: Peer, ours: Ours, tmp_path: Path
) -> None:
    peer.traceml("view", ours.path, "--html", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    primary = ours.payload["primary_diagnosis"]
    assert f'<span class="kind">{primary["status"]}</span>' in page
    for name in SECTIONS:
        assert f"<b>{ours.payload[name]['diagnosis']['status']}</b>" in page
    cell = r'<td class="metric">([^<]+)</td><td class="num">([\d,.]+)&thinsp;ms'
    shown = {label.lower(): float(ms.replace(",", "")) for label, ms in re.findall(cell, page)}
    for label, name in {**TREE, "eval_ms": "eval_ms"}.items():
        assert shown[label.lower()] == pytest.approx(ours.average[name], abs=MS_ROUNDING), label


def compare(peer: Peer, left: Ours, right: Ours, base: Path) -> tuple[str, dict[str, Any]]:
    """What the peer prints of two summaries, and the file it writes."""
    printed = peer.traceml("compare", left.path, right.path, "--output", base)
    return printed, json.loads(base.with_suffix(".json").read_text())


def test_compare_finds_our_figures_on_both_sides(
    peer: Peer, waiting: Ours, computing: Ours, tmp_path: Path
) -> None:
    _, found = compare(peer, waiting, computing, tmp_path / "c")
    assert found["warnings"] == []
    assert found["sections"]["step_time"]["comparison_clock"] == "cpu"
    for side, summary in (("lhs", waiting), ("rhs", computing)):
        times = found["sections"]["step_time"]["metrics"]
        for theirs, name in COMPARED_STEP_TIME.items():
            assert times[theirs][side] == summary.average[name], theirs
        system = summary.payload["system"]["global"]["average"]
        for theirs, name in COMPARED_SYSTEM.items():
            assert found["sections"]["system"]["metrics"][theirs][side] == system[name]
        process = summary.payload["process"]["global"]["average"]
        shown = found["sections"]["process"]["metrics"]
        assert shown["cpu_avg_percent"][side] == process["cpu_percent"]
        assert shown["rss_avg_gb"][side] == process["ram_bytes"] / 1024**3


def test_compare_prints_our_verdicts_and_step_times(
    peer: Peer, waiting: Ours, computing: Ours, tmp_path: Path
) -> None:
    printed, _ = compare(peer, waiting, computing, tmp_path / "c")
    status = [summary.payload["primary_diagnosis"]["status"] for summary in (waiting, computing)]
    assert f"Primary diagnosis: {status[0]} -> {status[1]} (changed)" in printed
    row = re.search(r"CPU Step Time +([\d.]+) ms +([\d.]+) ms", printed)
    assert row is not None, printed
    expected = [summary.average["step_time_ms"] for summary in (waiting, computing)]
    assert list(map(float, row.groups())) == pytest.approx(expected, abs=MS_ROUNDING)


CHECK = """
import json, sys
from traceml_ai.reporting.schema import BaseSectionPayload, empty_section_payload

def lacking(theirs, ours, path):
    if not isinstance(theirs, dict):
        return []
    found = [f"{path}.{key}" for key in theirs if key not in ours]
    for key in theirs:
        found += lacking(theirs[key], ours.get(key), f"{path}.{key}") if key in ours else []
    return found

payload, missing = json.load(open(sys.argv[1])), []
for name in sys.argv[2:]:
    ours = payload[name]
    missing += lacking(empty_section_payload(section_name=name), ours, name)
    BaseSectionPayload(
        ours["metadata"], ours["diagnosis"], ours["issues"], ours["global"], ours["groups"],
        ours["units"], ours["card"],
    ).to_json()
print(json.dumps(missing))
"""
"""Passes our sections through the checks that the peer makes of its own before it writes them."""


def test_each_section_passes_the_peers_own_checks_and_lacks_no_field(
    peer: Peer, ours: Ours
) -> None:
    assert json.loads(peer.python(CHECK, ours.path, *SECTIONS)) == []


def test_compare_knows_our_label_of_growing_memory(peer: Peer, tmp_path: Path) -> None:
    for name, growth in (("steady", 0), ("growing", 40)):
        samples = made.process_samples([(400 + growth * i) * MIB for i in range(30)])
        made.run_of(tmp_path / name, made.steps(300), more=samples)
    steady, growing = folded(tmp_path / "steady"), folded(tmp_path / "growing")
    _, found = compare(peer, steady, growing, tmp_path / "c")
    reasons = [finding["why"] for finding in found["verdict"]["findings"]]
    assert "Step memory diagnosis worsened from NO GPU to MEMORY CREEP." in reasons


@pytest.mark.parametrize(
    ("count", "left_out", "reason"),
    [
        (1, None, "Only 1 completed step was available"),
        (30, "forward", "Missing timing signals: forward."),
    ],
)
def test_the_card_says_why_steps_cannot_be_judged(
    peer: Peer, tmp_path: Path, count: int, left_out: str | None, reason: str
) -> None:
    statuses = {**made.ACTIVE, **({left_out: "not in: x"} if left_out else {})}
    made.run_of(tmp_path, made.steps(count), statuses=statuses)
    card = peer.traceml("view", folded(tmp_path).path, "--re-render")
    assert "Verdict: INSUFFICIENT STEP-TIME DATA" in card
    assert reason in card


def test_of_two_ranks_the_card_shows_the_row_of_the_lower_median(
    peer: Peer, tmp_path: Path
) -> None:
    for rank, step_ms in ((0, 14.0), (1, 12.0)):
        batch = made.steps(60, step_ms=step_ms)
        made.run_of(tmp_path, batch, header=made.rank_header(rank, 2))
    summary = folded(tmp_path)
    card = peer.traceml("view", summary.path, "--re-render")
    assert "2/2 ranks" in card
    assert "STEP TIMING (Median R1/N0), CPU Clock" in card
    assert_tree_shows(card, summary.payload["step_time"]["groups"]["rows"]["1"]["metrics"])


@pytest.mark.parametrize("slow_ms", [4.0, 0.4])
def test_a_job_that_talks_is_shown_and_compared(peer: Peer, tmp_path: Path, slow_ms: float) -> None:
    """With a verdict that is only ours, and with an amended one of theirs."""
    for name, ms in (("slow", slow_ms), ("even", 0.1)):
        for rank, more_ms in enumerate((4.0 if name == "slow" else 0.1, ms)):
            header = made.rank_header(rank, 2)
            batch = made.steps(60, phases={"forward": 5.0, "backward": 4.5, "optimizer": 0.5})
            more = [calls([more_ms] * 60, phase=2)]
            made.run_of(tmp_path / name, batch, statuses=STATUSES, more=more, header=header)
    slow, even = folded(tmp_path / "slow"), folded(tmp_path / "even")
    primary = slow.payload["primary_diagnosis"]
    assert primary["kind"] == ("COMMUNICATION_BOUND" if slow_ms == 4.0 else "COMPUTE_BOUND")
    assert "communication" in primary["summary"] or "collectives" in primary["summary"]
    assert peer.traceml("view", slow.path).rstrip() == slow.payload["text"].rstrip()
    card = peer.traceml("view", slow.path, "--re-render")
    assert f"Verdict: {primary['status']} " in card
    assert_tree_shows(card, slow.payload["step_time"]["groups"]["rows"]["0"]["metrics"])
    peer.traceml("view", slow.path, "--html", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f'<span class="kind">{primary["status"]}</span>' in page
    compare(peer, even, slow, tmp_path / "c")


@pytest.mark.parametrize(
    ("more", "status", "why"),
    [
        (
            {"input_wait": 20.0},
            "INPUT STRAGGLER",
            r"R3(/N1)? waited 20\.5 ms for input; R\d(/N\d)? waited 0\.5 ms for input\.",
        ),
        ({"h2d": 20.0}, "H2D STRAGGLER", r"R3(/N1)? spent 20\.0 ms on H2D transfers"),
        ({"forward": 20.0}, "COMPUTE STRAGGLER", r"R3(/N1)? spent 31\.0 ms in Forward"),
        (
            {"input_wait": 10.0, "forward": 10.0},
            "STRAGGLER",
            r"R3(/N1)? was the straggler; R\d(/N\d)? spent 20\.0 ms longer in Backward",
        ),
        (
            {"eval": 20.0},
            "STRAGGLER",
            r"R3(/N1)? was the straggler; R\d(/N\d)? spent 19\.\d ms longer in Backward",
        ),
    ],
)
def test_the_rank_that_we_name_is_the_one_that_the_card_names(
    peer: Peer, tmp_path: Path, more: dict[str, float], status: str, why: str
) -> None:
    many = Job(nodes=2, steps=60)
    write_job(tmp_path / "slow", many, lambda rank, step: more if rank == 3 else {})
    write_job(tmp_path / "even", many)
    slow, even = folded(tmp_path / "slow"), folded(tmp_path / "even")
    assert slow.payload["primary_diagnosis"]["status"] == status
    assert peer.traceml("view", slow.path).rstrip() == slow.payload["text"].rstrip()
    card = peer.traceml("view", slow.path, "--re-render")
    assert f"Verdict: {status} " in card
    assert re.search(why, " ".join(card.replace("|", " ").split())), card
    peer.traceml("view", slow.path, "--html", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f'<span class="kind">{status}</span>' in page
    printed, found = compare(peer, even, slow, tmp_path / "c")
    verdict = even.payload["primary_diagnosis"]["status"]
    assert f"Primary diagnosis: {verdict} -> {status} (changed)" in printed
    assert found["warnings"] == []
    assert json.loads(peer.python(CHECK, slow.path, *SECTIONS)) == []
