"""Deaths around workers and forks: of a worker, of the rank above it, of children that trained."""

import os
import re
import signal
import subprocess

import pytest

from tests.deaths.warm import NO_BREAKER, Job, let_die, view
from tests.e2e.harness import run, write

DATASET = """
class Deadly:
    def __init__(self, die):
        self.die = die
    def __len__(self):
        return 60
    def __getitem__(self, index):
        if index == 30:
            self.die()
        return torch.ones(8)

def loader(die, **settings):
    return DataLoader(Deadly(die), batch_size=2, num_workers=1, **settings)

"""
WORKER_DEATHS = {
    "sigterm": "lambda: os.kill(os.getpid(), signal.SIGTERM)",
    "sigkill": "lambda: os.kill(os.getpid(), signal.SIGKILL)",
    "segfault": "lambda: ctypes.string_at(0)",
    "sys.exit": "lambda: sys.exit(3)",
    "os._exit": "lambda: os._exit(3)",
    "exception": "lambda: 1 / 0",
}


@pytest.mark.slow
def test_the_death_of_a_loader_worker_is_the_users_error_and_nothing_else(tmp_path):
    jobs = [Job(name, DATASET + f"train(0, loader({die}))") for name, die in WORKER_DEATHS.items()]
    # The sockets of multiprocessing lie there, and their paths have a limit.
    off = let_die(tmp_path / "off", jobs, enabled=False, TMPDIR="/tmp")
    on = let_die(tmp_path / "on", jobs, TMPDIR="/tmp")
    for name, death in on.items():
        assert not death.overdue, name
        assert death.returncode == off[name].returncode == 1, name
        # Where the news of a signal finds torch, and so its error, differs from run to run.
        if name == "exception":
            assert error_of(death.other_stderr) == error_of(off[name].other_stderr)
        assert not shows_agent(death.other_stderr), name
        summary = death.summary
        how = summary["run_context"]["exit"]["0"]
        assert (how["status"], how["exit_code"]) == ("failed", 1), name
        assert "train.py" in how["stack"]
        assert how["last_step"] >= 13, name
        # A worker inherits the handlers of its parent: what it writes must not land there.
        (stack,) = death.run_dir.glob("*.stack")
        assert stack.read_bytes() == b"", name
        assert len(list(death.run_dir.glob("*.jsonl"))) == 1
        assert view(death.run_dir).returncode == 0


HANDLER = "in handler\n    _error_if_any_worker_fails()\n"
"""The end of an error that torch raises where the news of a worker's death finds the program: that
may be within the agent, whose frames are then among the calls, as those of any library."""


def shows_agent(text):
    """Whether frames or lines of the agent are in what a program wrote, but for such errors."""
    return "traceml" in text and HANDLER not in text


def error_of(text):
    """The lines of a traceback; directories differ between any two runs."""
    return re.sub(r"/o(n|ff)/", "/", text).strip().splitlines()


def test_a_rank_that_is_killed_is_dead_while_its_workers_live(tmp_path):
    source = DATASET + (
        "train(5)  # the workers are forked from a process that holds its lock\n"
        "batches = iter(loader(lambda: None, persistent_workers=True))\n"
        "for _ in range(10):\n    train(1, [next(batches)])\n"
        "with open('workers', 'w') as file:\n"
        "    file.write(' '.join(str(worker.pid) for worker in batches._workers))\n"
        "for worker in batches._workers:\n"
        "    os.kill(worker.pid, signal.SIGSTOP)  # else it notices, and ends too\n"
        "os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(60)\n"
    )
    death = let_die(tmp_path, [Job("rank", source)])["rank"]
    workers = [int(pid) for pid in (tmp_path / "rank" / "workers").read_text().split()]
    try:
        for pid in workers:
            os.kill(pid, 0)  # raises if it is gone
        how = death.summary["run_context"]["exit"]["0"]
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
    assert workers
    assert how["status"] == "killed"
    assert how["last_step"] >= 9


CHILDREN = """
train(5)
for number in range(8):
    pid = os.fork()
    if pid == 0:
        if number % 2:
            train(3)  # a training of its own
        [lambda: None, sys.exit, lambda: sys.exit(5), lambda: os._exit(0),
         lambda: os.kill(os.getpid(), signal.SIGTERM), lambda: ctypes.string_at(0),
         lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: 1 / 0][number]()
        break
    os.write(1, b"%d " % os.waitpid(pid, 0)[1])
else:
    train(5)
"""


