"""Short steps: the patches rest, and yet each step, batch, sample, epoch and evaluation counts."""

import json
import subprocess
import sys

import pytest

from tests.e2e.harness import environment, run, write
from traceml_agent.spool.digested import read_spool
from traceml_agent.spool.reader import last_step

SET_UP = """
import os, sys, time, torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
torch.set_num_threads(1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
data = TensorDataset(torch.randn(4003, 8), torch.randint(0, 2, (4003,)))
held_out = TensorDataset(torch.randn(64, 8), torch.randint(0, 2, (64,)))
loader = DataLoader(data, batch_size=8, shuffle=True)  # 501 batches, the last one of 3
def learn(batch):
    inputs, labels = batch
    loss = nn.functional.cross_entropy(model(inputs), labels)
    loss.backward()
    return loss
def step(batch):
    optimizer.zero_grad()
    loss = learn(batch)
    optimizer.step()
    return loss
def evaluate():
    model.eval()
    with torch.no_grad():
        for inputs, labels in DataLoader(held_out, batch_size=8):
            model(inputs)
    model.train()
"""
END = "\nprint(sum(p.sum().item() for p in model.parameters()))\n"
EPOCHS = "for epoch in range(6):\n    for batch in loader:\n        step(batch)\n"
RESTING = {
    "epochs": EPOCHS,
    "evaluations": EPOCHS + "    evaluate()\n",
    "losses": EPOCHS.replace("step(batch)", "print(step(batch).item())"),
    "ahead": (
        "for epoch in range(6):\n    batches = iter(loader)\n    ahead = next(batches)\n"
        "    while ahead is not None:\n        batch, ahead = ahead, next(batches, None)\n"
        "        step(batch)\n"
    ),
    "accumulation": (
        "for epoch in range(6):\n    for number, batch in enumerate(loader):\n"
        "        learn(batch)\n        if number % 3 == 2:\n            optimizer.step()\n"
        "            optimizer.zero_grad()\n"
    ),
    "no loader": "for number in range(3000):\n    step(data[8 * (number % 500):][:8])\n",
    "left": (  # a loop that leaves its loader early, each time
        "for epoch in range(8):\n    for number, batch in enumerate(loader):\n        step(batch)\n"
        "        if number == 377:\n            break\n"
    ),
    "another optimizer later": (
        EPOCHS + "other = torch.optim.Adam(model.parameters(), lr=0.001)\n"
        "for batch in loader:\n    step(batch)\n    other.step()\n"
    ),
    "accumulation later": (
        EPOCHS + "for number, batch in enumerate(loader):\n    learn(batch)\n"
        "    if number % 2:\n        optimizer.step()\n        optimizer.zero_grad()\n"
    ),
    "an error in the loop": (
        "for epoch in range(6):\n    for number, batch in enumerate(loader):\n        try:\n"
        "            step(batch)\n            if number == 250: raise KeyError\n"
        "        except KeyError:\n            pass\n"
    ),
    "an error in the model": (
        "for epoch in range(6):\n    for number, batch in enumerate(loader):\n        try:\n"
        "            step(batch if number != 250 else (batch[0][:, :3], batch[1]))\n"
        "        except RuntimeError:\n            pass\n"
    ),
    "an error in the loader": (
        "class Odd(torch.utils.data.Dataset):\n    def __len__(self): return 4000\n"
        "    def __getitem__(self, index):\n        if index == 3100: raise ValueError\n"
        "        return data[index]\n"
        "loader = DataLoader(Odd(), batch_size=8)\nfor epoch in range(8):\n    try:\n"
        "        for batch in loader:\n"
        "            step(batch)\n    except ValueError:\n        pass\n"
    ),
    "workers": EPOCHS.replace("loader:", "DataLoader(data, batch_size=8, num_workers=1):"),
    "persistent workers": (
        "loader = DataLoader(data, batch_size=8, num_workers=1, persistent_workers=True)\n" + EPOCHS
    ),
    "checkpoints": EPOCHS.replace(
        "step(batch)\n", "step(batch)\n    torch.save(model.state_dict(), 'model.pt')\n"
    ),
    "backward by another name": (
        "from torch.autograd import backward\ndef learn(batch):\n"
        "    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])\n"
        "    backward(loss)\n    return loss\n" + EPOCHS
    ),
    "now and then another optimizer": (
        "other = torch.optim.SGD(model[0].parameters(), lr=0.01)\n"
        "for epoch in range(6):\n    for number, batch in enumerate(loader):\n        step(batch)\n"
        "        if number % 100 == 99:\n            learn(batch)\n            other.step()\n"
    ),
    "now and then another loader": (
        "other = torch.optim.SGD(model[0].parameters(), lr=0.01)\n"
        "more = iter(DataLoader(data, batch_size=8))\n"
        "for epoch in range(6):\n    for number, batch in enumerate(loader):\n        step(batch)\n"
        "        if number % 100 == 99:\n            learn(next(more))\n            other.step()\n"
    ),
    "warm-up of another model": (
        "other = nn.Linear(8, 2)\nmore = torch.optim.SGD(other.parameters(), lr=0.01)\n"
        "for epoch in range(3):\n    for batch in loader:\n        more.zero_grad()\n"
        "        nn.functional.cross_entropy(other(batch[0]), batch[1]).backward()\n"
        "        more.step()\n" + EPOCHS
    ),
    "batches that are empty": (
        "def collate(items):\n    made = torch.utils.data.default_collate(items)\n"
        "    return made if made[1].sum() else []\n"
        "loader = DataLoader(data, batch_size=8, collate_fn=collate)\n"
        "for epoch in range(6):\n    for batch in loader:\n        if batch: step(batch)\n"
        "        else: step(data[:8])\n"
    ),
    "batches that begin with a number": (
        "def collate(items):\n"
        "    return (torch.tensor(len(items)), *torch.utils.data.default_collate(items))\n"
        "loader = DataLoader(data, batch_size=8, collate_fn=collate)\n"
        + EPOCHS.replace("step(batch)", "step(batch[1:])")
    ),
    "batches of a class of its own": (
        "class Batch:\n    def __init__(self, items):\n"
        "        self.both = torch.utils.data.default_collate(items)\n"
        "loader = DataLoader(data, batch_size=8, num_workers=1, collate_fn=Batch)\n"
        + EPOCHS.replace("step(batch)", "step(batch.both)")
    ),
    "persistent workers that are left": (
        "loader = DataLoader(data, batch_size=8, num_workers=1, persistent_workers=True)\n"
        "for epoch in range(8):\n    for number, batch in enumerate(loader):\n"
        "        step(batch)\n        if number == 377:\n            break\n"
    ),
    "evaluation without a loader": (
        "for epoch in range(6):\n    for number, batch in enumerate(loader):\n"
        "        step(batch)\n        if number % 100 == 99:\n            with torch.no_grad():\n"
        "                for _ in range(50): model(data[:8][0])\n"
    ),
    "a thread that trains too": (
        "import threading\nother = nn.Linear(8, 2)\n"
        "more = torch.optim.SGD(other.parameters(), lr=0.01)\n"
        "def beside():\n    for _ in range(300):\n        more.zero_grad()\n"
        "        other(data[:8][0]).sum().backward()\n        more.step()\n"
        "        time.sleep(0.002)\n"
        "step(data[:8])\nthread = threading.Thread(target=beside)\nthread.start()\n"
        + EPOCHS
        + "thread.join()\n"
    ),
    "checkpointed": (
        "from torch.utils.checkpoint import checkpoint\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.net = inner\n"
        "    def forward(self, x):\n"
        "        return checkpoint(self.net, x.requires_grad_(), use_reentrant=True)\n"
        "inner = model\nmodel = Net()\n" + EPOCHS
    ),
    "frozen for a while": (
        "for epoch in range(6):\n    for batch in loader:\n        learn(batch)\n"
        "        if epoch != 3: optimizer.step()\n        optimizer.zero_grad()\n"
    ),
}
WATCHED = {
    "two optimizers": (
        "other = torch.optim.SGD(model[0].parameters(), lr=0.01)\n"
        + EPOCHS.replace("step(batch)", "step(batch); other.step()")
    ),
    "a teacher": (
        "teacher = nn.Linear(8, 2)\ndef learn(batch):\n"
        "    with torch.no_grad(): target = teacher(batch[0])\n"
        "    loss = (model(batch[0]) - target).square().mean()\n"
        "    loss.backward()\n    return loss\n" + EPOCHS
    ),
    "two loaders": EPOCHS.replace(
        "for batch in loader", "for batch, _ in zip(loader, DataLoader(data, batch_size=8))"
    ),
    "closures": (
        "optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)\n"
        "for epoch in range(3):\n    for batch in loader:\n"
        "        def closure():\n            optimizer.zero_grad()\n"
        "            return learn(batch)\n"
        "        optimizer.step(closure)\n"
    ),
    "a scaler": (
        "scaler = torch.amp.GradScaler('cpu', init_scale=2.0)\n"
        "def step(batch):\n    optimizer.zero_grad()\n"
        "    loss = nn.functional.cross_entropy(model(batch[0]), batch[1])\n"
        "    scaler.scale(loss).backward()\n    scaler.step(optimizer)\n    scaler.update()\n"
        + EPOCHS
    ),
    "brackets": (
        "import traceml_agent\n"
        + EPOCHS.replace("step(batch)", "\n        with traceml_agent.trace_step(): step(batch)")
    ),
}


