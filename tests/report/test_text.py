"""The text: at most 40 lines of 90 columns, verdict first, ASCII where asked."""

import pytest

from tests.report import synthetic_run as made
from traceml_agent.report.fold import fold
from traceml_agent.report.render.text import MOST_LINES, WIDTH, render_text
from traceml_agent.schema.records import GpuSample

LONG = "a reason of many words that goes on and on " * 10


def crowded_run(run_dir):
    """Everything at once: GPUs, faults, missing ranks, problems, a failure."""
    gpus = [
        GpuSample(1, index, util_percent=12.0, memory_used_bytes=9, memory_total_bytes=10,
                  power_w=650.0, power_limit_w=700.0, temperature_c=91.0)
        for index in range(8)
    ]  # fmt: skip
    batch = made.steps(60, phases={"input_wait": 4.0, "forward": 3.0, "h2d": 1.5})
    records = [
        made.Patches(1, {**made.ACTIVE, "gpu": LONG, "ring": f"not in: {LONG}"}),
        batch, *gpus, *made.host_samples(used=15 * 1024**3),
        *made.process_samples([15 * 1024**3] * 20),
        made.end([batch], status="failed", exit_code=1, exception=f"ValueError: {LONG}"),
    ]  # fmt: skip
    made.write_spool(run_dir, records, made.rank_header(0, 64))
    (run_dir / "foreign.jsonl").write_text("x" * 300)
    return fold(run_dir).payload


@pytest.mark.parametrize("ascii_only", [False, True])
def test_even_a_crowded_summary_fits_a_terminal(tmp_path, ascii_only):
    text = render_text(crowded_run(tmp_path), ascii_only=ascii_only)
    lines = text.splitlines()
    assert len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= WIDTH
    assert text.isascii() or not ascii_only
    assert lines[-1].startswith("Run ")


def test_the_verdict_comes_first_then_why_and_what_to_do(tmp_path):
    lines = render_text(crowded_run(tmp_path)).splitlines()
    assert lines[0] == "INPUT-BOUND (critical)"
    assert lines[1].startswith("Why:  Waiting for the next batch takes 40% of the step")
    assert lines[2].startswith("Next: ")
    assert any(line.startswith("Run:  failed with exit code 1: ValueError") for line in lines)


def test_a_healthy_run_reads_calm(tmp_path):
    phases = {"input_wait": 0.1, "forward": 3.0, "backward": 5.0, "optimizer": 1.8}
    made.run_of(tmp_path, made.steps(100, phases=phases), more=made.host_samples())
    text = fold(tmp_path).text
    assert text.startswith("COMPUTE-BOUND (info)")
    assert "Throughput    100 steps/s, 3,200 samples/s" in text
    assert "Also" not in text
