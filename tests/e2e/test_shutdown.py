"""`shutdown`: the recording ends where the program says so, once, and the program goes on."""

import json

import pytest

from tests.e2e.harness import run, write

HEAD = """
import atexit, json, os, sys, threading
import torch
import traceml_agent as traceml

torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

def train(steps):
    for batch in torch.utils.data.DataLoader([torch.ones(4)] * steps, batch_size=1):
        with traceml.trace_step(model):
            optimizer.zero_grad()
            model(batch).sum().backward()
            optimizer.step()

def files():
    directory = traceml.health()["run_dir"]
    return {e.name: e.stat().st_size for e in os.scandir(directory) if e.name != "fold.lock"}
"""

ENDED_EARLY = """
train(20)
traceml.shutdown()
before = files()
opened = open("mine.txt", "wb")  # may get the number of the closed spool
train(20)
traceml.flush()
traceml.shutdown()
threads = [threading.Thread(target=traceml.shutdown) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
pid = os.fork()
if pid == 0:
    train(3)
    traceml.shutdown()
    sys.exit(0)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
torch.save(model.state_dict(), "model.pt")
traceml.init()  # nothing begins anew
loop = traceml.wrap_dataloader_fetch([1])
opened.close()
health = traceml.health()
print(json.dumps({
    "status": traceml.final_summary()["run_context"]["run"]["status"],
    "steps": traceml.summary()["traceml/steps"], "health": health, "code": code,
    "same": files() == before, "mine": os.path.getsize("mine.txt"), "list": type(loop) is list,
}))
atexit.register(traceml.shutdown)
sys.exit(3)
"""


def test_after_it_nothing_is_recorded_and_nothing_is_written(tmp_path):
    result = run(tmp_path, write(tmp_path, HEAD + ENDED_EARLY), TRACEML_TEST_RAISE="1")
    assert result.returncode == 3, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert (told["steps"], told["code"], told["same"], told["mine"], told["list"]) == (
        20, 0, True, 0, True,
    )  # fmt: skip
    health = told["health"]
    assert (health["ended"], health["recording"], health["writer"]) == (True, False, "closed")
    assert (health["faults"], health["lost"], health["steps"]) == ({}, {}, 20)
    (spool,) = result.spools
    assert (spool.end.status, spool.end.exit_code, spool.end.steps) == ("finished", None, 20)
    assert told["status"] == "finished"
    assert result.stderr.count("traceml: Run  ") <= 1  # not printed again at exit


HOW = {
    "in a handler": (
        "try:\n    train(5)\n    raise KeyError('k')\nfinally:\n    traceml.shutdown()\n",
        1,
        ("failed", 1),
    ),
    "at exit, after sys.exit": ("atexit.register(traceml.shutdown)\ntrain(5)\nsys.exit(4)\n", 4,
                                ("failed", 4)),
    "in a thread, at the end of a loop": (
        "train(5)\nthread = threading.Thread(target=traceml.shutdown)\nthread.start()\n"
        "thread.join()\n", 0, ("finished", None)),
    "before any training": ("traceml.shutdown()\ntrain(5)\n", 0, None),
}  # fmt: skip


@pytest.mark.parametrize("name", HOW)
def test_it_ends_as_the_program_stands_at_that_moment(tmp_path, name):
    body, code, expected = HOW[name]
    result = run(tmp_path, write(tmp_path, HEAD + body))
    assert result.returncode == code, result.stderr
    if expected is None:
        assert result.run_dirs == []
        return
    (spool,) = result.spools
    assert (spool.end.status, spool.end.exit_code, spool.end.steps) == (*expected, 5)


def test_before_torch_is_imported_and_without_the_agent_it_is_harmless(tmp_path):
    source = "import sys, traceml_agent as t\nt.shutdown()\nprint(len(sys.meta_path))\n"
    off = run(tmp_path, write(tmp_path, source), enabled=False)
    on = run(tmp_path, write(tmp_path, source))
    assert on.stdout == off.stdout  # torch is not waited for any more
    assert (on.stderr, off.stderr) == ("", "")
