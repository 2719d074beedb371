"""The wall clock jumps, as NTP or an administrator makes it: durations and order stay right."""

import json
import os
import subprocess
import sys

import pytest

from tests.deaths.warm import Job, let_die, view
from tests.e2e.harness import runs_in
from traceml_agent.report.runs import summary_payload

DAY_S = 86_400
JUMP = "open(os.environ['EDGE_CLOCK'], 'w').write({})\nassert abs(time.time() - before) > 3000\n"
JUMPS = {
    "forwards": ["4000"],
    "backwards": ["-4000"],
    "a day, and back": [str(DAY_S), "0"],
    "before 1970": ["-2000000000"],
}


def environ_of(tmp_path, name):
    """A clock of its own for each job."""
    (tmp_path / "clocks").mkdir(exist_ok=True)
    return {"EDGE_CLOCK": str(tmp_path / "clocks" / name)}


@pytest.mark.slow
def test_durations_are_right_when_the_wall_clock_jumps(tmp_path, edge):
    jobs = []
    for name, shifts in JUMPS.items():
        source = "began = time.monotonic()\ntrain(50)\n"
        for shift in shifts:
            source += (
                f"before = time.time()\n{JUMP.format(repr(shift))}time.sleep(0.7)\ntrain(50)\n"
            )
        source += "os.write(1, b'%f' % (time.monotonic() - began))"
        jobs.append(Job(name, source, environ=environ_of(tmp_path, name)))
    settings = {"TRACEML_SAMPLE_INTERVAL_S": "0.1"}
    for name, death in let_die(tmp_path, jobs, LD_PRELOAD=edge, **settings).items():
        assert (death.returncode, death.other_stderr) == (0, ""), name
        summary = death.summary
        elapsed_s = float(death.stdout)
        rank = summary["ledger"]["ranks"][0]
        assert death.steps == 50 * (1 + len(JUMPS[name])), name
        assert elapsed_s <= summary["duration_s"] < elapsed_s + 60, name
        assert all(part["seconds"] >= 0 for part in rank["parts"].values()), name
        assert sum(part["seconds"] for part in rank["parts"].values()) == pytest.approx(
            rank["wall_s"], rel=0.01
        )
        window = summary["analysis_window"]
        assert 0 <= window["duration_s"] <= elapsed_s + 0.5, name
        assert summary["process"]["global"]["average"]["cpu_percent"] < 1000, name
        assert summary["traceml_agent"]["problems"] == []
        assert view(death.run_dir).returncode == 0


@pytest.mark.slow
def test_the_later_of_two_processes_counts_though_the_clock_went_back(tmp_path, edge):
    rank = {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
        **environ_of(tmp_path, "clock"),
    }  # fmt: skip
    jobs = [
        Job("first", "train(30)", environ=rank),
        Job(
            "second",
            "before = time.time()\n" + JUMP.format("'-4000'") + "train(50)",
            environ=rank,
        ),
    ]
    let_die(tmp_path, jobs, width=1, LD_PRELOAD=edge, TRACEML_RUN_ID="again")
    (run_dir,) = runs_in(tmp_path)
    assert len(list(run_dir.glob("*.jsonl"))) == 2
    summary = summary_payload(run_dir)
    assert summary["step_time"]["metadata"]["training_total_steps"] == 50


def test_a_clock_that_jumps_between_the_end_and_the_reading_changes_nothing(tmp_path, edge):
    job = Job("killed", "train(30)\nos.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)")
    run_dir = let_die(tmp_path, [job])["killed"].run_dir
    shown = []
    for shift in ("0", "-4000", "4000"):
        clock = tmp_path / "clock"
        clock.write_text(shift)
        for name in ("final_summary.json", "final_summary.txt"):
            (run_dir / name).unlink(missing_ok=True)
        command = [sys.executable, "-m", "traceml_agent", "view", str(run_dir)]
        done = subprocess.run(
            [*command, "--json"], env=os.environ | {"EDGE_CLOCK": str(clock), "LD_PRELOAD": edge},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        shown.append(json.loads(done.stdout) | {"generated_at": None})
    assert shown[0] == shown[1] == shown[2]
    assert shown[0]["run_context"]["run"]["status"] == "killed"


def test_records_written_after_a_fold_count_though_their_time_stamps_are_older(tmp_path):
    ranks = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    jobs = [
        Job(f"{rank}", "train(30)", environ=ranks | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in (1, 0)
    ]
    let_die(tmp_path, jobs[:1], TRACEML_RUN_ID="grown")
    (run_dir,) = runs_in(tmp_path)
    assert len(summary_payload(run_dir)["traceml_agent"]["spools"]) == 1
    before = (run_dir / "final_summary.json").read_bytes()
    let_die(tmp_path, jobs[1:], TRACEML_RUN_ID="grown")
    # The clock went back by years before the second rank wrote, and it did not come to fold.
    for spool in run_dir.glob("*.jsonl"):
        os.utime(spool, (1, 1))
    (run_dir / "final_summary.json").write_bytes(before)
    assert len(summary_payload(run_dir)["traceml_agent"]["spools"]) == 2


def test_a_summary_with_a_rank_that_still_ran_is_folded_again(tmp_path):
    """The run as a whole is called after the rank that failed; the other one may still die."""
    ranks = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    see = (
        "import subprocess\nsubprocess.run([sys.executable, '-m', 'traceml_agent', 'view', {!r}])\n"
    )
    view_now = see.format(str(tmp_path / "runs" / "two"))
    wait = "while not os.path.exists('../0/leaving'):\n    time.sleep(0.01)\n"
    jobs = [
        Job("0", "train(30)\nleaving()\nsys.exit(3)", environ=ranks | {"RANK": "0"}),
        Job(
            "1",
            "train(30)\n" + wait + "time.sleep(1)\n" + view_now
            + "train(1)\nos.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)",
            environ=ranks | {"RANK": "1", "LOCAL_RANK": "1"},
        ),
    ]  # fmt: skip
    slow = {"TRACEML_FLUSH_INTERVAL_S": "60", "TRACEML_SAMPLE_INTERVAL_S": "60"}
    deaths = let_die(tmp_path, jobs, TRACEML_RUN_ID="two", **slow)
    assert [deaths["0"].returncode, deaths["1"].returncode] == [3, -9]
    exits = summary_payload(tmp_path / "runs" / "two")["run_context"]["exit"]
    assert {rank: how["status"] for rank, how in exits.items()} == {"0": "failed", "1": "killed"}
