"""Torchrun, gloo, DDP and FSDP2: the rank that was made slow is the one that is named."""

import pytest

from tests.e2e.harness import Result, run, write
from tests.ranks.job import stragglers
from tests.ranks.trainings import DDP, FSDP2, OWN_COLLECTIVES

pytestmark = pytest.mark.slow


def torchrun(tmp_path, text: str, ranks: int, *arguments: str) -> Result:
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks))
    result = run(tmp_path, *launcher, write(tmp_path, text), *arguments)
    assert result.returncode == 0, result.stderr
    return result


def test_a_rank_with_20_ms_more_input_is_named_with_its_cost(tmp_path):
    result = torchrun(tmp_path, DDP, 4, "input", "80")
    primary = result.summary["primary_diagnosis"]
    assert primary["kind"] == "INPUT_STRAGGLER", result.summary["text"]
    evidence = primary["evidence"]
    assert evidence["worst"]["rank"] == 3
    assert evidence["score_numerator_ms"] == pytest.approx(20, rel=0.1)
    assert evidence["what_if"]["gain_ms"] == pytest.approx(20, rel=0.15)
    assert result.summary["step_time"]["rank_balance"]["strategy"] == "ddp"
    assert "strategy" not in result.summary["events"]["counts"]


def test_a_rank_with_a_slow_forward_is_named(tmp_path):
    result = torchrun(tmp_path, DDP, 4, "compute", "80")
    primary = result.summary["primary_diagnosis"]
    assert primary["kind"] == "COMPUTE_STRAGGLER", result.summary["text"]
    assert primary["evidence"]["worst"]["rank"] == 2


def test_a_rank_that_evaluates_alone_is_told_as_that_and_not_as_slow_compute(tmp_path):
    result = torchrun(tmp_path, DDP, 4, "eval", "240")
    found = stragglers(result.summary)
    assert [(i["kind"], i["ranks"]) for i in found] == [("STRAGGLER", [0])], result.summary["text"]
    assert found[0]["evidence"]["component"] in ("eval", "residual", "outside")
    pattern = found[0]["evidence"]["pattern"]
    assert (pattern["kind"], pattern["every"]) == ("recurring", 20)


def test_a_rank_that_saves_alone_is_the_one_whose_spikes_the_others_have(tmp_path):
    result = torchrun(tmp_path, DDP, 2, "save", "100")
    section = result.summary["causes"]
    regular = [p for p in section["spikes"]["periodic"] if p["cause"].endswith("checkpoint")]
    assert [(p["rank"], p["every"]) for p in regular] == [(1, 20)], result.summary["text"]
    assert "rank 1: checkpoint" in section["spikes"]["by_cause"]
    (cost,) = [i for i in section["issues"] if i["kind"] == "CHECKPOINT_COST"]
    assert cost["ranks"] == [1]


def test_others_that_wait_for_the_buffers_of_a_slow_rank_0_do_not_hide_it(tmp_path):
    result = torchrun(tmp_path, DDP, 2, "buffers", "60")
    found = stragglers(result.summary)
    assert [(i["kind"], i["ranks"]) for i in found] == [("INPUT_STRAGGLER", [0])], result.summary[
        "text"
    ]


def test_a_healthy_job_raises_no_straggler(tmp_path):
    result = torchrun(tmp_path, DDP, 4, "healthy", "80")
    assert not stragglers(result.summary), result.summary["text"]
    assert len(result.summary["step_time"]["rank_balance"]["rows"]) == 4


def test_fsdp2_waits_in_forward_for_a_rank_with_slow_input(tmp_path):
    result = torchrun(tmp_path, FSDP2, 2)
    primary = result.summary["primary_diagnosis"]
    assert primary["kind"] == "INPUT_STRAGGLER", result.summary["text"]
    assert primary["evidence"]["worst"]["rank"] == 1
    assert result.summary["step_time"]["rank_balance"]["strategy"] == "fsdp2"


def test_collectives_of_the_users_own_show_whom_the_others_wait_for(tmp_path):
    result = torchrun(tmp_path, OWN_COLLECTIVES, 2, "together")
    found = stragglers(result.summary)
    assert [(i["kind"], i["ranks"]) for i in found] == [("COMPUTE_STRAGGLER", [1])], result.summary[
        "text"
    ]
    assert found[0]["evidence"]["waits_in"] == ["residual"]


def test_ranks_that_train_apart_hold_nobody_up(tmp_path):
    result = torchrun(tmp_path, OWN_COLLECTIVES, 2, "apart")
    assert not stragglers(result.summary), result.summary["text"]
    assert result.summary["step_time"]["rank_balance"]["rows"] == {}
