"""Collectives on real ranks: waiting told apart from transfer, and nothing the program sees."""

import ast
import socket
import subprocess
import sys
from statistics import mean

import pytest

from tests.e2e.collectives import SCRIPTS
from tests.e2e.harness import environment, run, runs_in, write

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train(tmp_path, name, ranks=2, enabled=True, **extra):
    """The result, and what each rank saw."""
    script = write(tmp_path, SCRIPTS[name])
    extra |= {"TRACEML_TEST_RAISE": "1"} if enabled else {}
    done = run(tmp_path, *TORCHRUN, str(ranks), script, enabled=enabled, **extra)
    assert done.returncode == 0, done.stderr
    seen = [(tmp_path / f"seen.{rank}") for rank in range(ranks)]
    texts = [path.read_text() for path in seen]
    for path in seen:
        path.unlink()
    return done, texts


def section_of(done):
    assert done.summary["traceml_agent"]["faults"] == []
    found = done.summary["communication"]
    assert found["status"] == "measured"
    assert found["lost_calls"] == 0
    return found


@pytest.mark.slow
def test_waiting_for_a_late_rank_is_told_apart_from_the_transfer(tmp_path):
    done, _ = train(tmp_path, "late", ranks=3)
    found = section_of(done)
    for rank in ("0", "2"):
        waiting, transfer = found["ranks"][rank]["waiting_ms"], found["ranks"][rank]["transfer_ms"]
        assert 40 < waiting[0] <= waiting[1] < 150
        assert transfer[0] < 15
    assert found["ranks"]["1"]["waiting_ms"][0] < 15
    assert found["dominant"] == "waiting"
    assert found["last_arrival"]["rank"] == found["last_arrival"]["costly_rank"] == 1
    assert found["last_arrival"]["share"] > 0.9
    assert found["last_arrival"]["chance"] == pytest.approx(1 / 3)
    assert found["issues"] == []
    assert "waiting for another rank" in done.summary["primary_diagnosis"]["summary"]
    assert any("Communication" in line and "waiting" in line for line in done.own_lines)


@pytest.mark.slow
def test_a_transfer_that_takes_the_step_is_the_verdict(tmp_path):
    done, texts = train(tmp_path, "big")
    found = section_of(done)
    first = found["window"]["start_step"]
    timed = [[1e3 * value for value in ast.literal_eval(text)[first - 1 :]] for text in texts]
    shortest = [min(both) for both in zip(*timed, strict=True)]
    for rank, own in enumerate(timed):
        row = next(o for o in found["ranks"][str(rank)]["operations"] if o["op"] == "all_reduce")
        assert (row["backend"], row["group_size"]) == ("gloo", 2)
        assert row["bytes_per_step"] == pytest.approx(16_000_000)
        assert row["host_ms"] == pytest.approx(mean(own), rel=0.05, abs=0.3)
        # The transfer of a step is at most what the rank took that waited least.
        assert row["transfer_ms"][1] == pytest.approx(mean(shortest), rel=0.05, abs=0.3)
        assert 0.2 * mean(shortest) < row["transfer_ms"][0] <= row["transfer_ms"][1]
    assert done.summary["primary_diagnosis"]["kind"] == "COMMUNICATION_BOUND"
    what_if = found["what_if_no_transfer"]
    low, high = what_if["without_transfer_ms"]
    assert 0 <= low <= high < what_if["step_ms"] - 0.2 * mean(shortest)


@pytest.mark.slow
def test_ddp_tells_what_its_reducer_measured(tmp_path):
    done, _ = train(tmp_path, "ddp")
    rows = done.summary["communication"]["ddp"]["rows"]
    assert sorted(row["rank"] for row in rows) == [0, 1]
    for row in rows:
        assert row["communication_ms"] > 0
        assert row["exposed_ms"] == pytest.approx(row["communication_ms"] - row["overlap_ms"])
    section = done.summary["communication"]
    assert section["ddp"]["exposed_transfer_ms"][0] == 0
    # Rank 1 comes late, to the reduction that C++ calls, and not to the one that Python calls.
    recorded = section["flight_recorder"]
    assert recorded["steps"] > 20
    assert recorded["last_arrival"]["rank"] == recorded["last_arrival"]["costly_rank"] == 1
    assert recorded["last_arrival"]["share"] > 0.9
    assert recorded["ahead_ms"]["0"] > 40
    assert recorded["ahead_ms"]["1"] < 15
    assert "DDP reduces" in done.stderr
    assert "rank 1 comes last" in " ".join(line[9:].strip() for line in done.own_lines)


