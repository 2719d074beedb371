"""The digest of a spool: it says what the spool says, whatever happens to either of them."""

import os
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from tests.report import synthetic_run as made
from tests.report.synthetic_run import MS
from tests.scale.job import Job, Straggler
from tests.scale.simulate import write_job
from traceml_agent.report import parts
from traceml_agent.report.fold import fold, fold_and_write
from traceml_agent.report.view import is_alive
from traceml_agent.schema.digests import Covered
from traceml_agent.schema.records import Event, ProcessSample
from traceml_agent.spool import digest as digests
from traceml_agent.spool.digest import DIGEST_STEPS, WINDOW_STEPS, DigestWriter, bring_home
from traceml_agent.spool.digested import TAIL_BYTES, packed_parts, read_spool
from traceml_agent.spool.format import ALIVE_SUFFIX, DIGEST_SUFFIX, encode
from traceml_agent.spool.liveness import hold
from traceml_agent.spool.sketch import added, counted, quantile_of
from traceml_agent.spool.writer import SpoolWriter, thin_lines

JOBS = {
    "healthy": Job(2, 120, step_ms=40.0),
    "straggler": Job(4, 200, step_ms=40.0, stragglers=(Straggler(2, "input_wait", 30.0),)),
    "dead and torn": Job(3, 150, step_ms=40.0, dead=((1, 90),), torn=(2,)),
    "restarted": Job(2, 160, step_ms=40.0, restarts=(70,), checkpoint_every=25),
    "on devices": Job(2, 90, step_ms=40.0, on_device=True),
    "thinned spools": Job(2, 3_000, step_ms=20.0, spool_max_mb=0.1),
}