def batches_of(loader):
    return sum(sums.batches or 0 for sums in loader.sums or ())


def counts_of(result):
    """What has to be the same whether the patches rest or not."""
    (path,) = result.run_dir.glob("*.jsonl")
    spool = read_spool(path, spans=True)
    end, text = spool.end, result.run_dir / "final_summary.json"
    passes = {
        (loader, number): (batches, ended is not None)
        for found in spool.spans.passes
        for loader, number, ended, batches in zip(
            found.loader, found.number, found.end_ns, found.batches, strict=True
        )
    }
    rested = json.loads(text.read_text())["traceml_agent"]["dropped"].get("rested_steps", 0)
    steps = sum(batch.count for batch in spool.batches) + sum(part.count for part in spool.sums)
    loaders = {loader.loader: batches_of(loader) for loader in spool.loaders.values()}
    known = {
        "steps": end.steps,
        "in the spool": steps,
        "micro-batches": end.micro_batches,
        "samples": end.samples,
        "updates": end.updates,
        "faults": spool.faults,
        "passes": passes,
        "loaders": loaders,
    }
    return known, rested


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RESTING, *WATCHED])
def test_counts_are_those_of_a_run_that_looks_into_each_step(tmp_path, name):
    script = write(tmp_path, SET_UP + {**RESTING, **WATCHED}[name] + END)
    off = run(tmp_path, script, enabled=False, TMPDIR="/tmp")
    found, printed = {}, {}
    for limit in ("0", "1"):
        directory = tmp_path / limit
        directory.mkdir()
        done = run(
            directory, script, TRACEML_MAX_OVERHEAD=limit, TRACEML_TEST_RAISE="1", TMPDIR="/tmp"
        )
        assert (done.returncode, done.other_stderr) == (0, ""), done.stderr
        found[limit], rested = counts_of(done)
        printed[limit] = done.stdout
        if limit == "0":
            assert rested == 0
        elif name in RESTING:
            assert rested > 0.2 * found[limit]["steps"]
        else:
            assert rested < 0.05 * found[limit]["steps"]
    assert found["1"] == found["0"]
    assert printed["1"] == printed["0"] == off.stdout


