"""The writer: the size cap, a full disk, a removed directory; the ring beside it."""

import os
import resource
import signal
import subprocess
import sys

import pytest

from tests.report.synthetic_run import ACTIVE, HEADER, MS, steps
from traceml_agent.schema.records import Patches
from traceml_agent.spool.digested import read_spool
from traceml_agent.spool.layout import RECORD
from traceml_agent.spool.reader import batches_of, last_step
from traceml_agent.spool.ring import Ring, read_ring, slot_offset
from traceml_agent.spool.writer import SpoolWriter


def test_beyond_the_cap_old_steps_become_sums_and_no_step_is_lost(tmp_path):
    writer = SpoolWriter(tmp_path / "a.jsonl", max_bytes=40_000)
    writer.write([HEADER, Patches(1, ACTIVE)])
    first, start = 1, 0
    for _ in range(100):
        batch = steps(50, first=first, start_ns=start)
        writer.write([batch])
        first += 50
        start += sum(batch.duration_ns)
        assert (tmp_path / "a.jsonl").stat().st_size < 45_000
    writer.close()
    spool = read_spool(tmp_path / "a.jsonl")
    kept = sum(batch.count for batch in spool.batches)
    summed = sum(part.count for part in spool.sums)
    assert kept + summed == 5_000
    assert writer.thinned_steps == summed > 0
    assert last_step(spool) == 5_000
    total = sum(sum(b.duration_ns) for b in spool.batches) + sum(s.duration_ns for s in spool.sums)
    assert total == 5_000 * 10 * MS
    assert spool.problems == []


def test_a_removed_directory_is_an_error_counted_and_not_raised(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    writer = SpoolWriter(directory / "a.jsonl", max_bytes=10**6)
    assert writer.write([HEADER])
    (directory / "a.jsonl").unlink()
    directory.rmdir()
    assert not writer.write([steps(3)])
    assert "removed" in (writer.error or "")
    assert writer.lost == {"steps": 1}


def test_after_a_torn_write_the_spool_goes_on_in_a_line_of_its_own(tmp_path):
    code = f"""
import resource, signal, sys
from pathlib import Path
from tests.report.synthetic_run import HEADER, steps
from traceml_agent.spool.writer import SpoolWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
writer = SpoolWriter(Path({str(tmp_path / "a.jsonl")!r}), 10**9)
writer.write([HEADER, steps(5)])
limit = writer.size + 60
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
assert not writer.write([steps(5, first=6)])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert writer.write([steps(5, first=11)])
assert writer.lost == {{"steps": 1}}, writer.lost
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=os.getcwd())
    spool = read_spool(tmp_path / "a.jsonl")
    assert [batch.first_step for batch in spool.batches] == [1, 11]
    assert len(spool.problems) == 1
    assert resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGINT)


def test_a_spool_is_never_written_through_a_symbolic_link(tmp_path):
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        SpoolWriter(tmp_path / "a.jsonl", 10**6)
    with pytest.raises(OSError):
        Ring(tmp_path / "a.jsonl", 4)
    assert not (tmp_path / "elsewhere").exists()


def test_the_ring_gives_back_the_last_steps_in_order(tmp_path):
    ring = Ring(tmp_path / "a.ring", 4)
    for step in range(1, 8):
        row = (step, step * 10, 10, *[0] * 9, 0, 1, -1, 1, step)
        RECORD.pack_into(ring.buffer, slot_offset(step, 4), *row)
    ring.close(remove=False)
    rows = read_ring(tmp_path / "a.ring")
    assert [row[0] for row in rows] == [4, 5, 6, 7]
    (batch,) = batches_of(rows)
    assert (batch.first_step, batch.count, batch.samples) == (4, 4, None)
