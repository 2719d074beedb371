"""The ledger over all attempts: lost work, restarts, and that the parts close to the wall time."""

import pytest

from tests.report import synthetic_run as made
from tests.report.synthetic_run import MS
from tests.report.test_membership import HOUR_NS, S, life, payload_of
from traceml_agent.schema.records import Event, StepSums

LOAD = "torch.load"


def wall_ns(at_s):
    """The wall clock at a time of the run, in which the first process is born at 0."""
    return made.HEADER.wall_ns + made.BORN_NS + round(at_s * S)


def save(at_s, steps_done, optimizer_step=None, **detail):
    """A checkpoint that took 5 ms."""
    start = made.BORN_NS + round(at_s * S) - 5 * MS
    found = {"call": "torch.save", "at": "train.py:9", "steps_done": steps_done, **detail}
    if optimizer_step is not None:
        found["optimizer_step"] = optimizer_step
    return Event("checkpoint", start, 5 * MS, steps_done, found)


def load(written_at_s=None, call=LOAD, at="train.py:5"):
    detail = {"call": call, "at": at, "count": 1}
    if written_at_s is not None:
        detail["written_ns"] = wall_ns(written_at_s)
    return Event("load", made.BORN_NS, 1, 1, detail)


def resume(optimizer_step):
    return Event("resume", made.BORN_NS, None, 1, {"optimizer_step": optimizer_step})


def two(run_dir, first=(), second=(), **more):
    """100 steps of 10 ms from 2 s on, killed; from 10 s on 80 steps after 2 s of startup."""
    life(run_dir, at_s=0, count=100, ending=False, more=first, **more)
    life(run_dir, at_s=10, count=80, more=second, **more)
    return payload_of(run_dir)


def lost(payload):
    return [a["steps_lost"] for a in payload["ledger"]["attempts"]]


def second(payload):
    entry = payload["ledger"]["attempts"][1]
    return entry["resumed_at_step"], entry["resumed_by"]


def closes(payload):
    goodput = payload["ledger"]["goodput"]
    seconds = [part["seconds"] for part in goodput["parts"].values()]
    unknown = [a["training_s"] for a in payload["ledger"]["attempts"]] if None in seconds else []
    total = sum(s for s in seconds if s is not None) + sum(unknown)
    return total == pytest.approx(goodput["wall_s"], rel=0.01)


def test_steps_after_the_checkpoint_that_was_loaded_are_lost(tmp_path):
    payload = two(tmp_path, [save(2.4, 40), save(2.8, 80)], [load(2.8)])
    assert lost(payload) == [20, 0]
    assert second(payload) == (80, "checkpoint file")
    goodput = payload["ledger"]["goodput"]
    assert goodput["wall_s"] == pytest.approx(12.8)
    parts = {name: part["seconds"] for name, part in goodput["parts"].items()}
    assert parts["productive"] == pytest.approx(1.6)
    assert parts["lost"] == pytest.approx(0.2)
    assert parts["startup"] == pytest.approx(4.0)
    assert parts["restart"] == pytest.approx(7.0)
    assert goodput["goodput_percent"] == pytest.approx(100 * 1.6 / 12.8)
    assert (goodput["steps_run"], goodput["steps_lost"], goodput["steps_kept"]) == (180, 20, 160)
    assert closes(payload)
    assert "Goodput       12 % of 12.8 s = restart 7.00 s" in payload["text"]


def test_an_older_checkpoint_that_was_loaded_counts_and_not_the_last_one(tmp_path):
    payload = two(tmp_path, [save(2.4, 40), save(2.8, 80)], [load(2.4)])
    assert lost(payload) == [60, 0]


def test_the_count_of_the_optimizer_goes_before_what_files_say(tmp_path):
    payload = two(tmp_path, [save(2.4, 40, 40), save(2.8, 80, 80)], [load(2.8), resume(40)])
    assert (lost(payload), second(payload)) == ([60, 0], (40, "optimizer"))


def test_two_updates_a_step_are_no_two_steps(tmp_path):
    payload = two(tmp_path, [save(2.8, 80, 160)], [load(), resume(160)])
    assert lost(payload) == [20, 0]


