"""A disk that is full, has no locks, or does not answer: the training goes on unaware."""

import json
import os
import subprocess

import pytest

from tests.deaths.test_together import LEAVE, RANKS, environ_of
from tests.deaths.warm import NO_BREAKER, Job, let_die, view
from tests.disk.edge import number
from tests.e2e.harness import run, runs_in, write
from traceml_agent.report.runs import summary_payload

RUNS = "os.environ['EDGE_ROOT']"
PAUSE = "time.sleep(0.8)  # the sampler thread writes meanwhile\n"
SWITCH = "open(os.environ['EDGE_SWITCH'], 'w').close()\n"
REPAIR = "os.unlink(os.environ['EDGE_SWITCH'])\n"
PATIENCE_S = 10.0
"""The exit waits 2 s at most; the rest is for a busy machine. These disks hang for ever."""


def jobs_with(tmp_path, sources, environs, signals=()):
    """One job for each pair of source and EDGE_ settings, named after both."""
    (tmp_path / "on" / "runs").mkdir(parents=True, exist_ok=True)
    (tmp_path / "switches").mkdir(exist_ok=True)
    jobs = []
    for source_name, source in sources.items():
        for name, environ in environs.items():
            full = f"{source_name}, {name}"
            extra = {"EDGE_ROOT": str(tmp_path / "on" / "runs")}
            extra["EDGE_SWITCH"] = str(tmp_path / "switches" / full)
            jobs.append(Job(full, source, signals, extra | environ))
    return jobs


def let_all_die(tmp_path, jobs, edge, **settings):
    """Without the agent, and with it."""
    off = let_die(tmp_path / "off", jobs, enabled=False, LD_PRELOAD=edge)
    for job in jobs:
        switch = job.environ["EDGE_SWITCH"]
        if os.path.exists(switch):
            os.unlink(switch)
    return off, let_die(tmp_path / "on", jobs, LD_PRELOAD=edge, **settings)


def check_same(off, on, name):
    """The training saw no difference."""
    assert (on.overdue, on.returncode) == (False, off.returncode), name
    assert on.other_stderr == off.other_stderr.replace("/off/", "/on/"), name
    assert on.stdout == off.stdout, name


LOCKS = {
    "ENOLCK": {"EDGE_LOCKS": number("ENOLCK")},
    "ENOSYS": {"EDGE_LOCKS": number("ENOSYS")},
    "EOPNOTSUPP": {"EDGE_LOCKS": number("EOPNOTSUPP")},
    "hang": {"EDGE_LOCKS": "hang"},
}
LOCK_USES = {
    "always": SWITCH + "train(30)\nleaving()",
    "at the end": "train(30)\n" + SWITCH + "leaving()",
    "in os._exit": SWITCH + "train(30)\nleaving()\nos._exit(3)",
}


@pytest.mark.slow
def test_locks_that_fail_or_hang_cost_at_most_the_summary_on_the_spot(tmp_path, edge):
    off, on = let_all_die(tmp_path, jobs_with(tmp_path, LOCK_USES, LOCKS), edge)
    for name, death in on.items():
        check_same(off[name], death, name)
        assert death.exit_s < PATIENCE_S, name
        code = 3 if "_exit" in name else 0
        how = death.summary["run_context"]["exit"]["0"]
        assert (how["status"], how["exit_code"]) == ("failed" if code else "finished", code), name
        assert death.steps == 30, name
        assert death.summary["traceml_agent"]["dropped"] == {}
        shown = any(": Run  " in line for line in death.own_lines)
        assert shown == ("hang" not in name and "_exit" not in name), name
        assert view(death.run_dir).returncode == 0
    print({name: round(d.exit_s - off[name].exit_s, 2) for name, d in on.items()})


def test_without_locks_a_silent_process_counts_as_dead(tmp_path, edge):
    deaths = {
        "sigkill": "train(10)\nos.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)",
        "sigterm": "train(10)\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)",
    }
    environ = {"": {"EDGE_LOCKS": number("ENOLCK"), "EDGE_SWITCH": "/"}}
    jobs = jobs_with(tmp_path, deaths, environ)
    found = let_die(tmp_path / "on", jobs, LD_PRELOAD=edge)
    for name, status in {"sigkill, ": "killed", "sigterm, ": "terminated"}.items():
        # The lock file lies on a disk with locks for this process, and nobody holds it.
        assert found[name].summary["run_context"]["run"]["status"] == status


