"""Eight ranks leave within milliseconds: after a read there is one summary, and it is whole.

`TRACEML_TEST_ROUNDS=100` runs the full number of rounds.
"""

import json
import os
from collections import Counter

import pytest

from tests.deaths.warm import Job, let_die
from tests.e2e.harness import runs_in
from traceml_agent.report.runs import summary_payload

ROUNDS = int(os.environ.get("TRACEML_TEST_ROUNDS", "15"))
"""Over all ways to end together."""
RANKS = 8
LEAVE = """
train(4)
round_file = os.open(os.environ["ROUND_FILE"], os.O_RDWR | os.O_CREAT | os.O_APPEND)
os.write(round_file, b".")
while os.fstat(round_file).st_size < 8:  # as the last collective of a job
    time.sleep(0.0005)
os.write(1, b"%d" % time.monotonic_ns())
"""
ENDS = {"return": "", "sys.exit": "sys.exit(0)", "os._exit": "os._exit(0)"}


def environ_of(tmp_path, number, rank):
    """What torchrun gives to a rank."""
    return {
        "TORCHELASTIC_RUN_ID": f"round-{number}",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(RANKS),
        "LOCAL_WORLD_SIZE": str(RANKS),
        "ROUND_FILE": str(tmp_path / f"round-{number}"),
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("end", ENDS)
def test_ranks_that_leave_together_leave_one_whole_summary(tmp_path, end):
    rounds = range(-(-ROUNDS // len(ENDS)))
    jobs = [
        Job(f"{number}-{rank}", LEAVE + ENDS[end], environ=environ_of(tmp_path, number, rank))
        for number in rounds
        for rank in range(RANKS)
    ]
    deaths = let_die(tmp_path, jobs, width=RANKS, timeout_s=800)
    # elastic-round-7-TOKEN: the processes have one parent.
    run_dirs = {run_dir.name.rpartition("-")[0]: run_dir for run_dir in runs_in(tmp_path)}
    assert len(run_dirs) == len(rounds)
    spreads = []
    for number in rounds:
        ranks = [deaths[f"{number}-{rank}"] for rank in range(RANKS)]
        assert {death.returncode for death in ranks} == {0}
        left = [int(death.stdout) for death in ranks]
        spreads.append((max(left) - min(left)) / 1e6)
        run_dir = run_dirs[f"elastic-round-{number}"]
        printed = [death for death in ranks if any(": Run  " in line for line in death.own_lines)]
        assert len(printed) == (0 if end == "os._exit" else 1), [d.stderr for d in ranks]
        first_read, second_read = summary_payload(run_dir), summary_payload(run_dir)
        assert first_read == second_read
        assert json.loads((run_dir / "final_summary.json").read_text()) == first_read
        assert (run_dir / "final_summary.txt").read_text() == first_read["text"] + "\n"
        assert list(first_read["step_time"]["groups"]["rows"]) == [str(r) for r in range(RANKS)]
        exits = first_read["run_context"]["exit"]
        assert Counter(how["status"] for how in exits.values()) == {"finished": RANKS}
        assert {how["last_step"] for how in exits.values()} == {4}
        assert first_read["traceml_agent"]["complete"]
        assert not list(run_dir.glob("*.ring"))
        for death in printed:
            shown = [line.removeprefix("traceml:").strip() for line in death.own_lines]
            verdict = first_read["text"].splitlines()[0]
            assert verdict in shown
    print(f"ranks left within {sorted(spreads)[len(spreads) // 2]:.1f} ms of each other (median)")
