"""What a program may ask about its own run: while it trains, at the end, and without the agent."""

import json
import os

import pytest

from tests.e2e.harness import run, write

TRAINING = """
import json, os, sys, threading
import traceml_agent as traceml

before = [traceml.final_summary(), traceml.summary(), traceml.flush()]
idle = traceml.health()
import torch

armed = [traceml.final_summary(), traceml.summary(print_text=True)]
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)


def train(steps):
    for batch in torch.utils.data.DataLoader([torch.ones(4)] * steps, batch_size=1):
        optimizer.zero_grad()
        model(batch).sum().backward()
        optimizer.step()


"""
STATE = (
    "print(json.dumps({'before': before, 'idle': idle, 'armed': armed, 'now': now,"
    " 'params': model.weight.tolist()}))\n"
)


def told(tmp_path, body, **extra):
    result = run(tmp_path, write(tmp_path, TRAINING + body + STATE), **extra)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1]), result


MID_RUN = """
train(40)
flat, whole = traceml.summary(), traceml.final_summary()
now = [flat, whole["step_time"]["metadata"]["training_total_steps"], traceml.health()]
train(20)
"""


def test_a_run_is_summed_up_while_it_trains_and_ends_as_ever(tmp_path):
    found, result = told(tmp_path, MID_RUN)
    assert found["before"] == found["armed"] + [None] == [None] * 3
    assert found["idle"] == {"enabled": False}  # torch is not imported yet
    flat, steps, health = found["now"]
    assert 38 <= steps <= 40  # the last one is closed by the next request for a batch
    assert flat["traceml/steps"] == steps
    assert flat["traceml/step_time_ms"] > 0
    assert 0 <= flat["traceml/input_wait_share"] <= 1
    assert set(map(type, flat.values())) <= {str, int, float}
    assert flat["traceml/diagnosis"].isupper()
    assert health["recording"] and health["steps"] == steps
    assert health["patches"]["optimizer"] == "active"
    assert (health["faults"], health["lost"], health["writer"]) == ({}, {}, "ok")
    assert os.path.dirname(health["spool"]) == health["run_dir"] == str(result.run_dir)
    assert 0 < health["spool_bytes"] <= os.path.getsize(health["spool"])
    summary = result.summary
    assert summary["step_time"]["metadata"]["training_total_steps"] == 60
    assert summary["run_context"]["run"]["status"] == "finished"


def test_without_the_agent_every_call_is_there_and_does_nothing(tmp_path):
    body = "train(60)\nnow = [traceml.summary(), traceml.final_summary(), traceml.health()]\n"
    off, _ = told(tmp_path, body, enabled=False)
    assert off["now"] == [None, None, {"enabled": False}]
    assert off["params"] == told(tmp_path, body)[0]["params"]


ELSEWHERE = """
train(30)
now = []
thread = threading.Thread(target=lambda: now.append(traceml.summary()["traceml/steps"]))
thread.start()
thread.join()
pid = os.fork()
if not pid:
    os._exit(0 if (traceml.summary(), traceml.flush()) == (None, None) else 3)
now.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
train(10)
"""


def test_another_thread_may_ask_and_a_forked_child_has_no_run(tmp_path):
    found, result = told(tmp_path, ELSEWHERE)
    steps, code = found["now"]
    assert (28 <= steps <= 30, code) == (True, 0)
    assert result.summary["step_time"]["metadata"]["training_total_steps"] == 40


def test_after_the_end_the_summary_is_still_there(tmp_path):
    source = (
        "import atexit\nimport traceml_agent as traceml\n"
        "def ask():\n"
        "    found = traceml.final_summary()\n"
        "    print(found['run_context']['run']['status'], traceml.health()['recording'])\n"
        "atexit.register(ask)  # before torch is imported: runs after the hook of the agent\n"
        + TRAINING
        + "train(30)\n"
    )
    result = run(tmp_path, write(tmp_path, source))
    assert (result.returncode, result.stdout) == (0, "finished False\n"), result.stderr


def test_the_text_is_printed_when_asked_for(tmp_path):
    _, result = told(tmp_path, "train(40)\nnow = traceml.summary(print_text=True)\n")
    assert "Steps" in result.stdout and "residual" in result.stdout


def test_a_directory_that_is_gone_is_an_error_that_says_so(tmp_path):
    body = (
        "import shutil\ntrain(30)\nshutil.rmtree(traceml.health()['run_dir'])\n"
        "try:\n    now = traceml.final_summary()\n"
        "except Exception as error:\n    now = [type(error).__name__, str(error)]\n"
    )
    found, _ = told(tmp_path, body)
    name, words = found["now"]
    assert name in ("NoRun", "NoSpools")
    assert "run" in words


@pytest.mark.parametrize("name", ["final_summary", "summary", "flush", "health"])
def test_the_import_is_light_and_every_name_is_documented(tmp_path, name):
    source = (
        "import sys\nimport traceml_agent\n"
        "assert 'traceml_agent.api' not in sys.modules\n"
        f"call = traceml_agent.{name}\n"
        "heavy = {'torch', 'wrapt', 'orjson', 'psutil', 'numpy'} & set(sys.modules)\n"
        f"print(sorted(heavy), {name!r} in dir(traceml_agent), bool(call.__doc__))\n"
    )
    result = run(tmp_path, write(tmp_path, source), enabled=False)
    assert result.stdout == "[] True True\n", result.stderr


def test_an_unknown_name_is_an_attribute_error():
    import traceml_agent

    with pytest.raises(AttributeError, match="no_such_thing"):
        traceml_agent.no_such_thing  # noqa: B018