KILLED = SET_UP + (
    "for epoch in range(1000):\n    for number, batch in enumerate(loader):\n        step(batch)\n"
    "        print(epoch * 501 + number + 1, flush=True)\n"
)


@pytest.mark.slow
def test_a_kill_loses_no_step_that_was_only_counted(tmp_path):
    script = write(tmp_path, KILLED)
    for wanted in (1400, 1750, 2300):
        directory = tmp_path / str(wanted)
        directory.mkdir()
        child = subprocess.Popen(
            [sys.executable, script],
            env=environment(directory, True),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=directory,
        )
        for line in child.stdout:
            if int(line) >= wanted:
                break
        child.kill()
        last = int(([line, *child.stdout])[-1])
        child.wait()
        (path,) = next((directory / "runs").iterdir()).glob("*.jsonl")
        spool = read_spool(path)
        assert any(part.shared_ns for part in spool.sums)
        # The last one is not closed before the next begins, unless it was only counted.
        assert last_step(spool) >= last - 1
        steps = [range(p.first_step, p.first_step + p.count) for p in (*spool.batches, *spool.sums)]
        assert sorted(number for part in steps for number in part) == list(
            range(1, last_step(spool) + 1)
        )


@pytest.mark.slow
def test_a_child_that_is_forked_meanwhile_looks_into_its_own_steps(tmp_path):
    script = write(
        tmp_path,
        SET_UP + EPOCHS + "sys.stdout.flush()\nif os.fork() == 0:\n"
        "    for number in range(200): step(data[:8])\n    print('child')\n"
        "else:\n    os.wait()\n    for batch in loader: step(batch)\n" + END,
    )
    done = run(tmp_path, script, TRACEML_TEST_RAISE="1")
    assert (done.returncode, done.other_stderr) == (0, ""), done.stderr
    spools = {}
    for directory in done.run_dirs:
        (path,) = directory.glob("*.jsonl")
        spool = read_spool(path)
        spools[spool.end.steps] = spool
    assert sorted(spools) == [200, 7 * 501]
    child, parent = spools[200], spools[7 * 501]
    assert not child.sums
    assert sum(batch.count for batch in child.batches) == 200
    assert any("forward" in batch.phase_ns for batch in child.batches)
    assert sum(part.count for part in parent.sums) > 1000


