"""Any damage to any file of a run: what is whole is read, the rest is named, nothing is made up."""

import contextlib
import io
import json
import random
import signal
import subprocess
import sys

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.e2e.harness import environment, run, runs_in
from tests.e2e.harness import write as write_script
from tests.fuzz.budget import examples
from tests.fuzz.spools import (
    SLOTS,
    check_again,
    check_files,
    check_run,
    check_spool,
    check_text,
    damage,
    files_of,
    pack,
    seeds,
    unpack,
    without_time,
    write,
)
from traceml_agent.cli import main
from traceml_agent.errors import TracemlError
from traceml_agent.report import stats
from traceml_agent.report.fold import fold, read_summary
from traceml_agent.report.runs import list_runs
from traceml_agent.schema.records import RECORD_TYPES
from traceml_agent.spool.digested import read_spool

RANDOMS = st.randoms(use_true_random=False)

NO_BREAKER = {"TRACEML_MAX_OVERHEAD": "0"}
"""On a busy machine a patch may cost too much, and be switched off: then a run looks otherwise."""
TRAINING = """
import os, signal, sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader

model = nn.Linear(8, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for batch in DataLoader(torch.randn(400, 8), batch_size=4):
    optimizer.zero_grad()
    model(batch).mean().backward()
    optimizer.step()
    time.sleep(0.002)
if "killed" in sys.argv:
    os.kill(os.getpid(), signal.SIGKILL)
"""


