"""Digests of real ranks: beside their spools, and in place of them with TRACEML_SPOOL_LOCAL."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import orjson
import pytest

from tests.e2e.harness import ROOT, environment, run, runs_in, write
from tests.slurm.cluster import free_port
from traceml_agent.report.fold import fold
from traceml_agent.spool.reader import read_spool

STEPS = 60
JOB = f"""
import os, sys, time
import torch
import torch.distributed as dist
from torch import nn

torch.set_num_threads(1)
torch.manual_seed(0)
dist.init_process_group("gloo")
model = nn.parallel.DistributedDataParallel(nn.Linear(4, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range({STEPS}):
    optimizer.zero_grad()
    loss = model(torch.ones(3, 4)).square().mean()
    loss.backward()
    optimizer.step()
    time.sleep(0.04)
    if step == 40 and "killed" in sys.argv and dist.get_rank() == 1:
        os.kill(os.getpid(), 9)
if dist.get_rank() == 0:
    print(loss.item())
dist.barrier()
dist.destroy_process_group()
"""
TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
pytestmark = pytest.mark.slow


def payload_of(run_dir: Path) -> dict[str, object]:
    payload = fold(run_dir).payload
    del payload["generated_at"]
    return payload


def local_files(tmp_path: Path) -> list[str]:
    """What lies on the node beyond the run directory."""
    place = tmp_path / f"traceml-agent-{os.geteuid()}"
    return sorted(path.name for path in place.rglob("*") if path.is_file())


def test_the_fold_of_a_job_is_the_same_with_and_without_digests(tmp_path):
    done = run(tmp_path, *TORCHRUN, write(tmp_path, JOB), TRACEML_DIGEST_INTERVAL_S="1")
    assert done.returncode == 0, done.stderr
    digests = sorted(done.run_dir.glob("*.digest"))
    assert len(digests) == 2
    assert [path.stat().st_mode & 0o777 for path in digests] == [0o600, 0o600]
    for spool in done.spools:
        # All of it comes from the digest: what came after the header is unreadable here.
        lines = spool.path.read_bytes().splitlines(keepends=True)
        blank = b"".join(b" " * (len(line) - 1) + b"\n" for line in lines[1:])
        copy = tmp_path / "copy" / spool.path.name
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(lines[0] + blank)
        copy.with_suffix(".digest").write_bytes(spool.path.with_suffix(".digest").read_bytes())
        assert sum(batch.count for batch in read_spool(copy).batches) == STEPS
    with_digests = payload_of(done.run_dir)
    for path in digests:
        path.unlink()
    assert payload_of(done.run_dir) == with_digests


def test_a_local_spool_leaves_its_digest_in_the_run_and_nothing_on_the_node(tmp_path):
    script = write(tmp_path, JOB)
    done = run(tmp_path, *TORCHRUN, script, TRACEML_SPOOL_LOCAL="1")
    assert done.returncode == 0, done.stderr
    assert local_files(tmp_path) == []
    names = sorted(path.suffix for path in done.run_dir.glob("rank*"))
    assert names.count(".jsonl") == 2
    assert ".ring" not in names
    summary = done.summary
    assert summary["traceml_agent"]["complete"] is True
    assert summary["traceml_agent"]["problems"] == []
    assert [rank["steps"] for rank in summary["ledger"]["ranks"]] == [STEPS, STEPS]
    assert sum(line.startswith("traceml: Run  ") for line in done.own_lines) == 1
    plain = tmp_path / "off"
    plain.mkdir()
    off = run(plain, *TORCHRUN, write(plain, JOB), enabled=False)
    assert done.stdout == off.stdout


def test_the_last_steps_of_a_killed_rank_come_home_from_its_node(tmp_path):
    variables = {"TRACEML_SPOOL_LOCAL": "1", "TRACEML_RUN_ID": "job"}
    ranks = []
    port = str(free_port(1))
    for rank in ("0", "1"):
        environ = environment(tmp_path, True, **variables, RANK=rank, WORLD_SIZE="2",
                              MASTER_ADDR="127.0.0.1", MASTER_PORT=port)  # fmt: skip
        command = [sys.executable, write(tmp_path, JOB), "killed"]
        ranks.append(subprocess.Popen(command, env=environ, cwd=tmp_path,
                                      stderr=subprocess.PIPE, text=True))  # fmt: skip
    ranks[1].communicate(timeout=120)
    ranks[0].kill()  # it waits in a collective for the dead one
    ranks[0].communicate(timeout=60)
    (run_dir,) = runs_in(tmp_path)
    assert len([name for name in local_files(tmp_path) if name.endswith(".jsonl")]) == 2
    # From another machine: only the digest of the start is there.
    moved = tmp_path / "elsewhere"
    (tmp_path / f"traceml-agent-{os.geteuid()}").rename(moved)
    steps = [e["steps"] for e in payload_of(run_dir)["ledger"]["ranks"]]
    assert max(steps) < 41
    problems = payload_of(run_dir)["traceml_agent"]["problems"]
    assert len([text for text in problems if "is only on" in text]) == 2
    moved.rename(tmp_path / f"traceml-agent-{os.geteuid()}")
    # On the node, as the epilog does.
    fold_it = [sys.executable, "-m", "traceml_agent", "fold", str(run_dir)]
    subprocess.run(fold_it, env=environment(tmp_path, False), check=True, timeout=60, cwd=ROOT)
    assert local_files(tmp_path) == []
    summary = json.loads((run_dir / "final_summary.json").read_text())
    # The step in which it was killed never closed.
    assert [rank["steps"] for rank in summary["ledger"]["ranks"]] == [40, 40]
    assert summary["traceml_agent"]["problems"] == []
    assert summary["run_context"]["run"]["status"] == "killed"


def test_a_running_job_with_local_spools_is_seen_by_its_digests(tmp_path):
    endless = JOB.replace(f"range({STEPS})", "range(10**6)")
    environ = environment(tmp_path, True, TRACEML_SPOOL_LOCAL="1", TRACEML_DIGEST_INTERVAL_S="1",
                          TRACEML_RUN_ID="job")  # fmt: skip
    job = subprocess.Popen([sys.executable, *TORCHRUN, write(tmp_path, endless)], env=environ,
                           cwd=tmp_path, stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        run_dir = tmp_path / "runs" / "job"
        deadline = time.monotonic() + 90
        seen: list[int] = []
        while time.monotonic() < deadline and (len(seen) < 2 or min(seen) < 40):
            time.sleep(1)
            lines = [orjson.loads(line) for path in run_dir.glob("*.jsonl")
                     for line in path.read_bytes().splitlines()]  # fmt: skip
            first = [line["first_step"] + line["count"] - 1
                     for line in lines if line["kind"] == "steps"]  # fmt: skip
            seen = sorted(first)[-2:]
        assert len(seen) == 2 and min(seen) >= 40, seen
        payload = payload_of(run_dir)
        assert payload["run_context"]["run"]["status"] == "running"
        assert len(payload["ledger"]["ranks"]) == 2
    finally:
        job.terminate()
        job.wait(60)