COMPILED = SET_UP + (
    "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    "        self.layers = model\n    def forward(self, inputs):\n"
    "        return self.layers(inputs) * 2\n"
    "model = torch.compile(Net(), backend='aot_eager')\n"
    + EPOCHS
    + "import torch._dynamo.utils as utils\n"
    "print({k: dict(v) for k, v in utils.counters.items() if k in ('stats', 'graph_break')})\n"
)


@pytest.mark.slow
def test_dynamo_compiles_as_often_as_without_the_agent(tmp_path):
    script = write(tmp_path, COMPILED + END)
    off = run(tmp_path, script, enabled=False)
    on = run(tmp_path, script, TRACEML_TEST_RAISE="1")
    assert on.stdout == off.stdout
    assert on.spools[0].end.steps == 6 * 501
    assert counts_of(on)[1] > 0.2 * 6 * 501


@pytest.mark.slow
def test_a_shutdown_while_the_patches_rest_ends_the_recording(tmp_path):
    script = write(
        tmp_path,
        SET_UP + "for epoch in range(5):\n    for batch in loader: step(batch)\n"
        "    if epoch == 3:\n        import traceml_agent\n        traceml_agent.shutdown()\n"
        + END,
    )
    done = run(tmp_path, script, TRACEML_TEST_RAISE="1")
    assert (done.returncode, done.other_stderr) == (0, ""), done.stderr
    assert done.spools[0].end.steps == 4 * 501


RAISED = {
    "forward": "step((batch[0][:, :3], batch[1]))",
    "backward": "model(batch[0]).sum().detach().backward()",
    "loader": "raise RuntimeError from None",
    "optimizer": "optimizer.param_groups[0]['lr'] = 'x'; step(batch)",
}


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="frames of 3.10 are not hidden")
@pytest.mark.parametrize("where", RAISED)
def test_an_error_while_the_patches_rest_reads_as_without_the_agent(tmp_path, where):
    text = SET_UP + "steps = 0\nfor epoch in range(6):\n    for batch in loader:\n"
    text += "        steps += 1\n        if steps == 2000:\n            " + RAISED[where]
    script = write(tmp_path, text + "\n        step(batch)\n")
    off, on = run(tmp_path, script, enabled=False), run(tmp_path, script)
    assert off.returncode == on.returncode == 1
    assert on.other_stderr == off.other_stderr
    assert on.spools[0].end.steps == 1999
    assert counts_of(on)[1] > 1000


@pytest.mark.slow
def test_steps_that_become_long_are_looked_into_again(tmp_path):
    text = SET_UP + "for epoch in range(3):\n    for batch in loader: step(batch)\n"
    text += "for number in range(120):\n    step(data[:8])\n    time.sleep(0.06)\n"
    done = run(tmp_path, write(tmp_path, text.replace("loader: step", "[data[:8]] * 501: step")))
    (spool,) = done.spools
    seen = sum(batch.count for batch in spool.batches if batch.first_step > 3 * 501)
    assert seen > 90
    assert spool.end.steps == 3 * 501 + 120
