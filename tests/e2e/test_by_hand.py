"""`init` in its modes and `wrap_...`: what is timed, what is refused, and what stays as it was."""

import json

import pytest

from tests.e2e.harness import HERE, run, write

SCRIPT = str(HERE / "manual_training.py")
STEPS, BATCH = 24, 4
HAND = ("dataloader", "transfer", "forward", "backward", "optimizer")


def manual(tmp_path, when, enabled, **extra):
    arguments = json.dumps({"mode": "manual", "dir": str(tmp_path / "runs"), "run_name": "mine"})
    result = run(tmp_path, SCRIPT, arguments, when, enabled=enabled, **extra)
    assert result.returncode == 0, result.stderr
    facts, _, digest = result.stdout.splitlines()[-1].rpartition(" ")
    return json.loads(facts), digest, result


@pytest.fixture(scope="module")
def off(tmp_path_factory):
    """Forbidden by the operator: `init` and the wrappers do nothing."""
    facts, digest, result = manual(
        tmp_path_factory.mktemp("off"), "before", False, TRACEML_ENABLE="0"
    )
    assert (result.run_dirs, result.own_lines, facts["health"]["enabled"]) == ([], [], False)
    return facts, digest


@pytest.mark.parametrize(("when", "enabled"), [("before", False), ("after", True)])
def test_what_is_wrapped_is_timed_and_stays_what_it_was(tmp_path, off, when, enabled):
    facts, digest, result = manual(tmp_path, when, enabled, TRACEML_TEST_RAISE="1")
    health = facts.pop("health")
    assert facts == {name: value for name, value in off[0].items() if name != "health"}
    assert digest == off[1]
    assert facts["bytes"] is facts["bytes of the model"] is False
    assert len(facts["errors"]) == 5
    assert (health["mode"], health["steps"]) == ("manual", STEPS)
    assert {health["patches"][name] for name in HAND} == {"active"}
    (spool,) = result.spools
    assert (spool.header.run_name, spool.faults) == ("mine", [])
    end = spool.end
    # The engine of its own has stepped once, in the first step.
    assert (end.steps, end.micro_batches, end.updates) == (STEPS, STEPS, STEPS + 1)
    assert end.samples == STEPS * BATCH
    timed = ("input_wait", "h2d", "forward", "backward", "optimizer")
    assert all(end.phase_ns[phase] > 0 for phase in timed)


MODES = """
import json, torch
before = torch.nn.Module.__call__
import traceml_agent as traceml
traceml.init(**json.loads({arguments!r}))
from traceml_agent import trace_step
torch.manual_seed(0)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
def refused(call, *given):
    try:
        call(*given)
    except RuntimeError as error:
        return str(error)
told = {{}}
for batch in torch.utils.data.DataLoader(torch.ones(40, 4), batch_size=4):
    with trace_step(model):
        optimizer.zero_grad()
        loss = model(batch).sum()
        loss.backward()
        optimizer.step()
loader = torch.utils.data.DataLoader(torch.ones(2, 4))
told["refused"] = [
    refused(traceml.wrap_dataloader_fetch, loader), refused(traceml.wrap_dataloader_fetch, [1]),
    refused(traceml.wrap_forward, model), refused(traceml.wrap_backward, loss),
    refused(traceml.wrap_optimizer, optimizer), refused(traceml.wrap_h2d, loss),
]
told["again"] = refused(lambda: traceml.init(mode="auto", run_name="other"))
told["call"] = torch.nn.Module.__call__.__code__.co_filename
told["health"] = traceml.health()
print(json.dumps(told))
"""