def follow(path: Path, pieces: int = 3) -> DigestWriter:
    """Writes the digest of a spool as it would have grown, in so many parts."""
    data = path.read_bytes()
    os.truncate(path, data.index(b"\n") + 1)
    writer = DigestWriter(path.with_suffix(DIGEST_SUFFIX), path, read_spool(path).header)
    for piece in range(1, pieces + 1):
        path.write_bytes(data[: len(data) * piece // pieces])
        writer.update()
    assert writer.error is None
    return writer


def blank(path: Path) -> None:
    """Makes unreadable what a digest has of a spool, but the end by which it knows it."""
    data = path.read_bytes()
    begin, end = data.index(b"\n") + 1, data.rfind(b"\n") + 1 - TAIL_BYTES
    path.write_bytes(data[:begin] + b" " * (end - begin) + data[end:])


def summary_of(run_dir: Path) -> dict[str, object]:
    payload = fold(run_dir).payload
    del payload["generated_at"]
    return payload


def spool_with(directory: Path, *records, steps: int = 30) -> Path:
    """A spool of one process, in lines of ten steps."""
    batches = [
        made.steps(10, first=first, start_ns=made.FIRST_STEP_NS + (first - 1) * 10 * MS)
        for first in range(1, steps, 10)
    ]
    made.run_of(directory, *batches, more=list(records))
    (path,) = directory.glob("*.jsonl")
    return path


@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("pieces", [1, 7])
def test_a_job_folds_to_the_same_summary_by_its_digests(tmp_path, name, pieces):
    run_dir = write_job(JOBS[name], tmp_path / "run")
    by_spools = summary_of(run_dir)
    for path in run_dir.glob("*.jsonl"):
        follow(path, pieces)
    for path in run_dir.glob("*.jsonl"):  # so that only a digest can give these steps
        blank(path)
        os.utime(path, (1, 1))  # long silent, as before
    assert summary_of(run_dir) == by_spools


def test_only_the_steps_of_a_spool_are_all_of_its_steps(tmp_path):
    for name in ("on devices", "thinned spools"):
        for path in write_job(JOBS[name], tmp_path / name).glob("*.jsonl"):
            everything, found = (
                read_spool(path, whole=True, only_steps=only) for only in (False, True)
            )
            for column in ("batches", "sums", "device_batches"):
                assert getattr(found, column) == getattr(everything, column)
            assert everything.process_samples and not found.process_samples
            assert not found.problems
            assert bool(found.device_batches) == (name == "on devices")


def test_what_the_spool_has_beyond_its_digest_is_read_there(tmp_path):
    path = spool_with(tmp_path / "run")
    writer = follow(path)
    with path.open("ab") as file:
        later = made.steps(5, first=31, start_ns=made.FIRST_STEP_NS + 300 * MS)
        file.write(encode(later) + b'{"kind":"steps","first')
    spool = read_spool(path)
    assert sum(batch.count for batch in spool.batches) == 35
    assert spool.problems == [f"{path.name}: the last line is torn and was left out"]
    writer.update()
    assert sum(batch.count for batch in read_spool(path).batches) == 35


def test_a_digest_cut_off_anywhere_gives_way_to_the_spool(tmp_path):
    path = spool_with(tmp_path / "run", Event("checkpoint", made.FIRST_STEP_NS, MS, 3))
    expected = read_spool(path, whole=True)
    follow(path)
    digest = path.with_suffix(DIGEST_SUFFIX)
    data = digest.read_bytes()
    for size in range(0, len(data), 7):
        digest.write_bytes(data[:size])
        spool = read_spool(path)
        assert sum(batch.count for batch in spool.batches) == 30, size
        assert len(spool.events) == len(expected.events), size
        assert spool.end == expected.end, size


def test_a_digest_of_a_longer_spool_is_left_aside(tmp_path):
    path = spool_with(tmp_path / "run")
    follow(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))  # as after thinning, when the digest was not told
    assert sum(batch.count for batch in read_spool(path).batches) == 10


def test_a_line_that_is_no_record_is_named_by_its_number_with_a_digest_too(tmp_path):
    path = spool_with(tmp_path / "run")
    lines = path.read_bytes().splitlines(keepends=True)
    lines.insert(3, b'{"kind":"steps"}\n')
    path.write_bytes(b"".join(lines))
    expected = read_spool(path).problems
    assert "line 4 skipped" in expected[0]
    follow(path, pieces=2)
    assert read_spool(path).problems == expected


def test_thinning_the_spool_leaves_all_steps_in_the_digest(tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    writer = SpoolWriter(run_dir / "rank00000-attempt0-host-1.jsonl", 20_000)
    writer.write([made.HEADER])
    path = writer.path
    writer.digest = DigestWriter(path.with_suffix(DIGEST_SUFFIX), path, made.HEADER)
    for first in range(1, 2001, 10):
        start_ns = made.FIRST_STEP_NS + (first - 1) * 10 * MS
        writer.write([made.steps(10, first=first, start_ns=start_ns)])
    assert writer.thinned_steps > 0
    writer.digest.update()
    assert writer.digest.error is None
    assert sum(batch.count for batch in read_spool(path).batches) == 2000
    by_spool = read_spool(path, whole=True)
    assert sum(batch.count for batch in by_spool.batches) < 2000


@pytest.fixture
def small_digests(monkeypatch):
    """Digests that keep 2,000 steps instead of 20,000."""
    monkeypatch.setattr(digests, "DIGEST_STEPS", 2_000)
    monkeypatch.setattr(digests, "WINDOW_STEPS", 100)


def test_older_steps_become_sums_by_window_and_a_sketch(tmp_path, small_digests):
    run_dir = write_job(Job(1, 9_500, step_ms=20.0, noise=0.3), tmp_path / "run")
    (path,) = run_dir.glob("*.jsonl")
    whole = read_spool(path)
    durations = [ns for batch in whole.batches for ns in batch.duration_ns]
    writer = follow(path, pieces=6)
    assert not writer.is_whole
    spool = read_spool(path)
    kept = [ns for batch in spool.batches for ns in batch.duration_ns]
    assert 2_000 <= len(kept) <= 4_000
    assert kept == durations[-len(kept) :]
    assert spool.summed_steps == len(durations) - len(kept)
    assert all(part.first_step % 100 == 1 for part in spool.sums)
    assert sum(part.duration_ns for part in spool.sums) == sum(durations[: -len(kept)])
    older = sorted(durations[: -len(kept)])
    assert spool.sketch.steps == len(older)
    for q in (0.01, 0.5, 0.95, 0.999):
        exact = older[int(q * (len(older) - 1))]
        assert quantile_of(spool.sketch.buckets, q) == pytest.approx(exact, rel=0.0101)
    assert spool.process_samples == whole.process_samples
    assert spool.end == whole.end
    assert spool.last_monotonic_ns == whole.last_monotonic_ns


def test_a_fold_reads_spools_instead_of_sums_unless_they_are_too_much(
    tmp_path, small_digests, monkeypatch
):
    run_dir = write_job(Job(2, 6_000, step_ms=20.0), tmp_path / "run")
    exact = summary_of(run_dir)
    for path in run_dir.glob("*.jsonl"):
        follow(path)
    assert summary_of(run_dir) == exact
    monkeypatch.setattr(parts, "WHOLE_BYTES", 100_000)
    by_sums = summary_of(run_dir)
    assert [r["steps"] for r in by_sums["ledger"]["ranks"]] == [6_000, 6_000]
    for payload in (by_sums, exact):  # what the first step took alone is in no sum
        for rank in payload["ledger"]["ranks"]:
            training = rank["detail"]["training"]
            waited = training["input_wait"] + (training.pop("first_batch") or 0.0)
            training["input_wait"] = round(waited, 6)
    assert by_sums["ledger"] == exact["ledger"]
    whole, window = by_sums["step_time"]["whole_run"], by_sums["step_time"]["global"]["window"]
    assert exact["step_time"]["whole_run"] is None
    assert window["steps_analyzed"] < 4_100
    assert whole["steps"] == 12_000
    exact_ms = exact["step_time"]["global"]["average"]["step_time_ms"]
    assert whole["average_ms"] == pytest.approx(exact_ms, rel=0.001)
    assert whole["p50_ms"] == pytest.approx(
        exact["step_time"]["distribution"]["step_time"]["p50"], rel=0.015
    )
    assert by_sums["traceml_agent"]["dropped"] == {"summed_steps": 12_000 - 2 * 2_000}


def test_ranks_sum_up_the_same_windows(tmp_path, small_digests):
    run_dir = write_job(Job(2, 6_000, step_ms=20.0), tmp_path / "run")
    borders = []
    for path in sorted(run_dir.glob("*.jsonl")):
        follow(path, pieces=len(borders) + 3)
        borders.append([part.first_step for part in read_spool(path).sums])
    shorter = min(map(len, borders))
    assert shorter > 10
    assert borders[0][:shorter] == borders[1][:shorter]


def test_sketches_add_up_in_any_order():
    values = [(i * 7919) % 1_000_003 for i in range(5_000)]
    whole = counted(values)
    halves = added(counted(values[:1_234]), counted(values[1_234:]))
    assert halves == whole == added(counted(values[1_234:]), counted(values[:1_234]))
    assert sum(whole.values()) == len(values)
    assert quantile_of({}, 0.5) is None


def on_node(tmp_path: Path, *, steps: int = 30) -> tuple[Path, Path, DigestWriter]:
    """The digest in the run directory, the spool somewhere else on this machine, its writer."""
    import socket

    header = replace(made.HEADER, hostname=socket.gethostname())
    run_dir = tmp_path / header.run_id
    node = tmp_path / "spools" / header.run_id
    for directory in (run_dir, node.parent, node):
        directory.mkdir(mode=0o700)
    there, here = node / "rank0.jsonl", run_dir / "rank0.jsonl"
    writer = SpoolWriter(there, 10**7)
    writer.write([header, made.steps(steps)])
    known = replace(header, spool_path=str(there), run_dir=str(run_dir))
    digest = DigestWriter(here, there, known)
    digest.update()
    assert digest.error is None
    os.utime(here, (1, 1))  # long silent
    return here, there, digest


def test_a_spool_on_this_node_completes_the_digest_that_stands_for_it(tmp_path):
    here, there, _ = on_node(tmp_path)
    with there.open("ab") as file:
        later = made.steps(5, first=31, start_ns=made.FIRST_STEP_NS + 300 * MS)
        file.write(encode(later))
    spool = read_spool(here)
    assert sum(batch.count for batch in spool.batches) == 35
    assert not spool.is_elsewhere
    bring_home(here)
    assert not there.exists()
    spool = read_spool(here)
    assert sum(batch.count for batch in spool.batches) == 35
    assert spool.problems == []


def test_without_that_spool_the_reader_says_where_the_rest_is(tmp_path):
    here, there, _ = on_node(tmp_path)
    there.unlink()
    spool = read_spool(here)
    assert sum(batch.count for batch in spool.batches) == 30
    assert spool.is_elsewhere
    (problem,) = fold(here.parent).payload["traceml_agent"]["problems"]
    assert str(there) in problem
    assert spool.header.hostname in problem


def test_another_spool_under_that_name_is_not_taken(tmp_path):
    here, there, _ = on_node(tmp_path)
    there.write_bytes(encode(replace(made.HEADER, pid=77)) + encode(made.steps(9)))
    spool = read_spool(here)
    assert sum(batch.count for batch in spool.batches) == 30
    assert spool.is_elsewhere


def test_a_part_that_was_not_closed_does_not_count_twice(tmp_path):
    here, there, digest = on_node(tmp_path)
    with there.open("ab") as file:
        samples = [ProcessSample(made.FIRST_STEP_NS + MS, 30, 1 << 30, MS, 4)]
        file.write(b"".join(map(encode, samples)))
    size = here.stat().st_size
    digest.update()
    for cut in (here.stat().st_size - 3, size + 20, size + 1):
        os.truncate(here, cut)
        spool = read_spool(here)
        assert len(spool.process_samples) == 1, cut
        assert sum(batch.count for batch in spool.batches) == 30


def test_a_digest_is_gzip_that_others_can_read(tmp_path):
    import gzip

    path = spool_with(tmp_path / "run")
    follow(path)
    data = path.with_suffix(DIGEST_SUFFIX).read_bytes()
    text = gzip.decompress(data)
    assert text == b"".join(packed_parts(data))
    assert text.startswith(b'{"kind":"header"')
    assert text.splitlines()[-1].startswith(b'{"kind":"covered"')
    with pytest.raises(zlib.error):
        zlib.decompress(data)  # no bare zlib


def test_a_disk_that_does_not_take_the_digest_ends_it_and_nothing_else(tmp_path):
    path = spool_with(tmp_path / "run")
    gone = tmp_path / "gone"
    writer = DigestWriter(gone / "a.digest", path, made.HEADER)
    writer.update()
    assert "gone" in writer.error
    assert not writer.is_whole
    assert sum(batch.count for batch in read_spool(path).batches) == 30
    gone.mkdir()
    writer.update()
    assert writer.error is None
    spool = read_spool(path)
    blank(path)
    path.with_suffix(DIGEST_SUFFIX).write_bytes(writer.path.read_bytes())
    assert sum(batch.count for batch in read_spool(path).batches) == 30 == spool.end.steps


def test_a_write_that_fails_midway_is_made_good_by_the_next(tmp_path, monkeypatch):
    path = spool_with(tmp_path / "run")
    data = path.read_bytes()
    half = data.rfind(b"\n", 0, len(data) // 2) + 1
    path.write_bytes(data[:half])
    writer = DigestWriter(path.with_suffix(DIGEST_SUFFIX), path, made.HEADER)
    writer.update()
    path.write_bytes(data)
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[: len(data) // 2]))
    writer.update()
    assert "No space left" in writer.error
    assert sum(batch.count for batch in read_spool(path).batches) == 30
    monkeypatch.undo()
    writer.update()
    assert writer.error is None
    blank(path)
    assert sum(batch.count for batch in read_spool(path).batches) == 30


def test_the_limits_fit_together():
    assert DIGEST_STEPS % WINDOW_STEPS == 0


def test_only_a_dead_process_of_this_very_run_is_brought_home(tmp_path):
    here, there, _ = on_node(tmp_path)
    with there.open("ab") as file:
        file.write(encode(made.steps(5, first=31, start_ns=made.FIRST_STEP_NS + 300 * MS)))
    copy = tmp_path / "copy" / here.parent.name
    shutil.copytree(here.parent, copy)
    fold_and_write(copy)
    assert there.exists()  # it may live: the lock is beside the original
    lock = hold(here.with_suffix(ALIVE_SUFFIX))
    os.utime(here)
    child = subprocess.run(
        [sys.executable, "-m", "traceml_agent", "fold", str(here.parent)], check=True
    )
    assert child.returncode == 0
    assert there.exists()
    os.close(lock)
    os.utime(here, (1, 1))
    fold_and_write(here.parent)
    assert not there.exists()
    assert sum(batch.count for batch in read_spool(here).batches) == 35
    assert not is_alive(read_spool(here))  # though it was written just now


def test_an_end_that_did_not_reach_the_digest_comes_home_too(tmp_path):
    here, there, _ = on_node(tmp_path)
    with there.open("ab") as file:
        file.write(encode(made.end([made.steps(30)])))
    fold_and_write(here.parent)
    assert not there.exists()
    assert read_spool(here).end is not None


def test_a_fold_removes_no_file_that_is_none_of_a_run(tmp_path):
    here, there, _ = on_node(tmp_path)
    for place in (tmp_path / "spools" / "other", tmp_path / "elsewhere" / here.parent.name):
        place.mkdir(parents=True, mode=0o700)
        victim = place / there.name
        shutil.copy(there, victim)
        text = here.read_bytes().replace(str(there).encode(), str(victim).encode())
        here.write_bytes(text)
        os.utime(here, (1, 1))
        fold_and_write(here.parent)
        assert victim.exists()
        here.write_bytes(text.replace(str(victim).encode(), str(there).encode()))


def test_a_damaged_last_line_of_a_digest_costs_one_part(tmp_path):
    here, there, digest = on_node(tmp_path)
    with there.open("ab") as file:
        file.write(encode(made.steps(5, first=31, start_ns=made.FIRST_STEP_NS + 300 * MS)))
    digest.update()
    there.unlink()
    assert sum(batch.count for batch in read_spool(here).batches) == 35
    data = here.read_bytes()
    for damaged in (data[:-1], data[:-5] + b"xxx}\n"):
        here.write_bytes(damaged)
        assert sum(batch.count for batch in read_spool(here).batches) == 30


def test_a_digest_that_stopped_before_the_spool_was_thinned_is_left_aside(tmp_path):
    path = spool_with(tmp_path / "run", steps=400)
    follow(path)
    thinned = thin_lines(path.read_bytes().splitlines(keepends=True))
    assert thinned.thinned_steps > 0
    later = [made.steps(10, first=f, start_ns=made.FIRST_STEP_NS + (f - 1) * 10 * MS)
             for f in range(401, 900, 10)]  # fmt: skip
    path.write_bytes(b"".join(thinned.lines) + b"".join(map(encode, later)))
    spool = read_spool(path)
    whole = read_spool(path, whole=True)
    assert spool.problems == whole.problems == []
    assert [b.first_step for b in spool.batches] == [b.first_step for b in whole.batches]


def test_a_digest_of_another_process_under_the_same_name_is_left_aside(tmp_path):
    path = spool_with(tmp_path / "run")
    other = spool_with(tmp_path / "other", Event("checkpoint", made.FIRST_STEP_NS, MS, 3))
    follow(other)
    path.with_suffix(DIGEST_SUFFIX).write_bytes(other.with_suffix(DIGEST_SUFFIX).read_bytes())
    assert read_spool(path).events == []


def test_device_times_of_summed_steps_go(tmp_path, small_digests):
    run_dir = write_job(Job(1, 9_500, step_ms=20.0, on_device=True), tmp_path / "run")
    (path,) = run_dir.glob("*.jsonl")
    follow(path, pieces=5)
    spool = read_spool(path)
    single = sum(batch.count for batch in spool.batches)
    assert sum(batch.count for batch in spool.device_batches) == single < 5_000


def test_a_fifo_in_place_of_a_spool_does_not_hold_a_reader_up(tmp_path):
    here, there, _ = on_node(tmp_path)
    there.unlink()
    os.mkfifo(there)
    assert read_spool(here).is_elsewhere


@pytest.mark.parametrize("line", [
    b'{"kind":"sketch","steps":3,"buckets":{"0000099999":3}}',
    b'{"kind":"samples","of":"gpu","count":1,"columns":{"monotonic_ns":[1],"index":[0],'
    b'"processes":[' + b"[" * 900 + b"]" * 900 + b"]}}",
])  # fmt: skip
def test_numbers_that_no_writer_writes_are_skipped(tmp_path, line):
    path = spool_with(tmp_path / "run")
    with path.open("ab") as file:
        file.write(line + b"\n")
    assert "skipped" in read_spool(path).problems[0]
    fold(path.parent)


def test_a_digest_that_another_node_completes_meanwhile_is_in_the_summary(tmp_path, monkeypatch):
    from traceml_agent.report import fold as folding

    here, there, _ = on_node(tmp_path)
    there.unlink()
    render, grown = folding.render_text, []

    def grow_and_render(payload):
        if not grown:
            grown.append(True)
            later = made.steps(5, first=31, start_ns=made.FIRST_STEP_NS + 300 * MS)
            with here.open("ab") as file:
                file.write(encode(later) + encode(Covered(9_999, 9, closed=True)))
        return render(payload)

    monkeypatch.setattr(folding, "render_text", grow_and_render)
    payload = fold_and_write(here.parent).payload
    assert [rank["steps"] for rank in payload["ledger"]["ranks"]] == [35]
