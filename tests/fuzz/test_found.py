"""What fuzzing found, one test a defect: small programs and files that once broke a promise."""

import os
from dataclasses import replace

import orjson
import pytest

from tests.fuzz.programs import Node, play
from tests.fuzz.spools import PATCHES, SLOTS, check_run, check_spool, pack, unpack, write
from tests.report.synthetic_run import FIRST_STEP_NS, HEADER, MS, process_samples, steps
from traceml_agent.errors import NoSpools
from traceml_agent.report.fold import fold, read_summary
from traceml_agent.report.view import MISSING_LIMIT
from traceml_agent.schema.phases import EVAL, FORWARD
from traceml_agent.schema.records import HostSample, Record
from traceml_agent.spool.digested import read_spool
from traceml_agent.spool.format import encode


@pytest.fixture(autouse=True)
def raise_internal_errors(monkeypatch):
    monkeypatch.setenv("TRACEML_TEST_RAISE", "1")


FORWARD_BACKWARD = (Node("forward"), Node("backward"))


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(
            (Node("evaluate", children=(Node("update"),)), Node("update")),
            id="the first event is an update inside a call without gradients",
        ),
        pytest.param(
            (Node("fetch_nothing", 0, 3, 3, (Node("update", 1), Node("update", 1))),),
            id="a step ends inside a phase",
        ),
        pytest.param(
            (
                *FORWARD_BACKWARD,
                Node("backward", children=(Node("update"),)),
                Node("backward", 0, 1, 3, (Node("update"), Node("compile"))),
                Node("update"),
            ),
            id="a compilation after an update, both inside a backward pass",
        ),
        pytest.param(
            (
                Node("update"),
                Node("update", 1, children=(Node("forward", 0, 2, 2),)),
                Node("evaluate"),
                Node("fetch_nothing", children=(Node("update"),)),
            ),
            id="a forward pass in a closure, then an evaluation",
        ),
        pytest.param(
            (Node("try", children=(Node("to_host", 7, 1, 3),)), *FORWARD_BACKWARD, Node("update")),
            id="a copy to the host that fails",
        ),
        pytest.param(
            (
                Node("make_optimizer", 0),
                Node("backward", children=(Node("update", 2),)),
                Node("backward", children=(Node("update", 2),)),
            ),
            id="an optimizer that calls its base class, inside a backward pass",
        ),
    ],
)
@pytest.mark.parametrize("with_device", [False, True])
def test_a_program_makes_steps_that_add_up(program, with_device):
    play(program, with_device)


def test_a_forward_pass_in_a_closure_is_not_taken_for_the_evaluation_after_it():
    first, second = play(
        (
            Node("update"),
            Node("update", 1, children=(Node("forward", 0, 2, 2),)),
            Node("evaluate", 0, 1, 3),
            Node("fetch_nothing", children=(Node("update"),)),
        )
    )
    assert first.acc[FORWARD] + second.acc[FORWARD] == 14
    assert first.acc[EVAL] + second.acc[EVAL] == 200


def test_an_update_that_raised_inside_a_scaler_is_no_update():
    (step,) = play(
        (
            *FORWARD_BACKWARD,
            Node("try", children=(Node("update_by_scaler", children=(Node("raise"),)),)),
        )
    )
    assert (step.backwards, step.updates) == (1, 0)


def test_an_optimizer_that_raised_and_another_one_that_did_not_are_one_update():
    """The second was taken for a part of the first, and everything after it too."""
    failing = Node("update", 1, children=(Node("raise"),))
    (step,) = play((*FORWARD_BACKWARD, Node("try", children=(failing,)), Node("update")))
    assert step.updates == 1


# Spools


@pytest.fixture
def run_dir(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    return directory


def spool_of(*records: Record, header=HEADER, **changes) -> bytes:
    """A spool; `changes` replaces values of its header by JSON of any kind."""
    head = orjson.loads(encode(header))
    identity = {**head["identity"], **changes.pop("identity", {})}
    return b"".join(
        [orjson.dumps({**head, "identity": identity, **changes}), b"\n", *map(encode, records)]
    )


def folded(run_dir, spool, ring=b"", stack=b""):
    write(run_dir, (spool, ring, stack, b"", b""))
    summary = check_run(run_dir)
    return None if summary is None else summary.payload


def test_a_world_of_a_trillion_ranks_is_folded_at_once(run_dir):
    payload = folded(run_dir, spool_of(PATCHES, steps(20), identity={"world_size": 10**12}))
    assert payload["traceml_agent"]["complete"] is False
    assert len(payload["traceml_agent"]["missing_ranks"]) == MISSING_LIMIT


@pytest.mark.parametrize("version", ["\u00b2", "\u0661", "9" * 5000, "-1", ""])
def test_a_schema_that_is_no_number_is_no_spool(run_dir, version):
    assert folded(run_dir, spool_of(steps(20), schema=f"traceml-spool/{version}")) is None
    with pytest.raises(NoSpools, match="its schema is"):
        fold(run_dir)


@pytest.mark.parametrize("version", ["\u00b2", "9" * 5000])
def test_a_summary_whose_schema_is_no_number_is_refused(run_dir, version):
    path = run_dir / "final_summary.json"
    path.write_bytes(
        orjson.dumps({"traceml_agent": {"schema": f"traceml-agent-summary/{version}"}})
    )
    with pytest.raises(Exception, match="is no summary of this agent"):
        read_summary(path)


def test_a_ring_path_that_names_a_pipe_is_not_waited_for(run_dir):
    os.mkfifo(run_dir / "pipe")
    payload = folded(run_dir, spool_of(steps(20), ring_path=str(run_dir / "pipe")))
    assert "ring not read" in payload["traceml_agent"]["problems"][0]


@pytest.mark.parametrize("path", ["/dev/zero", "/", "a\0b", "x" * 5000, ""])
def test_a_ring_path_that_names_no_ring_is_a_problem_and_no_error(run_dir, path):
    payload = folded(run_dir, spool_of(steps(20), ring_path=path))
    assert payload["ledger"]["ranks"][0]["steps"] == 20


def test_steps_that_come_twice_count_once(run_dir):
    batch = steps(20)
    payload = folded(run_dir, spool_of(PATCHES, batch, batch, steps(10, first=15)))
    (entry,) = payload["ledger"]["ranks"]
    assert (entry["steps"], entry["parts"]["training"]["seconds"]) == (20, 0.2)
    assert payload["traceml_agent"]["problems"] == [
        "a.jsonl: line 4 skipped (steps: step 1 and on are known already)",
        "a.jsonl: 2 lines skipped in all",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"first_step": 1 << 63},
        {"start_ns": -5},
        {"duration_ns": [-1] * 20},
        {"duration_ns": [1 << 63] * 20},
        {"micro_batches": -1},
        {"samples": 1 << 62},
        {"updates": [1 << 62] * 20},
        {"d2h_ns": [-1] * 20},
    ],
)
def test_steps_that_no_writer_wrote_are_skipped_and_named(run_dir, change):
    payload = folded(run_dir, spool_of(replace(steps(20), **change), steps(20, first=21)))
    assert payload["ledger"]["ranks"][0]["steps"] == 20
    assert "line 2 skipped" in payload["traceml_agent"]["problems"][0]