class Runs(dict):
    """Files by the name of their run; short in the report of a failure."""

    def __repr__(self):
        return f"the runs {', '.join(self)}"


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    return Runs(seeds(tmp_path_factory.mktemp("seeds")))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The files of a training that ended, and of one that was killed with steps in its ring."""
    root = tmp_path_factory.mktemp("recorded")
    ended = run(root, write_script(root, TRAINING), **NO_BREAKER)
    assert ended.returncode == 0, ended.stderr
    killed_root = tmp_path_factory.mktemp("killed")
    done = subprocess.run(
        [sys.executable, write_script(killed_root, TRAINING), "killed"],
        env=environment(killed_root, True, TRACEML_FLUSH_INTERVAL_S="60", **NO_BREAKER),
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    (killed,) = runs_in(killed_root)
    found = Runs(a_training=files_of(ended.run_dir), a_killed_one=files_of(killed))
    assert found["a_killed_one"][1], "no ring"
    return found


@pytest.fixture
def run_dir(tmp_path, monkeypatch):
    directory = tmp_path / "runs" / "run"
    monkeypatch.setenv("TRACEML_DIR", str(directory.parent))
    directory.mkdir(parents=True)
    return directory


def clear(run_dir):
    for path in run_dir.iterdir():
        path.unlink()


def test_intact_runs_keep_every_step(intact, recorded, run_dir):
    steps = {}
    for name, files in {**intact, **recorded}.items():
        clear(run_dir)
        write(run_dir, files)
        summary = check_run(run_dir)
        steps[name] = [entry["steps"] for entry in summary.payload["ledger"]["ranks"]]
        assert summary.payload["traceml_agent"]["problems"] == []
        assert unpack(pack(files))[: len(files)] == files
    assert steps == {
        "finished": [24],
        "every_kind": [24],
        "thinned": [120],
        "ring_only": [11],
        "digested": [24, 24],
        "two_ranks": [24, 24],
        "killed": [11, 24],
        "crashed": [24],
        "a_training": [100],
        "a_killed_one": [100],
    }


@settings(max_examples=examples(300))
@given(data=st.data(), random_=RANDOMS, accidents=st.sampled_from((1, 1, 1, 2, 5)))
def test_a_damaged_run_is_folded_or_refused_and_never_breaks_the_reader(
    intact, run_dir, data, random_, accidents
):
    files = intact[data.draw(st.sampled_from(sorted(intact)))]
    for _ in range(accidents):
        files = damage(files, random_)
    clear(run_dir)
    write(run_dir, files)
    check_again(run_dir, check_run(run_dir))


@settings(max_examples=examples(200))
@given(data=st.data(), random_=RANDOMS)
def test_a_recorded_run_that_is_damaged_never_breaks_the_reader(recorded, run_dir, data, random_):
    files = damage(recorded[data.draw(st.sampled_from(sorted(recorded)))], random_)
    clear(run_dir)
    write(run_dir, files)
    check_again(run_dir, check_run(run_dir))


@settings(max_examples=examples(60))
@given(data=st.data(), random_=RANDOMS)
def test_what_is_written_is_what_was_folded_and_lists_of_runs_never_fail(
    intact, run_dir, data, random_
):
    files = damage(intact[data.draw(st.sampled_from(sorted(intact)))], random_)
    clear(run_dir)
    write(run_dir, files)
    check_files(run_dir.parent, run_dir)


@settings(max_examples=examples(250))
@given(data=st.data(), random_=RANDOMS)
def test_all_records_before_a_damaged_line_are_still_there(intact, run_dir, data, random_):
    spool = intact[data.draw(st.sampled_from(("every_kind", "finished", "thinned")))][0]
    lines = spool.split(b"\n")
    at = data.draw(st.integers(1, len(lines) - 1))
    path = run_dir / SLOTS[0]
    path.write_bytes(b"\n".join(lines[:at]) + b"\n")
    before = read_spool(path)
    one_line = (lines[at] + b"\n", *[b""] * 4)
    lines[at] = damage(one_line, random_)[0]
    path.write_bytes(b"\n".join(lines))
    after = read_spool(path)
    for column in ("batches", "sums", "device_batches", "process_samples", "host_samples",
                   "gpu_samples", "events", "faults"):  # fmt: skip
        kept = getattr(after, column)
        assert all(record in kept for record in getattr(before, column)), column
    assert before.statuses.keys() <= after.statuses.keys()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@settings(max_examples=examples(200))
@given(data=st.data())
def test_fields_of_any_type_are_taken_or_the_line_is_skipped(intact, run_dir, data):
    kind = data.draw(st.sampled_from(sorted(RECORD_TYPES)))
    written = intact["every_kind"][0].splitlines() + intact["thinned"][0].splitlines()
    record = next(r for line in written if (r := json.loads(line))["kind"] == kind)
    for name in data.draw(st.lists(st.sampled_from(sorted(record)), min_size=1, max_size=3)):
        record[name] = data.draw(JSON)
    lines = intact["finished"][0].splitlines(keepends=True)
    lines.insert(data.draw(st.integers(0, len(lines))), json.dumps(record).encode() + b"\n")
    clear(run_dir)
    write(run_dir, (b"".join(lines), *[b""] * 4))
    check_run(run_dir)


@settings(max_examples=examples(150))
@given(st.lists(st.binary(max_size=400), min_size=5, max_size=5))
def test_junk_in_place_of_all_files_is_refused(run_dir, files):
    clear(run_dir)
    write(run_dir, tuple(files))
    check_run(run_dir)
    for path in run_dir.glob("*.jsonl"):
        check_spool(path)


@settings(max_examples=examples(150))
@given(data=st.data(), random_=RANDOMS)
def test_a_damaged_summary_is_refused_and_the_run_is_still_listed(intact, run_dir, data, random_):
    clear(run_dir)
    write(run_dir, intact["every_kind"])
    written = without_time(fold(run_dir).payload)
    path = run_dir / "final_summary.json"
    # One line: so that a change may be anywhere in it.
    one_line = orjson.dumps(orjson.loads(written))
    path.write_bytes(damage((one_line, *[b""] * 4), random_)[0])
    try:
        read_summary(path)
    except TracemlError as error:
        assert "\n" not in str(error)
    assert len(list_runs([run_dir.parent])) == 1
    assert printed_by("runs")[0] == 0
    code, text = printed_by("view", str(path))
    if code == 0:
        check_text(text.removesuffix("\n"))
    else:
        assert (code, text.startswith("traceml: "), len(text.splitlines())) == (2, True, 1)


def printed_by(*arguments):
    """Exit code and output of a command, run as the command line runs it."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        code = main(arguments)
    return code, out.getvalue()


@settings(max_examples=examples(100))
@given(
    st.lists(st.lists(st.integers(0, 1 << 55), min_size=3, max_size=3), min_size=1, max_size=30),
    RANDOMS,
)
def test_long_columns_give_what_short_ones_give(rows, random_):
    """The first by numpy, the second without it."""
    pytest.importorskip("numpy")
    columns = [list(column) for column in zip(*rows, strict=True)]

    def results():
        return (
            list(stats.sorted_column(columns[0])),
            stats.sum_columns(columns),
            stats.differences(columns[0], columns[1]),
        )

    short = results()
    before, stats.NUMPY_FROM = stats.NUMPY_FROM, 1
    try:
        assert results() == short
    finally:
        stats.NUMPY_FROM = before


def test_the_damage_is_the_same_for_the_same_seed(intact):
    once, again = (damage(intact["every_kind"], random.Random(7)) for _ in range(2))
    assert once == again
