"""Each way to die: exit code, traceback and output are the user's, and the cause is named."""

import signal
from dataclasses import dataclass

import pytest

from tests.deaths.warm import Death, Job, let_die, view

MUTEX = """
libc = ctypes.PyDLL(None)  # PyDLL: the GIL stays held, no Python handler could run
mutex = ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(mutex)
"""
IN_C = "os.kill(os.getpid(), signal.SIGTERM)\n"
WAIT = "\ntime.sleep(60)"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a training ends, and what its summary has to say about that."""

    source: str
    status: str
    exit_code: int | None
    exception: str | None = None  # what the cause begins with
    stack: str | None = None  # a line of the script that the stack must name
    signals: tuple[tuple[str, float, int], ...] = ()
    steps: int = 9  # at least


ENDINGS = {
    "sigquit": Ending("train(10)\nos.kill(os.getpid(), signal.SIGQUIT)" + WAIT, "killed", None),
    "sigint in the loop": Ending(
        "try:\n    train(10**9)\nexcept KeyboardInterrupt:\n    os._exit(4)",
        "failed", 4, signals=(("SIGINT", 0.05, 10),),
    ),
    "sigint": Ending(
        "train(10)\ntime.sleep(60)", "interrupted", 130, "KeyboardInterrupt",
        signals=(("SIGINT", 0.3, 8),),
    ),
    "sigterm in python": Ending(
        "def wait():\n    while True:\n        pass\ntrain(10)\nwait()",
        "terminated", None, "SIGTERM", "in wait", signals=(("SIGTERM", 0.3, 8),),
    ),
    "sigterm in a mutex": Ending(
        MUTEX + "def stuck():\n    libc.pthread_mutex_lock(mutex)\ntrain(10)\nstuck()",
        "terminated", None, "SIGTERM", "in stuck", signals=(("SIGTERM", 0.3, 8),),
    ),
    "sigterm in a long product": Ending(
        "def multiply():\n    large = torch.ones(6000, 6000)\n"
        "    for _ in range(1000):\n        large @ large\n"
        "train(10)\nmultiply()",
        "terminated", None, "SIGTERM", "in multiply", signals=(("SIGTERM", 0.5, 8),),
    ),
    "sigterm in a copy": Ending(
        "data = bytearray(1 << 20)\n"
        "def copy():\n    while True:\n        ctypes.memmove((ctypes.c_char * len(data))"
        ".from_buffer(data), bytes(len(data)), len(data))\ntrain(10)\ncopy()",
        "terminated", None, "SIGTERM", "in copy", signals=(("SIGTERM", 0.3, 8),),
    ),
    "os._exit": Ending("train(10)\nos._exit(7)", "failed", 7),
    "abort": Ending(
        "def give_up():\n    os.abort()\ntrain(10)\ngive_up()",
        "failed", None, "Fatal Python error: Aborted", "in give_up",
    ),
    "segfault": Ending(
        "def crash():\n    ctypes.string_at(0)\ntrain(10)\ncrash()",
        "failed", None, "Fatal Python error: Segmentation fault", "in crash",
    ),
    "bus error": Ending(
        "def crash():\n    os.kill(os.getpid(), signal.SIGBUS)\ntrain(10)\ncrash()",
        "failed", None, "Fatal Python error: Bus error", "in crash",
    ),
    "segfault in a thread": Ending(
        "def crash():\n    ctypes.string_at(0)\ntrain(10)\n"
        "threading.Thread(target=crash).start()" + WAIT,
        "failed", None, "Fatal Python error: Segmentation fault", "in crash",
    ),
    "memory error": Ending(
        "import resource\ntrain(10)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))\n"
        "hoard = []\nwhile True:\n    hoard.append(bytearray(1 << 30))",
        "failed", 1, "MemoryError", "train.py",
    ),
    "torch out of memory": Ending(
        "train(10)\ntorch.empty(1 << 50)", "failed", 1, "RuntimeError", "train.py",
    ),
    "exception in a thread": Ending(
        "def fail():\n    raise ValueError('in a thread')\ntrain(5)\n"
        "thread = threading.Thread(target=fail)\nthread.start()\nthread.join()\ntrain(5)",
        "finished", 0,
    ),
    "a thread goes on": Ending(
        "def linger():\n    time.sleep(0.4)\n    os.write(1, b'bye')\ntrain(10)\n"
        "threading.Thread(target=linger).start()",
        "finished", 0,
    ),
    "a thread goes on after an error": Ending(
        "def linger():\n    time.sleep(0.4)\n    os.write(1, b'bye')\ntrain(10)\n"
        "threading.Thread(target=linger).start()\nraise ValueError('main is over')",
        "failed", 1, "ValueError: main is over", "train.py",
    ),
    "training goes on in a thread": Ending(
        "thread = threading.Thread(target=lambda: train(30))\nthread.start()",
        "finished", 0, steps=29,
    ),
    "exec": Ending(
        "train(10)\nos.execv('/bin/sh', ['sh', '-c', 'echo second life; exit 6'])",
        "finished", None, "replaced by another program (exec)", steps=10,
    ),
    "exec by another name": Ending(
        "train(10)\nos.execlp('sh', 'sh', '-c', 'echo second life')",
        "finished", None, "replaced by another program (exec)", steps=10,
    ),
    "exec that fails at the end": Ending(
        "train(10)\nos.execv('/nowhere', ['nowhere'])",
        "failed", 1, "FileNotFoundError", "train.py", steps=10,
    ),
    "exec that fails, then killed": Ending(
        "train(5)\ntry:\n    os.execv('/nowhere', ['nowhere'])\n"
        "except FileNotFoundError:\n    train(5)\nos.kill(os.getpid(), signal.SIGKILL)" + WAIT,
        "killed", None,
    ),
    "exec that fails": Ending(
        "train(5)\ntry:\n    os.execv('/nowhere', ['nowhere'])\n"
        "except FileNotFoundError:\n    train(5)",
        "finished", 0,
    ),
    "a fork before training": Ending(
        "pid = os.fork()\nif pid == 0:\n    os._exit(3)\nos.waitpid(pid, 0)\ntrain(10)",
        "finished", 0,
    ),
    # Python 3.12 and later warn of a fork when there is a second thread, which is then ours.
    "children that exit": Ending(
        "import warnings\nwarnings.simplefilter('ignore', DeprecationWarning)\ntrain(5)\n"
        "for leave in (lambda: os._exit(3), lambda: sys.exit(4), lambda: 1 / 0,\n"
        "              lambda: os.kill(os.getpid(), 9), lambda: os.kill(os.getpid(), 15)):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n        leave()\n"
        "    os.write(1, b'%d ' % os.waitpid(pid, 0)[1])\n"
        "train(5)",
        "finished", 0,
    ),
    "exception with a busy thread pool": Ending(
        "from concurrent.futures import ThreadPoolExecutor, wait\n"
        "pool = ThreadPoolExecutor(2)\npool.submit(time.sleep, 0.5)\n"
        "train(10)\nfuture = pool.submit(lambda: 1 / 0)\nwait([future])\nfuture.result()",
        "failed", 1, "ZeroDivisionError", "train.py",
    ),
}  # fmt: skip

SIGNALS = {
    "sigquit": signal.SIGQUIT, "sigint": signal.SIGINT,
    "abort": signal.SIGABRT, "segfault": signal.SIGSEGV, "bus error": signal.SIGBUS,
    "segfault in a thread": signal.SIGSEGV,
}  # fmt: skip


@pytest.fixture(scope="module")
def deaths(tmp_path_factory):
    """Each ending without the agent, and with it."""
    jobs = [Job(name, ending.source, ending.signals) for name, ending in ENDINGS.items()]
    return [
        let_die(tmp_path_factory.mktemp(name), jobs, enabled=name == "on", width=3)
        for name in ("off", "on")
    ]


def comparable(text: str) -> str:
    """Directories have other names in each run."""
    return text.replace("/off0/", "/on0/")


@pytest.mark.slow
@pytest.mark.parametrize("name", ENDINGS)
def test_the_death_is_the_same_and_its_cause_is_named(deaths, name):
    ending = ENDINGS[name]
    off, on = (found[name] for found in deaths)
    assert not on.overdue
    assert on.returncode == off.returncode
    assert on.returncode == -SIGNALS.get(name, -on.returncode)
    assert on.stdout == off.stdout
    assert comparable(on.other_stderr) == comparable(off.other_stderr)
    check_summary(on, ending)


def check_summary(death: Death, ending: Ending) -> None:
    """The cause of death, the last step and the stack."""
    how = death.summary["run_context"]["exit"]["0"]
    assert (how["status"], how["exit_code"]) == (ending.status, ending.exit_code)
    assert death.summary["run_context"]["run"]["status"] == ending.status
    assert how["last_step"] == death.steps >= max(ending.steps, death.closed_steps)
    if ending.exception is not None:
        assert how["exception"].startswith(ending.exception)
    if ending.stack is not None:
        assert ending.stack in how["stack"]
    assert death.summary["traceml_agent"]["dropped"] == {}


@pytest.mark.slow
def test_view_shows_each_of_them(deaths):
    for name, death in deaths[1].items():
        shown = view(death.run_dir)
        assert (shown.returncode, shown.stderr) == (0, ""), name
        if ENDINGS[name].status != "finished":
            assert f"Run:  {ENDINGS[name].status}" in shown.stdout, name
