"""Imports torch once and forks a training for each job of a plan, which then dies in its own way.

Run as a program: `python warm_parent.py PLAN.json`. A fork starts armed anew, so each child is a
process of its own to the agent, at a hundredth of the price of a fresh interpreter. What became of
the children is written to `outcomes.json` beside the plan.
"""

import atexit
import gc
import json
import os
import random
import signal
import sys
import time

parent = os.getpid()


def note_the_end_of_exit_hooks():
    """Registered before torch is imported, so that it runs after the hook of the agent."""
    if os.getpid() != parent:
        with open("past_hooks", "w") as file:
            file.write(str(time.monotonic()))


atexit.register(note_the_end_of_exit_hooks)

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402, F401  # also for the children

torch.set_num_threads(1)
torch.manual_seed(0)
random.seed(0)
# What torch imports at the first use of an optimizer takes a second: not in every child.
torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1).zero_grad()
gc.freeze()  # a collection in a child would copy every page of the parent


def start(job, directory):
    """Forks; in the child goes on as the training. Returns its process id in the parent."""
    pid = os.fork()
    if pid:
        return pid
    os.chdir(directory)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, descriptor, inheritable=True)
        os.close(file)
    os.environ.update(job["environ"])
    return 0


def noted_steps(directory):
    """The last number that the training wrote down."""
    try:
        with open(f"{directory}/steps", "rb") as notes:
            notes.seek(max(0, notes.seek(0, os.SEEK_END) - 40))
            return int(notes.read().split(b"\n")[-2])
    except (OSError, IndexError, ValueError):
        return -1


def send_due_signals(pid, job):
    """Each signal is due some seconds after so many steps were noted; -1: after the start."""
    while job["signals"]:
        name, seconds, steps = job["signals"][0]
        now = time.monotonic()
        if steps not in job["since"] and noted_steps(job["directory"]) >= steps:
            job["since"][steps] = now
        if now < job["since"].get(steps, now + 1) + seconds:
            return
        del job["signals"][0]
        os.kill(pid, getattr(signal, name))


def wait_for(jobs):
    """The next child that ended and its wait status; one beyond its limit is killed."""
    while True:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            return pid, status
        for child, job in jobs.items():
            send_due_signals(child, job)
            if time.monotonic() > job["since"][-1] + job["limit_s"] and not job["overdue"]:
                job["overdue"] = True
                os.kill(child, signal.SIGKILL)
        time.sleep(0.002)


with open(sys.argv[1]) as plan_file:
    plan = json.load(plan_file)
here = os.path.dirname(os.path.abspath(sys.argv[1]))
jobs, running, outcomes = list(plan["jobs"]), {}, {}
code = None
while jobs or running:
    while jobs and len(running) < plan["width"]:
        job = jobs.pop(0)
        directory = os.path.join(here, job["name"])
        os.makedirs(directory, exist_ok=True)
        pid = start(job, directory)
        if pid == 0:
            with open(f"{directory}/train.py") as source:
                code = compile(source.read(), f"{directory}/train.py", "exec")
            break
        running[pid] = job | {
            "directory": directory,
            "since": {-1: time.monotonic()},
            "overdue": False,
        }
    if code is not None:
        break
    pid, status = wait_for(running)
    if pid in running:
        job = running.pop(pid)
        outcomes[job["name"]] = {
            "pid": pid,
            "returncode": os.waitstatus_to_exitcode(status),
            "overdue": job["overdue"],
            "ended_s": time.monotonic(),
        }
if code is not None:
    exec(code, {"__name__": "__main__"})
else:
    with open(f"{here}/outcomes.json", "w") as out:
        json.dump(outcomes, out)