def test_numbers_that_no_kernel_counts_are_skipped(run_dir):
    tiny = HostSample(FIRST_STEP_NS, 50.0, 8, 5e-324, 1 << 34, 1 << 30)
    negative = HostSample(FIRST_STEP_NS, 50.0, 8, 8.0, 1 << 34, -1)
    payload = folded(run_dir, spool_of(tiny, negative, *process_samples([1 << 30] * 3), steps(20)))
    assert payload["system"]["metadata"]["samples"] == 0
    assert payload["process"]["metadata"]["samples"] == 3


def test_samples_out_of_order_are_put_in_order(run_dir):
    samples = process_samples([1 << 30, 2 << 30, 3 << 30])
    one = folded(run_dir, spool_of(*samples, steps(20)))
    other = folded(run_dir, spool_of(*reversed(samples), steps(20)))
    assert one["process"] == other["process"]


def test_a_process_born_after_its_first_record_has_no_negative_time(run_dir):
    payload = folded(run_dir, spool_of(steps(20), process_start_ns=1 << 60))
    assert payload["duration_s"] >= 0


def test_thinned_steps_do_not_speed_up_the_others(run_dir):
    """Half of the steps kept no times: then the rate comes from the other half."""
    batches = [steps(20, first=f, start_ns=FIRST_STEP_NS + f * 10 * MS) for f in (1, 41, 81)]
    payload = folded(run_dir, spool_of(PATCHES, *batches))
    throughput = payload["step_time"]["throughput"]
    assert throughput["steps_per_s"] == pytest.approx(100)
    assert throughput["micro_batches_per_step"] == 1
    assert payload["step_time"]["global"]["window"]["steps_analyzed"] == 60


def test_escape_sequences_of_a_message_do_not_reach_the_terminal(run_dir):
    from tests.report.synthetic_run import end

    batch = steps(20)
    ending = end([batch], "failed", 1, exception="E: \x1b[2J\x85gone\u2028", stack=None)
    text = folded(run_dir, spool_of(batch, ending))["text"]
    assert "failed with exit code 1: E:  [2J" in text


def test_a_run_directory_whose_name_is_no_utf8_is_folded(tmp_path):
    run_dir = tmp_path / os.fsdecode(b"run-\xe9\n")
    run_dir.mkdir()
    (run_dir / os.fsdecode(b"\xff\n.jsonl")).write_bytes(b"junk\n")
    payload = folded(run_dir, spool_of(steps(20)))
    assert payload["traceml_agent"]["run_dir"].endswith("/run-? ")
    assert len(payload["traceml_agent"]["problems"]) == 1


def test_two_records_of_a_ring_that_claim_one_step_count_once(run_dir):
    from traceml_agent.spool.layout import RECORD
    from traceml_agent.spool.ring import Ring

    path = run_dir / SLOTS[1]
    ring = Ring(path, capacity=4)
    row = (7, FIRST_STEP_NS, 10 * MS, *[0] * 9, 0, 1, 4, 1, 7)
    negative = (8, FIRST_STEP_NS, -10 * MS, *[0] * 9, 0, 1, 4, 1, 8)
    for slot, values in enumerate((row, row, negative)):
        RECORD.pack_into(ring.buffer, 64 + slot * RECORD.size, *values)
    ring.close(remove=False)
    payload = folded(run_dir, spool_of(PATCHES), path.read_bytes())
    assert payload["ledger"]["ranks"][0]["steps"] == 1


def test_files_of_a_run_travel_as_one(run_dir):
    files = (spool_of(steps(20)), b"ring", b"", b"b", b"")
    assert unpack(pack(files)) == (*files, b"")
    assert unpack(b"") == (b"",) * len(SLOTS)
    write(run_dir, files)
    check_spool(run_dir / SLOTS[0])
    assert len(read_spool(run_dir / SLOTS[0]).batches) == 1