@pytest.mark.parametrize(
    ("arguments", "enabled", "by_hand"),
    [
        ({"mode": "manual"}, True, (0, 2, 3, 4, 5)),
        ({"mode": "selective", "patch_backward": True, "patch_h2d": False}, False, (0, 2, 4, 5)),
        ({}, False, ()),
    ],
)
def test_what_a_mode_leaves_out_is_not_timed_and_the_rest_is_not_wrapped(
    tmp_path, arguments, enabled, by_hand
):
    given = json.dumps(arguments | {"dir": str(tmp_path / "elsewhere")})
    source = MODES.format(arguments=given)
    # The variable counts before the argument.
    where = {"TRACEML_DIR": str(tmp_path / "runs")}
    result = run(tmp_path, write(tmp_path, source), enabled=enabled, **where)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    refused = told["refused"]
    assert [number for number in (0, 2, 3, 4, 5) if refused[number] is None] == list(by_hand)
    assert refused[1] is None  # a list is no DataLoader: nobody else times it
    mode = arguments.get("mode", "auto")
    assert all(f"mode='{mode}'" in words for words in refused if words)
    assert "call it once" in told["again"]
    assert told["health"]["mode"] == mode
    (spool,) = result.spools
    assert spool.end.steps == 10
    automatic = {"auto": {*HAND}, "manual": set(), "selective": {"backward"}}[mode]
    phases = dict(zip(HAND, ("input_wait", "h2d", "forward", "backward", "optimizer"), strict=True))
    timed = {name for name in HAND if spool.end.phase_ns[phases[name]] > 0}
    assert timed == automatic - {"transfer"}
    if mode != "auto":  # modules pay nothing
        assert "traceml_agent" not in told["call"]
    assert not (tmp_path / "elsewhere").exists()


WRONG = """
import sys
import traceml_agent as traceml
def words(**arguments):
    try:
        traceml.init(**arguments)
    except ValueError as error:
        return str(error)
print(words(mode="custom"))
print(words(mode="manual", patch_forward=True))
print(words(patch_h2d=False))
print(words(mode="selective"))
print(words(mode="selective", patch_h2d=False))
print(words(mode="selective", patch_h2d=1))
print(words(sample_intervall_s=1))
print(words(sample_interval_s=0))
print(words(run_name=""))
print(sorted({"torch", "wrapt"} & set(sys.modules)), "traceml_agent.startup" in sys.modules)
traceml.init(mode="manual", stack_hz=0)
traceml.init(mode="manual", stack_hz=0.0)
try:
    traceml.init()
except RuntimeError as error:
    print(error)
print("torch" in sys.modules, "traceml_agent.startup" in sys.modules)
"""


def test_a_wrong_call_of_init_raises_before_anything_is_patched(tmp_path):
    result = run(tmp_path, write(tmp_path, WRONG), enabled=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "mode is one of auto, manual, selective, not 'custom'",
        "patch_forward: only with mode='selective', not with mode='manual'",
        "patch_h2d: only with mode='selective', not with mode='auto'",
        "mode='selective' needs at least one of patch_dataloader, patch_forward, patch_backward, "
        "patch_h2d to be True; to time nothing automatically use mode='manual'",
        "mode='selective' needs at least one of patch_dataloader, patch_forward, patch_backward, "
        "patch_h2d to be True; to time nothing automatically use mode='manual'",
        "patch_h2d is True or False, not 1",
        "init: no such setting: 'sample_intervall_s'; `traceml-agent config` lists them",
        "init: sample_interval_s=0 is not seconds from 0.05 to 3600",
        "init: run_name='' is not 1 to 128 printable characters",
        "[] False",
        "init was called before with other arguments (mode='manual', stack_hz=0.0, now "
        "mode='auto'); a process is recorded in one way: call it once",
        "False True",
    ]


@pytest.mark.parametrize(
    ("variable", "is_on"),
    [
        ({}, True),
        ({"TRACEML_ENABLE": "1"}, True),
        ({"TRACEML_ENABLE": ""}, True),
        ({"TRACEML_ENABLE": "0"}, False),
        ({"TRACEML_ENABLE": "off"}, False),
        ({"TRACEML_DISABLE": "1"}, False),
        ({"TRACEML_ENABLE": "1", "TRACEML_DISABLED": "yes"}, False),
        ({"TRACEML_ENABLE": "treu"}, False),
    ],
)
def test_who_forbids_recording_forbids_init(tmp_path, variable, is_on):
    source = (
        "import sys, traceml_agent\ntraceml_agent.init()\n"
        "print('traceml_agent.startup' in sys.modules)\n"
        "try:\n    traceml_agent.wrap_backward(type('Loss', (), {'backward': print})())\n"
        "except RuntimeError:\n    print('refused')\n"
    )
    result = run(tmp_path, write(tmp_path, source), enabled=False, **variable)
    assert result.stdout.split() == (["True", "refused"] if is_on else ["False"]), result.stderr
    assert len(result.own_lines) == ("treu" in variable.values())