@pytest.mark.slow
def test_ranks_without_locks_still_agree_on_one_summary(tmp_path, edge):
    (tmp_path / "runs").mkdir()
    disk = {"EDGE_ROOT": str(tmp_path / "runs"), "EDGE_LOCKS": number("ENOLCK")}
    jobs = [
        Job(f"{rank}", LEAVE, environ=environ_of(tmp_path, 0, rank) | disk) for rank in range(RANKS)
    ]
    deaths = let_die(tmp_path, jobs, width=RANKS, LD_PRELOAD=edge)
    assert {death.returncode for death in deaths.values()} == {0}
    (run_dir,) = runs_in(tmp_path)
    summary = summary_payload(run_dir)
    assert summary == summary_payload(run_dir)
    exits = summary["run_context"]["exit"]
    assert [how["status"] for how in exits.values()] == ["finished"] * RANKS
    printed = [line for death in deaths.values() for line in death.own_lines if ": Run  " in line]
    assert len(printed) == 1


ENOSPC = {"EDGE_WRITE": number("ENOSPC")}
TROUBLES = {"ENOSPC": ENOSPC, "EIO": {"EDGE_WRITE": number("EIO")}, "hang": {"EDGE_WRITE": "hang"}}
RARE_TROUBLES = {name: {"EDGE_WRITE": number(name)} for name in ("EDQUOT", "ESTALE", "EROFS")}
WRITE_USES = {
    "for good": "train(30)\n" + SWITCH + PAUSE + "train(30)\nleaving()",
    "at the end": "train(60)\n" + SWITCH + "leaving()",
    "in os._exit": "train(60)\n" + SWITCH + "leaving()\nos._exit(0)",
    "in an exception": "train(60)\n" + SWITCH + "leaving()\nraise ValueError('over')",
}


@pytest.mark.slow
def test_a_disk_that_takes_nothing_more_loses_no_step_and_no_exit_code(tmp_path, edge):
    jobs = jobs_with(tmp_path, WRITE_USES, TROUBLES)
    jobs += jobs_with(
        tmp_path, {"sys.exit": WRITE_USES["for good"] + "\nsys.exit(3)"}, RARE_TROUBLES
    )
    off, on = let_all_die(tmp_path, jobs, edge)
    for name, death in on.items():
        check_same(off[name], death, name)
        assert death.exit_s < PATIENCE_S, name
        assert len([line for line in death.own_lines if "cannot write to" in line]) <= 1, name
        code = death.returncode
        how = death.summary["run_context"]["exit"]["0"]
        assert (how["status"], how["exit_code"]) == ("failed" if code else "finished", code), name
        assert death.steps == 60, name
        assert "known from the ring" in " ".join(death.summary["traceml_agent"]["problems"])
        assert not death.summary["traceml_agent"]["complete"]
        assert view(death.run_dir).returncode == 0
    print({name: round(d.exit_s - off[name].exit_s, 2) for name, d in on.items()})


def test_a_disk_that_has_room_again_gets_every_step(tmp_path, edge):
    source = (
        "train(30)\n" + SWITCH + PAUSE + "train(30)\n" + PAUSE + REPAIR + "train(30)\nleaving()"
    )
    jobs = jobs_with(tmp_path, {"repaired": source}, {"": ENOSPC})
    death = let_die(tmp_path / "on", jobs, LD_PRELOAD=edge)["repaired, "]
    assert (death.returncode, death.steps) == (0, 90)
    about = death.summary["traceml_agent"]
    assert about["complete"]
    assert "steps" not in about["dropped"] and "step" not in about["dropped"]
    assert not list(death.run_dir.glob("*.ring"))


@pytest.mark.slow
def test_a_disk_that_hangs_does_not_stop_a_training_that_fills_the_ring(tmp_path, edge):
    source = "train(30)\n" + SWITCH + PAUSE + "train(10_000)\nleaving()"
    jobs = jobs_with(tmp_path, {"full ring": source}, {"hang": {"EDGE_WRITE": "hang"}})
    death = let_die(tmp_path / "on", jobs, LD_PRELOAD=edge)["full ring, hang"]
    assert (death.returncode, death.overdue) == (0, False)
    assert death.exit_s < PATIENCE_S
    how = death.summary["run_context"]["exit"]["0"]
    assert (how["status"], how["last_step"]) == ("finished", 10_030)


@pytest.mark.parametrize("error", ["ENOSYS", "EOPNOTSUPP"])
def test_a_file_system_that_cannot_reserve_blocks_has_a_ring_all_the_same(tmp_path, edge, error):
    source = "train(30)\nos.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)"
    environ = {"EDGE_ALLOCATE": number(error), "EDGE_SWITCH": "/"}
    jobs = jobs_with(tmp_path, {"killed": source}, {"": environ})
    death = let_die(tmp_path / "on", jobs, LD_PRELOAD=edge, TRACEML_FLUSH_INTERVAL_S="60")[
        "killed, "
    ]
    assert death.steps >= death.closed_steps == 29


