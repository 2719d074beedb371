"""Frameworks of another shape: what is there is watched, and what is not is said."""

import subprocess
import sys

import pytest

CODE = """
import inspect, sys, types
import torch
from traceml_agent.capture.session import SESSION
from traceml_agent.integrations import {name}

class {cls}:
{body}

module = types.ModuleType("another")
module.{cls} = {cls}
before = dict(vars({cls}))
print({name}.install(module))
changed = sorted(n for n, v in vars({cls}).items() if v is not before.get(n))
print(changed)
first = dict(vars({cls}))
print([inspect.unwrap(vars({cls})[n]) is before[n] for n in changed])
{name}.install(module)
print(dict(vars({cls})) == first)
"""
SHAPES = {
    "huggingface": (
        "Trainer",
        "    def evaluate(self): pass\n    def log(self, logs): pass\n    predict = None",
        "active, but for what this version does not have: _evaluate, predict, evaluation_loop, "
        "_save_checkpoint, save_model, _inner_training_loop",
        ["evaluate", "log"],
    ),
    "accelerate": (
        "Accelerator",
        "    def save_state(self): pass",
        "active, but for what this version does not have: save_model, log",
        ["save_state"],
    ),
    "deepspeed": (
        "DeepSpeedEngine",
        "    def backward(self, loss): pass\n    def step(self): pass",
        "active, but for what this version does not have: _take_model_step, save_checkpoint",
        ["backward"],
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_what_a_version_lacks_is_left_out_and_named_and_a_second_time_changes_nothing(
    name: str,
) -> None:
    cls, body, status, changed = SHAPES[name]
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(name=name, cls=cls, body=body)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [status, str(changed), str([True] * len(changed)), "True"]


@pytest.mark.parametrize("name", SHAPES)
def test_importing_an_integration_imports_neither_torch_nor_a_framework(name: str) -> None:
    code = f"""
import sys
import traceml_agent.integrations.{name}
loaded = ("torch", "transformers", "accelerate", "deepspeed")
print([module for module in loaded if module in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
