"""Lines and records: what is written is read back, what is wrong is refused by name."""

import pytest

from tests.report.synthetic_run import HEADER, end, host_samples, process_samples, steps
from traceml_agent.schema.records import RECORD_TYPES, DeviceMemory, GpuSample
from traceml_agent.spool.digested import read_spool
from traceml_agent.spool.format import BadRecord, decode, encode
from traceml_agent.spool.reader import NotASpool


@pytest.mark.parametrize(
    "record",
    [
        HEADER,
        steps(3),
        end([steps(3)]),
        *host_samples(1),
        *process_samples([1]),
        GpuSample(1, 0, reasons={"power_w": "Not Supported"}),
    ],
)
def test_a_record_survives_its_line(record):
    assert decode(encode(record)) == record


def test_device_memory_inside_a_sample_survives(tmp_path):
    (sample,) = process_samples([5])
    full = type(sample)(1, 2, 3, 4, 5, devices=[DeviceMemory(0, 1, 2, 3, 4, None)])
    assert decode(encode(full)) == full


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[1]",
        b'{"kind":7}',
        b'{"kind":"steps"}',
        b'{"kind":"steps","first_step":true,"count":1,"start_ns":0,"duration_ns":[1],'
        b'"phase_ns":{},"micro_batches":1,"updates":1}',
        b'{"kind":"steps","first_step":1,"count":1,"start_ns":0,"duration_ns":["x"],'
        b'"phase_ns":{},"micro_batches":1,"updates":1}',
        b'{"kind":"steps","first_step":1,"count":1,"start_ns":0,"duration_ns":1,'
        b'"phase_ns":{},"micro_batches":1,"updates":1}',
        b'{"kind":"steps","first_step":1,"count":1,"start_ns":0,"duration_ns":[1],'
        b'"phase_ns":1,"micro_batches":1,"updates":1}',
        b'{"kind":"process","monotonic_ns":1.5,"step":0}',
    ],
)
def test_a_wrong_line_is_refused(line):
    with pytest.raises(BadRecord):
        decode(line)


def test_a_kind_of_a_later_version_is_passed_over():
    assert "hologram" not in RECORD_TYPES
    assert decode(b'{"kind":"hologram","x":1}') is None


def test_a_field_of_a_later_version_is_passed_over():
    line = encode(HEADER).replace(b'"pid"', b'"new_field":1,"pid"')
    assert decode(line) == HEADER


def test_every_truncation_of_a_spool_can_be_read(tmp_path):
    data = b"".join(map(encode, [HEADER, steps(3), end([steps(3)])]))
    first_line = data.index(b"\n") + 1
    path = tmp_path / "a.jsonl"
    for length in range(first_line, len(data)):
        path.write_bytes(data[:length])
        spool = read_spool(path)
        assert len(spool.batches) <= 1
    for length in range(first_line - 1):
        path.write_bytes(data[:length])
        with pytest.raises(NotASpool):
            read_spool(path)


def test_steps_with_columns_of_another_length_or_negative_times_are_refused(tmp_path):
    good = steps(3)
    for change in ({"duration_ns": [1, 2]}, {"duration_ns": [1, -2, 3]}, {"count": 0}):
        fields = {name: getattr(good, name) for name in good.__slots__}
        path = tmp_path / "a.jsonl"
        path.write_bytes(encode(HEADER) + encode(type(good)(**{**fields, **change})))
        spool = read_spool(path)
        assert (spool.batches, len(spool.problems)) == ([], 1)