def test_a_checkpoint_whose_record_died_with_its_process_is_found_by_the_optimizer(tmp_path):
    payload = two(tmp_path, [save(2.4, 40, 40)], [load(2.95), resume(95)])
    assert lost(payload) == [5, 0]


def test_a_checkpoint_whose_record_died_with_its_process_is_found_by_its_file(tmp_path):
    payload = two(tmp_path, [save(2.4, 40)], [load(2.955)])
    assert (lost(payload), second(payload)) == ([5, 0], (95, "checkpoint file"))


@pytest.mark.parametrize("in_next_step", [False, True])
def test_steps_that_outlived_the_record_of_their_checkpoint_tell_of_it(tmp_path, in_next_step):
    """The time of a checkpoint is in the step it holds, or in a loop without a loader in the next;
    the one of step 90 died with its process."""
    column = [0.0] * 100
    for step in (40, 90):
        column[step - 1 + in_next_step] = 4.0
    recorded = save(2.4 + 0.006 + (0 if in_next_step else -0.01), 40)
    life(tmp_path, at_s=0, count=100, ending=False, more=[recorded], checkpoint=column)
    life(tmp_path, at_s=10, count=80, more=[load()])
    assert lost(payload_of(tmp_path)) == [10, 0]


def test_without_any_load_all_steps_are_lost(tmp_path):
    payload = two(tmp_path, [save(2.8, 80)])
    assert (lost(payload), second(payload)) == ([100, 0], (0, "nothing was loaded"))
    assert closes(payload)


def test_weights_from_before_the_run_are_no_resumption(tmp_path):
    payload = two(tmp_path, [load(-999), save(2.8, 80)], [load(-999)])
    assert second(payload) == (0, "nothing was loaded")


def test_a_file_that_tells_no_time_is_taken_for_the_last_checkpoint(tmp_path):
    payload = two(tmp_path, [save(2.4, 40), save(2.8, 80)], [load()])
    assert (lost(payload), second(payload)) == ([20, 0], (80, "last checkpoint"))


@pytest.mark.parametrize(
    "evidence",
    [
        [load()],  # and no checkpoint of ours was seen
        [load(call="Module.load_state_dict", at="own_format.py:7")],
        [resume(None)],
        [resume(100_000)],
        [resume(None), load(call="Module.load_state_dict")],
    ],
)
def test_a_format_of_its_own_leaves_lost_work_unknown_and_not_zero(tmp_path, evidence):
    payload = two(tmp_path, [], evidence)
    assert (lost(payload), second(payload)) == ([None, 0], (None, "unknown"))
    goodput = payload["ledger"]["goodput"]
    assert goodput["goodput_percent"] is None
    assert goodput["parts"]["lost"] == {"seconds": None, "percent": None}
    assert goodput["at_most_percent"] == pytest.approx(100 * 1.8 / 12.8)
    assert closes(payload)
    assert "at most 14 % of 12.8 s" in payload["text"]
    assert "(lost: unknown)" in payload["text"]


def test_a_checkpoint_that_was_copied_after_the_death_does_not_claim_all_steps(tmp_path):
    payload = two(tmp_path, [save(2.4, 40)], [load(7.0)])
    assert (lost(payload), second(payload)) == ([60, 0], (40, "last checkpoint"))


def test_a_target_network_that_every_attempt_fills_is_no_resumption(tmp_path):
    fill = load(call="Module.load_state_dict")
    assert second(two(tmp_path, [fill], [fill])) == (0, "nothing was loaded")


def test_without_the_patch_of_checkpoints_nothing_is_known(tmp_path):
    off = made.Patches(made.BORN_NS + 11 * S, {"checkpoint": "skipped by TRACEML_SKIP"})
    assert second(two(tmp_path, [], [off])) == (None, "unknown")


def test_a_checkpoint_that_failed_is_none(tmp_path):
    payload = two(tmp_path, [save(2.4, 40), save(2.8, 80, failed=1)], [load()])
    assert lost(payload) == [60, 0]


