"""The samplers read the real counters of this process and machine."""

import os
import threading
import time
from pathlib import Path

import pytest

from traceml_agent.capture.samplers.cgroup import (
    cpu_quota,
    find_cgroup,
    memory_limit_bytes,
    memory_used_bytes,
    throttling,
)
from traceml_agent.capture.samplers.host import HostSampler
from traceml_agent.capture.samplers.process import ProcessSampler

linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")


@pytest.fixture
def process():
    sampler = ProcessSampler(threading.get_native_id(), lambda: None, lambda: 7)
    yield sampler
    sampler.close()


@linux
def test_work_of_the_process_raises_its_cpu_time_and_memory(process):
    before = process.sample(0, 1)
    blob = bytearray(64 * 1024**2)
    for index in range(0, len(blob), 4096):
        blob[index] = 1
    deadline = time.process_time() + 0.2
    while time.process_time() < deadline:
        pass
    after = process.sample(1, 2)
    assert after.rss_bytes - before.rss_bytes > 48 * 1024**2
    assert 0.1e9 < after.cpu_ns - before.cpu_ns < 5e9
    assert after.minor_faults - before.minor_faults > 1_000
    assert (before.step, after.step) == (1, 2)


@linux
def test_threads_and_switches_are_counted(process):
    before = process.sample(0, 0)
    release = threading.Event()
    threads = [threading.Thread(target=release.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        time.sleep(0.001)
    during = process.sample(0, 0)
    release.set()
    assert during.threads == before.threads + 3
    assert during.voluntary_switches >= before.voluntary_switches + 5


@linux
def test_bytes_written_to_disk_are_counted(process, tmp_path):
    before = process.sample(0, 0)
    if before.write_bytes is None:
        pytest.skip("no /proc/self/io here")
    with (tmp_path / "data").open("wb") as file:
        file.write(os.urandom(4 * 1024**2))
        file.flush()
        os.fsync(file.fileno())
    assert process.sample(0, 0).write_bytes - before.write_bytes >= 4 * 1024**2


@linux
def test_the_host_is_described_within_reason():
    sampler = HostSampler()
    deadline = time.process_time() + 0.3
    while time.process_time() < deadline:
        pass
    sample = sampler.sample(5)
    sampler.close()
    assert 100 / os.cpu_count() * 0.5 < sample.cpu_percent <= 100
    assert sample.cpu_count == os.cpu_count()
    assert 0 < sample.usable_cpus <= sample.cpu_count
    assert 0 < sample.memory_used_bytes < sample.memory_total_bytes


def make_tree(root, cgroup, mounts, files):
    """A root with /proc/self and control group files."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(cgroup)
    lines = [
        f"{number} 1 0:{number} {inside} {point} rw - {kind} {kind} rw,{options}\n"
        for number, (kind, point, inside, options) in enumerate(mounts, start=30)
    ]
    (root / "proc/self/mountinfo").write_text("".join(lines))
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return find_cgroup(root)


def test_version_2_takes_the_tightest_limit_on_the_way_up(tmp_path):
    group = make_tree(
        tmp_path,
        "0::/jobs/one\n",
        [("cgroup2", "/sys/fs/cgroup", "/", "nsdelegate")],
        {
            "sys/fs/cgroup/jobs/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/jobs/memory.max": "2147483648\n",
            "sys/fs/cgroup/jobs/one/cpu.max": "max 100000\n",
            "sys/fs/cgroup/jobs/one/memory.max": "max\n",
            "sys/fs/cgroup/jobs/memory.current": "1048576\n",
            "sys/fs/cgroup/jobs/cpu.stat": "usage_usec 5\nnr_throttled 7\nthrottled_usec 9\n",
        },
    )
    assert cpu_quota(group) == 1.5
    assert memory_limit_bytes(group) == 2 * 1024**3
    assert memory_used_bytes(group) == 1024**2
    assert (throttling(group).periods, throttling(group).throttled_ns) == (7, 9_000)


def test_version_1_has_a_hierarchy_for_each_controller(tmp_path):
    group = make_tree(
        tmp_path,
        "5:cpu,cpuacct:/a\n3:memory:/b\n",
        [
            ("cgroup", "/sys/fs/cgroup/cpu,cpuacct", "/", "cpu,cpuacct"),
            ("cgroup", "/sys/fs/cgroup/memory", "/", "memory"),
        ],
        {
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/a/cpu.stat": "nr_throttled 3\nthrottled_time 4\n",
            "sys/fs/cgroup/memory/b/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "1000000\n",
            "sys/fs/cgroup/memory/b/memory.usage_in_bytes": "12\n",
        },
    )
    assert cpu_quota(group) == 0.5
    assert memory_limit_bytes(group) == 1_000_000
    assert (throttling(group).periods, throttling(group).throttled_ns) == (3, 4)


def test_a_hybrid_machine_uses_the_controllers_where_they_are(tmp_path):
    group = make_tree(
        tmp_path,
        "4:memory:/m\n0::/u\n",
        [
            ("cgroup2", "/sys/fs/cgroup/unified", "/", "nsdelegate"),
            ("cgroup", "/sys/fs/cgroup/memory", "/", "memory"),
        ],
        {
            "sys/fs/cgroup/memory/m/memory.limit_in_bytes": "4096\n",
            "sys/fs/cgroup/unified/u/cgroup.procs": "",
        },
    )
    assert memory_limit_bytes(group) == 4096
    assert cpu_quota(group) is None
    assert throttling(group).periods is None


V1_CPU = {
    "sys/fs/cgroup/cpu/c/cpu.cfs_quota_us": "250000\n",
    "sys/fs/cgroup/cpu/c/cpu.cfs_period_us": "100000\n",
    "sys/fs/cgroup/cpu/c/cpu.stat": "nr_throttled 3\nthrottled_time 4\n",
}
V1_MEMORY = {
    "sys/fs/cgroup/memory/m/memory.limit_in_bytes": "4096\n",
    "sys/fs/cgroup/memory/m/memory.usage_in_bytes": "1024\n",
}
V2_BOTH = {
    "sys/fs/cgroup/unified/u/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/unified/u/cpu.stat": "nr_throttled 7\nthrottled_usec 9\n",
    "sys/fs/cgroup/unified/u/memory.max": "8192\n",
    "sys/fs/cgroup/unified/u/memory.current": "2048\n",
}


@pytest.mark.parametrize(
    ("entries", "on_version_1", "quota", "throttled", "limit", "used"),
    [
        ("4:memory:/m\n0::/u\n", ["memory"], 1.5, (7, 9_000), 4096, 1024),
        ("4:cpu:/c\n0::/u\n", ["cpu"], 2.5, (3, 4), 8192, 2048),
        ("5:memory:/m\n4:cpu:/c\n0::/u\n", ["cpu", "memory"], 2.5, (3, 4), 4096, 1024),
        # Mounted, but this process has no entry in it.
        ("0::/u\n", ["cpu", "memory"], 1.5, (7, 9_000), 8192, 2048),
        # An entry of a hierarchy that this container does not see.
        ("5:memory:/m\n4:cpu:/c\n0::/u\n", [], 1.5, (7, 9_000), 8192, 2048),
    ],
    ids=["memory on 1", "cpu on 1", "both on 1", "no entry on 1", "1 not mounted"],
)
def test_each_controller_of_a_hybrid_machine_is_found_on_its_own(
    tmp_path, entries, on_version_1, quota, throttled, limit, used
):
    unified = ("cgroup2", "/sys/fs/cgroup/unified", "/", "nsdelegate")
    mounts = [("cgroup", f"/sys/fs/cgroup/{name}", "/", name) for name in on_version_1]
    group = make_tree(tmp_path, entries, [unified, *mounts], V1_CPU | V1_MEMORY | V2_BOTH)
    assert cpu_quota(group) == quota
    assert (throttling(group).periods, throttling(group).throttled_ns) == throttled
    assert (memory_limit_bytes(group), memory_used_bytes(group)) == (limit, used)


def test_throttling_and_usage_are_those_of_the_parent_that_holds_the_limit_on_version_2(tmp_path):
    group = make_tree(
        tmp_path,
        "0::/job/step/task\n",
        [("cgroup2", "/sys/fs/cgroup", "/", "nsdelegate")],
        {
            "sys/fs/cgroup/job/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/job/cpu.stat": "nr_throttled 40\nthrottled_usec 50\n",
            "sys/fs/cgroup/job/step/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/job/step/cpu.stat": "nr_throttled 2\nthrottled_usec 3\n",
            "sys/fs/cgroup/job/step/memory.max": "8192\n",
            "sys/fs/cgroup/job/step/memory.current": "6000\n",
            "sys/fs/cgroup/job/step/task/cpu.max": "max 100000\n",
            "sys/fs/cgroup/job/step/task/cpu.stat": "nr_throttled 0\nthrottled_usec 0\n",
            "sys/fs/cgroup/job/step/task/memory.max": "max\n",
            "sys/fs/cgroup/job/step/task/memory.current": "10\n",
        },
    )
    assert cpu_quota(group) == 1.5
    assert (throttling(group).periods, throttling(group).throttled_ns) == (40, 50_000)
    assert (memory_limit_bytes(group), memory_used_bytes(group)) == (8192, 6000)


def test_throttling_and_usage_are_those_of_the_parent_that_holds_the_limit_on_version_1(tmp_path):
    group = make_tree(
        tmp_path,
        "5:cpu:/job/task\n3:memory:/job/task\n",
        [
            ("cgroup", "/sys/fs/cgroup/cpu", "/", "cpu"),
            ("cgroup", "/sys/fs/cgroup/memory", "/", "memory"),
        ],
        {
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "20000\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/job/cpu.stat": "nr_throttled 21\nthrottled_time 1599767380\n",
            "sys/fs/cgroup/cpu/job/task/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/job/task/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu/job/task/cpu.stat": "nr_throttled 0\nthrottled_time 0\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "8192\n",
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": "6000\n",
            "sys/fs/cgroup/memory/job/task/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/job/task/memory.usage_in_bytes": "10\n",
        },
    )
    assert (throttling(group).periods, throttling(group).throttled_ns) == (21, 1_599_767_380)
    assert (memory_limit_bytes(group), memory_used_bytes(group)) == (8192, 6000)


def test_without_any_limit_the_figures_are_those_of_the_own_group(tmp_path):
    group = make_tree(
        tmp_path,
        "0::/job/task\n",
        [("cgroup2", "/sys/fs/cgroup", "/", "nsdelegate")],
        {
            "sys/fs/cgroup/job/cpu.stat": "nr_throttled 9\nthrottled_usec 9\n",
            "sys/fs/cgroup/job/memory.current": "6000\n",
            "sys/fs/cgroup/job/task/cpu.stat": "nr_throttled 0\nthrottled_usec 0\n",
            "sys/fs/cgroup/job/task/memory.current": "10\n",
        },
    )
    assert cpu_quota(group) is None
    assert (throttling(group).periods, throttling(group).throttled_ns) == (0, 0)
    assert (memory_limit_bytes(group), memory_used_bytes(group)) == (None, 10)


def test_a_container_whose_name_begins_like_the_mounted_group_is_not_cut(tmp_path):
    group = make_tree(
        tmp_path,
        "0::/docker/abc\n",
        [("cgroup2", "/sys/fs/cgroup", "/docker/a", "rw")],
        {"sys/fs/cgroup/memory.max": "777\n", "sys/fs/cgroup/bc/memory.max": "1\n"},
    )
    assert memory_limit_bytes(group) == 777


def test_a_container_that_sees_its_group_as_the_root_finds_its_limits(tmp_path):
    group = make_tree(
        tmp_path,
        "0::/docker/abc\n",
        [("cgroup2", "/sys/fs/cgroup", "/docker/abc", "rw")],
        {"sys/fs/cgroup/memory.max": "777\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"},
    )
    assert memory_limit_bytes(group) == 777
    assert cpu_quota(group) == 2.0


@pytest.mark.parametrize("cgroup", ["", "garbage\n", "0::/gone\n"])
def test_without_control_groups_there_are_no_limits_and_no_error(tmp_path, cgroup):
    group = make_tree(tmp_path, cgroup, [], {})
    assert group is None