@pytest.mark.slow
def test_what_a_rank_computes_between_call_and_wait_hides_no_transfer_of_another(tmp_path):
    done, _ = train(tmp_path, "overlapped", ranks=3)
    ranks = section_of(done)["ranks"]
    # Rank 1 waits for nothing, rank 2 for rank 0, which is late.
    assert ranks["1"]["host_ms"] < 15
    assert ranks["2"]["waiting_ms"][0] > 30
    assert ranks["0"]["waiting_ms"][0] < 15


@pytest.mark.slow
def test_a_watchdog_can_end_a_rank_whose_backward_pass_hangs(tmp_path):
    script = write(tmp_path, SCRIPTS["hanging"])
    ranks = [
        subprocess.Popen(
            [sys.executable, script],
            env=environment(
                tmp_path, True, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank),
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port), TRACEML_RUN_ID="hanging",
            ),
            cwd=tmp_path, stderr=subprocess.DEVNULL,
        )
        for free_port in [port()]
        for rank in range(2)
    ]  # fmt: skip
    try:
        assert ranks[0].wait(timeout=120) == 7
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    assert len(runs_in(tmp_path)) == 1


@pytest.mark.slow
def test_switching_it_off_leaves_steps_and_stalls_as_they_are(tmp_path):
    done, _ = train(tmp_path, "switched off", ranks=1, TRACEML_MAX_OVERHEAD="4", TRACEML_HANG_S="1")
    assert "switched off" in done.summary["communication"]["status"]
    assert done.summary["step_time"]["metadata"]["training_total_steps"] == 400
    assert done.summary["events"]["counts"].get("stall", 0) >= 1


@pytest.mark.slow
def test_the_collectives_of_fully_shard_are_seen_in_their_phases(tmp_path):
    done, on = train(tmp_path, "fsdp")
    assert on == train(tmp_path, "fsdp", enabled=False)[1]
    rows = {row["op"]: row for row in section_of(done)["ranks"]["1"]["operations"]}
    gather = next(row for name, row in rows.items() if name.startswith("all_gather"))
    scatter = next(row for name, row in rows.items() if name.startswith("reduce_scatter"))
    # Two layers are gathered before forward, and one of them again before backward.
    assert gather["calls_per_step"] >= 2
    assert scatter["calls_per_step"] == pytest.approx(2)
    assert gather["phases"]["forward"] > 0
    assert set(scatter["phases"]) == {"backward"}
    assert gather["transfer_ms"][0] > 0


@pytest.mark.slow
def test_every_kind_of_call_gives_what_it_gave_and_is_counted_once(tmp_path):
    done, on = train(tmp_path, "everything", ranks=2)
    assert on == train(tmp_path, "everything", enabled=False)[1]
    calls: dict[tuple[str, int], int] = {}
    for batch in done.spools[0].collectives:
        for number, part in zip(batch.key, batch.part, strict=True):
            place = (batch.keys[number].op, part)
            calls[place] = calls.get(place, 0) + 1
        for part in batch.sums:
            place = (batch.keys[part.key].op, part.part)
            calls[place] = calls.get(place, 0) + part.calls
    # Of six steps; what another thread called and what raised is not counted.
    assert calls == {
        ("all_reduce", 1): 24,
        ("all_reduce", 2): 6,
        ("all_reduce_coalesced", 1): 6,
        ("all_gather_object", 0): 6,
        ("broadcast", 0): 6,
        ("barrier", 0): 6,
        ("send", 0): 6,
        ("reduce_scatter_tensor", 0): 1,
    }


@pytest.mark.slow
def test_compiled_collectives_have_the_same_graphs_breaks_and_results(tmp_path):
    _, off = train(tmp_path, "compiled", enabled=False)
    _, on = train(tmp_path, "compiled")
    assert on == off
