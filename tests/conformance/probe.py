"""What a script of the corpus tells about its own process. Imported by the scripts, by name."""

import ast
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading

_ENVIRONMENT = "import os; print(sorted(os.environ.items()))"


def before():
    """Prints what is there before the first step: threads, handlers, descriptors."""
    print("threads", threading.active_count(), len(os.listdir("/proc/self/task")))
    print("handlers", handlers())
    print("descriptors", descriptors())


def after(*models):
    """Prints what training left: parameters, handlers, descriptors, environment, hooks."""
    for model in models:
        print("parameters", digest(model))
    print("handlers", handlers())
    print("descriptors", descriptors())
    child = subprocess.run(
        [sys.executable, "-S", "-c", _ENVIRONMENT], capture_output=True, text=True, check=False
    )
    print("environment of a child", without_own(child.stdout), child.stderr)
    hooks = (sys.excepthook, sys.unraisablehook, threading.excepthook, sys.displayhook)
    print("hooks", [hook.__module__ for hook in hooks], sys.gettrace(), sys.getprofile())


def without_own(printed):
    """The environment of a child without the variables that this process was started with to turn
    the agent on; others of that kind would be put there by the agent."""
    with open("/proc/self/environ") as file:
        begun = {line.partition("=")[0] for line in file.read().split("\0")}
    own = {name for name in begun if name.startswith("TRACEML_")}
    return [item for item in ast.literal_eval(printed) if item[0] not in own]


def digest(model):
    """A hash over the bytes of all parameters and buffers."""
    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        sha.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha.hexdigest()


def handlers():
    """The handler of every signal that can have one."""
    catchable = sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
    return [(int(number), describe(signal.getsignal(number))) for number in catchable]


def describe(handler):
    """A handler without its address."""
    return getattr(handler, "__qualname__", str(handler))


def descriptors():
    """What is open, aside from the agent's files: of its run, of the kernel's figures, memory
    shared with workers that are no forks, and a module that its thread is importing."""
    own = re.compile(
        r"/runs/|^/memfd:traceml-|^/proc/(\d+/|pressure/|stat$|meminfo$)|^/sys/fs/cgroup/"
        r"|/traceml_agent/.*\.pyc?$"
    )
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the descriptor of the listing itself
        if not own.search(target):
            found.append(re.sub(r"\[\d+\]|_\d+_\d+_\d+", "", target))
    # How many pipes there are is a matter of when a queue is collected.
    return sorted([name for name in found if name != "pipe:"] + ["pipe:"] * ("pipe:" in found))