def test_children_of_a_training_leave_its_files_alone(tmp_path):
    off = let_die(tmp_path / "off", [Job("parent", CHILDREN)], enabled=False)["parent"]
    on = let_die(tmp_path / "on", [Job("parent", CHILDREN)])["parent"]
    assert (on.returncode, on.stdout) == (off.returncode, off.stdout)
    how = on.summary["run_context"]["exit"]["0"]
    assert (how["status"], how["exit_code"], on.steps) == ("finished", 0, 10)
    assert [path.read_bytes() for path in on.run_dir.glob("*.stack")] == [b""]
    assert sum('"kind":"end"' in line for line in on.spool_lines) == 1
    runs = sorted((tmp_path / "on" / "runs").iterdir())
    assert len(runs) == 1 + 4  # those that trained


HANGING = "import atexit\natexit.register(time.sleep, 60)\ntrain(10)"


def test_an_exit_hook_that_hangs_costs_no_closed_step(tmp_path):
    job = Job("hangs", HANGING, (("SIGKILL", 0.3, 8),))
    death = let_die(tmp_path, [job])["hangs"]
    assert death.returncode == -9
    assert death.steps >= 9
    assert death.summary["run_context"]["run"]["status"] == "killed"


def test_an_exit_hook_that_hangs_after_ours_finds_the_summary_written(tmp_path):
    script = write(
        tmp_path,
        "import atexit, os, signal\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGKILL))  # ours comes before\n"
        "import torch\n"
        "model = torch.nn.Linear(2, 1)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n"
        "for _ in range(10):\n"
        "    model(torch.ones(1, 2)).sum().backward()\n    optimizer.step()\n",
    )
    result = run(tmp_path, script, **NO_BREAKER)
    assert result.returncode == -9
    assert result.summary["run_context"]["run"]["status"] == "finished"


CRASHES = {
    "before": "import faulthandler\nfaulthandler.enable()\ntrain(10)\nctypes.string_at(0)",
    "after": "import faulthandler\ntrain(10)\nfaulthandler.enable()\nctypes.string_at(0)",
    "disabled": "import faulthandler\ntrain(10)\nfaulthandler.disable()\nctypes.string_at(0)",
}


def test_a_faulthandler_of_the_user_is_left_alone(tmp_path):
    jobs = [Job(name, source) for name, source in CRASHES.items()]
    off = let_die(tmp_path / "off", jobs, enabled=False)
    on = let_die(tmp_path / "on", jobs)
    for name, death in on.items():
        assert death.returncode == off[name].returncode, name
        assert main_thread(death.other_stderr) == main_thread(off[name].other_stderr), name
        assert death.steps >= 9
        assert view(death.run_dir).returncode == 0
    how = on["before"].summary["run_context"]["exit"]["0"]
    assert how["status"] == "killed"
    assert "crash" in how["exception"]


def main_thread(text):
    """The dump without other threads (one that begins has no frame yet) and modules, and without
    addresses."""
    others = ("Extension modules", "Thread 0x")
    kept = [part for part in text.split("\n\n") if not part.startswith(others)]
    return re.sub(r"/o(n|ff)/", "/", re.sub(r"0x[0-9a-f]+", "0x", "\n\n".join(kept)))


GROUPS = "/sys/fs/cgroup/memory"
LIMIT_BYTES = 256 << 20


@pytest.fixture
def memory_group():
    """A control group with little memory."""
    group = f"{GROUPS}/traceml-test-{os.getpid()}"
    try:
        os.mkdir(group)
    except OSError as error:
        pytest.skip(f"no memory control group of version 1 can be made here: {error}")
    try:
        with open(f"{group}/memory.limit_in_bytes", "w") as file:
            file.write(str(LIMIT_BYTES))
        yield group
    finally:
        subprocess.run(["rmdir", group], check=False)


def test_a_process_that_the_kernel_kills_for_memory_loses_no_step(tmp_path, memory_group):
    source = (
        f"with open('{memory_group}/cgroup.procs', 'w') as file:\n"
        "    file.write(str(os.getpid()))\n"
        "hoard = []\n"
        "while True:\n    train(1)\n    hoard.append(bytearray(1 << 20))\n    time.sleep(0.002)"
    )
    death = let_die(tmp_path, [Job("oom", source)], TRACEML_SAMPLE_INTERVAL_S="0.05")["oom"]
    assert (death.returncode, death.overdue) == (-9, False)
    assert death.closed_steps <= death.steps <= death.closed_steps + 1
    how = death.summary["run_context"]["exit"]["0"]
    assert how["status"] == "killed"
    assert "out of memory" in how["exception"]
    assert view(death.run_dir).returncode == 0