def test_a_limit_of_the_file_size_costs_one_line(tmp_path):
    source = (
        "import resource\ntrain(10)\n"
        + PAUSE
        + "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "train(300)\n" + PAUSE + "train(10)\nleaving()"
    )
    off = let_die(tmp_path / "off", [Job("limited", source)], enabled=False)["limited"]
    on = let_die(tmp_path / "on", [Job("limited", source)], TRACEML_FLUSH_INTERVAL_S="0.05")[
        "limited"
    ]
    check_same(off, on, "limited")
    (line,) = [line for line in on.own_lines if "cannot write to" in line]
    assert "training goes on" in line
    assert on.steps == 320


@pytest.fixture
def small_disk(tmp_path):
    """Mounts a tmpfs with these options; unmounts it at the end."""
    mounted = []

    def mount(options):
        disk = tmp_path / "disk"
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("mounting a small disk needs root")
        mounted.append(disk)
        return disk

    yield mount
    for disk in mounted:
        subprocess.run(["umount", str(disk)], check=True)


TRAINING = """
import torch
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(20):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
print("trained")
"""


@pytest.mark.parametrize("options", ["ro", "nr_inodes=1", "size=4k"])
def test_a_disk_with_no_room_to_begin_costs_one_line_at_most(tmp_path, small_disk, options):
    disk = small_disk(options)
    result = run(tmp_path, write(tmp_path, TRAINING), TRACEML_DIR=str(disk), **NO_BREAKER)
    assert (result.returncode, result.stdout, result.other_stderr) == (0, "trained\n", "")
    complaints = [line for line in result.own_lines if "cannot write to" in line]
    assert len(complaints) <= 1, result.own_lines
    if options == "ro":
        assert "Read-only file system" in complaints[0]
        assert "the run goes to" in complaints[0]


def test_a_real_disk_that_fills_up_keeps_its_training(tmp_path, small_disk):
    disk = small_disk("size=1200k")  # the ring takes 1 MB
    script = write(tmp_path, TRAINING.replace("range(20)", "range(8000)"))
    result = run(
        tmp_path, script, TRACEML_DIR=str(disk), TRACEML_FLUSH_INTERVAL_S="0.05", **NO_BREAKER
    )
    assert (result.returncode, result.stdout, result.other_stderr) == (0, "trained\n", "")
    assert any("No space left" in line for line in result.own_lines)
    (run_dir,) = disk.iterdir()
    shown = view(run_dir)
    assert shown.returncode == 0
    assert "Run:  " not in shown.stdout  # finished


def test_a_removed_directory_leaves_nothing_behind(tmp_path):
    source = (
        "import shutil\ntrain(10)\n" + PAUSE + "shutil.rmtree(os.environ['TRACEML_DIR'], True)\n"
        "train(10)\n" + PAUSE + "train(10)\nleaving()"
    )
    death = let_die(tmp_path, [Job("removed", source)])["removed"]
    assert (death.returncode, death.other_stderr) == (0, "")
    assert len([line for line in death.own_lines if "cannot write to" in line]) == 1
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("*.ring"))


FORKS = """
train(20)
for number in range(12):
    time.sleep(0.02 * (number % 4))
    began = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        train(3)
        sys.exit(7)
    os.write(1, b"%d " % os.waitpid(pid, 0)[1])
    train(5)
"""


@pytest.mark.slow
def test_a_fork_in_the_middle_of_a_write_neither_hangs_nor_shares_a_file(tmp_path, edge):
    environ = {"slow": {"EDGE_WRITE": "slow", "EDGE_SWITCH": "/"}}
    jobs = jobs_with(tmp_path, {"forks": FORKS}, environ)
    on = let_die(tmp_path / "on", jobs, LD_PRELOAD=edge, TRACEML_FLUSH_INTERVAL_S="0.05")[
        "forks, slow"
    ]
    assert (on.returncode, on.overdue, on.stdout) == (0, False, f"{7 << 8} " * 12)
    assert on.steps == 80
    assert {json.loads(line)["kind"] for line in on.spool_lines} >= {"header", "steps", "end"}
    assert on.summary["traceml_agent"]["problems"] == []
    runs = sorted((tmp_path / "on" / "runs").iterdir())
    assert len(runs) == 13
    for run_dir in runs:
        (spool,) = run_dir.glob("*.jsonl")
        lines = [json.loads(line) for line in spool.read_text().splitlines()]
        assert [line["kind"] for line in lines].count("header") == 1
        assert [line["kind"] for line in lines].count("end") == 1
        assert sum(line.get("count", 0) for line in lines if line["kind"] == "steps") in (3, 80)
