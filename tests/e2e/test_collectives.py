"""Collectives on real ranks: waiting told apart from transfer, and nothing the program sees."""

import pytest

from tests.e2e.collectives import SCRIPTS
from tests.e2e.harness import run, write

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")


def train(tmp_path, name, ranks=2, enabled=True):
    """The result, and what each rank saw."""
    script = write(tmp_path, SCRIPTS[name])
    extra = {"TRACEML_TEST_RAISE": "1"} if enabled else {}
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
        assert 40 < waiting[0] <= waiting[1] < 80
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
    done, _ = train(tmp_path, "big")
    found = section_of(done)
    row = found["ranks"]["0"]["operations"][0]
    assert (row["op"], row["backend"], row["group_size"]) == ("all_reduce", "gloo", 2)
    assert row["bytes_per_step"] == pytest.approx(16_000_000, rel=0.1)
    # On a machine that is busy with other work, the slower transfers are taken for waiting too.
    assert found["dominant"] in ("transfer", "unclear")
    assert done.summary["primary_diagnosis"]["kind"] == "COMMUNICATION_BOUND"
    low, high = found["what_if_no_transfer"]["without_transfer_ms"]
    assert 0 <= low <= high < found["what_if_no_transfer"]["step_ms"]


@pytest.mark.slow
def test_ddp_tells_what_its_reducer_measured(tmp_path):
    done, _ = train(tmp_path, "ddp")
    rows = done.summary["communication"]["ddp"]["rows"]
    assert sorted(row["rank"] for row in rows) == [0, 1]
    for row in rows:
        assert row["communication_ms"] > 0
        assert row["exposed_ms"] == pytest.approx(row["communication_ms"] - row["overlap_ms"])
    assert done.summary["communication"]["ddp"]["exposed_transfer_ms"][0] == 0
    assert any("DDP reduces" in line for line in done.own_lines)


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
        ("all_reduce", 1): 6,
        ("all_reduce", 2): 6,
        ("all_gather_object", 0): 6,
        ("broadcast", 0): 6,
        ("barrier", 0): 6,
        ("send", 0): 6,
    }


@pytest.mark.slow
def test_compiled_collectives_have_the_same_graphs_breaks_and_results(tmp_path):
    _, off = train(tmp_path, "compiled", enabled=False)
    _, on = train(tmp_path, "compiled")
    assert on == off