def test_an_attempt_that_falls_behind_the_one_before_it_loses_work_of_both(tmp_path):
    life(tmp_path, at_s=0, count=100, ending=False, more=[save(2.8, 80)])
    life(tmp_path, at_s=10, count=50, ending=False, more=[load(2.8)])  # reaches 130
    life(tmp_path, at_s=20, count=90, more=[load(2.8)])  # and once more from 80
    payload = payload_of(tmp_path)
    assert lost(payload) == [20, 50, 0]
    assert payload["ledger"]["goodput"]["steps_kept"] == 170
    assert closes(payload)
    # A fresh start in the end leaves nothing of all that.
    life(tmp_path, at_s=30, count=10)
    assert lost(payload_of(tmp_path)) == [100, 50, 90, 0]


def test_after_an_unknown_resumption_positions_stay_unknown(tmp_path):
    life(tmp_path, at_s=0, count=100, ending=False, more=[save(2.8, 80)])
    life(tmp_path, at_s=10, count=50, ending=False, more=[resume(None), save(12.4, 40)])
    life(tmp_path, at_s=20, count=90, more=[load(12.4)])
    assert lost(payload_of(tmp_path)) == [None, None, 0]


def test_lost_work_beyond_a_tenth_of_the_run_is_a_finding(tmp_path):
    life(tmp_path, at_s=0, count=300, ending=False)
    life(tmp_path, at_s=5.5, count=900)
    payload = payload_of(tmp_path)
    (finding,) = [f for f in payload["findings"] if f["section"] == "run"]
    assert (finding["kind"], finding["severity"]) == ("LOST_WORK", "warn")
    assert finding["score"] == pytest.approx(3 / 16.5)
    assert "18 % of the wall time of the run went into 300 steps" in finding["summary"]


def test_a_rank_that_dies_early_and_one_that_comes_late_fill_the_span(tmp_path):
    life(tmp_path, 0, 2, 0, 100)
    life(tmp_path, 1, 2, 0.5, 40, ending=False)
    payload = payload_of(tmp_path)
    goodput = payload["ledger"]["goodput"]
    assert goodput["wall_s"] == pytest.approx(3.0)
    assert goodput["parts"]["productive"]["seconds"] == pytest.approx(0.7)
    assert closes(payload)


def test_the_spans_of_two_nodes_close_whatever_their_clocks_say(tmp_path):
    for at_s in (0, 10):
        life(tmp_path, 0, 2, at_s, 100)
        life(tmp_path, 1, 2, at_s, 90, host="node-b", wall_off_ns=HOUR_NS)
    payload = payload_of(tmp_path)
    goodput = payload["ledger"]["goodput"]
    assert goodput["wall_s"] == pytest.approx(13.0)
    assert goodput["parts"]["unknown"]["seconds"] == pytest.approx(0.1)
    assert closes(payload)


def test_thinned_steps_are_split_by_their_mean(tmp_path):
    start = made.BORN_NS + 2 * S
    sums = StepSums(1, 50, start, 500 * MS, {}, 50, None, 50)
    header = made.replace(made.HEADER, boot_id="boot of node-a", process_start_ns=made.BORN_NS,
                          monotonic_ns=made.BORN_NS + S)  # fmt: skip
    header = made.replace(header, wall_ns=made.HEADER.wall_ns + header.monotonic_ns)
    batch = made.steps(50, first=51, start_ns=start + 500 * MS)
    records = [made.Patches(1, made.ACTIVE), sums, batch, save(2.2, 20)]
    made.write_spool(tmp_path, records, header)
    life(tmp_path, at_s=10, count=80, more=[load(2.2)])
    payload = payload_of(tmp_path)
    assert lost(payload) == [80, 0]
    assert payload["ledger"]["goodput"]["parts"]["lost"]["seconds"] == pytest.approx(0.8)


def test_an_attempt_that_left_no_spool_leaves_a_gap_in_the_numbers(tmp_path):
    life(tmp_path, at_s=0, attempt=0, ending=False)
    life(tmp_path, at_s=10, attempt=2)
    assert [a["attempt"] for a in payload_of(tmp_path)["ledger"]["attempts"]] == [0, 2]