LEFT_OUT = """
import json, torch
import traceml_agent as traceml
from traceml_agent import wrap_backward, wrap_forward, wrap_optimizer
model = wrap_forward(torch.nn.Linear(4, 1))
optimizer = wrap_optimizer(torch.optim.SGD(model.parameters(), lr=0.01))
for _ in range(20):
    optimizer.zero_grad()
    wrap_backward(model(torch.ones(2, 4)).sum()).backward()
    optimizer.step()
try:
    traceml.wrap_h2d(torch.ones(2))
except RuntimeError as error:
    print(error)
"""


def test_what_the_settings_leave_out_may_be_wrapped(tmp_path):
    result = run(tmp_path, write(tmp_path, LEFT_OUT), TRACEML_SKIP="forward,backward,optimizer")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("wrap_h2d: mode='auto' times this already")
    (spool,) = result.spools
    assert spool.end.steps == 20
    assert all(spool.end.phase_ns[phase] > 0 for phase in ("forward", "backward", "optimizer"))


ANEW = """
import torch
from traceml_agent import init, wrap_dataloader_fetch

class Batches:
    def __iter__(self):
        self.left = 6
        return self

    def __next__(self):
        self.left -= 1
        if self.left < 0:
            raise StopIteration
        return torch.ones(2, 4)

init(mode="selective", patch_forward=True, patch_backward=True)
model = torch.nn.Linear(4, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
batches, count = wrap_dataloader_fetch(Batches()), 0
for epoch in range(3):
    for batch in batches:
        optimizer.zero_grad()
        model(batch).sum().backward()
        optimizer.step()
        count += 1
print(count)
"""


def test_an_iterator_that_begins_anew_does_so_when_it_is_wrapped(tmp_path):
    script = write(tmp_path, ANEW)
    on, off = run(tmp_path, script), run(tmp_path, script, TRACEML_ENABLE="0")
    assert (on.returncode, on.stdout, off.stdout) == (0, "18\n", "18\n"), on.stderr


DECORATED = """
import asyncio, sys
import torch
import traceml_agent as traceml
model = torch.nn.Linear(4, 1)
if sys.argv[1] == "late":
    decorate = traceml.trace_step(model)
    traceml.init()
else:
    decorate = traceml.trace_step(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

def update():
    optimizer.zero_grad()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()

@decorate
async def step(number):
    update()
    await asyncio.sleep(0)
    update()
    return number

async def train():
    return [await step(number) for number in range(7)]

print(asyncio.run(train()))
try:
    @decorate
    def steps():
        yield
except TypeError as error:
    print(error)
"""


@pytest.mark.parametrize("when", ["before", "late"])
def test_a_step_may_be_a_coroutine_and_never_a_generator(tmp_path, when):
    script = write(tmp_path, DECORATED)
    variables = {"TRACEML_DIR": str(tmp_path / "runs")}
    on = run(tmp_path, script, when, enabled=when == "before", **variables)
    off = run(tmp_path, script, when, enabled=False, TRACEML_ENABLE="0")
    assert (on.returncode, on.stdout) == (0, off.stdout), on.stderr
    assert "steps is a generator function" in on.stdout
    (spool,) = on.spools
    assert (spool.end.steps, spool.end.updates) == (7, 14)


FORBIDDEN = """
import traceml_agent as traceml
traceml.init(run_name="mine")
from traceml_agent.integrations import huggingface, lightning
lightning.init()
try:
    huggingface.init()
except ModuleNotFoundError:  # transformers
    pass
print(traceml.health())
"""


def test_integrations_that_begin_by_hand_ask_nothing_twice_where_recording_is_forbidden(tmp_path):
    result = run(tmp_path, write(tmp_path, FORBIDDEN), enabled=False, TRACEML_DISABLE="1")
    assert (result.returncode, result.stdout) == (0, "{'enabled': False}\n"), result.stderr
