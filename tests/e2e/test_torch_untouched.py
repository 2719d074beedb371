"""Torch's own machinery sees no difference: Dynamo counters, artifacts, pickles, tracebacks."""

import re

import pytest

from tests.e2e.harness import run, write

PROLOGUE = """
import copy, io, json, pickle, sys, warnings
import torch
from torch import nn
torch.set_num_threads(1)
torch.manual_seed(0)

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
    def forward(self, x):
        return torch.relu(self.layer(x)) + x

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(8, 2)
    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x)

model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

def train(call, steps=8, size=4):
    for number in range(steps):
        optimizer.zero_grad()
        rows = size if isinstance(size, int) else size[number % len(size)]
        call(torch.randn(rows, 8)).sum().backward()
        optimizer.step()

def counters():
    from torch._dynamo.utils import counters as c
    return {k: c["stats"].get(k) for k in ("unique_graphs", "calls_captured")} | {
        "breaks": sum(c["graph_break"].values()), "recompiles": sum(c["recompiles"].values()),
        "frames": dict(c["frames"])}
"""

CASES = {
    "compile_model": "train(torch.compile(model, backend='eager', fullgraph=True))\n"
    "print(counters())",
    "compile_after_training": "train(model)\n"
    "train(torch.compile(model, backend='eager', fullgraph=True))\n"
    "print(counters())",
    "compile_while_training": "c = torch.compile(model, backend='aot_eager')\n"
    "train(model, 2); train(c, 12); print(counters())",
    "compile_method": "model.compile(backend='eager'); train(model); print(counters())",
    "compile_regions": "for b in model.blocks: b.compile(backend='eager')\n"
    "train(model, 12); print(counters())",
    "compile_shapes": "train(torch.compile(model, backend='eager', dynamic=True), 9, (3, 5, 7))\n"
    "print(counters())",
    "compile_function": "@torch.compile(backend='eager')\ndef f(x):\n    return model(x) * 2\n"
    "train(f); print(counters())",
    "compile_transfer": "@torch.compile(backend='eager', fullgraph=True)\ndef f(x):\n"
    "    return model(x.to('cpu')).to(torch.float64).cpu()\ntrain(f); print(counters())",
    "export": "train(model); e = torch.export.export(model, (torch.randn(2, 8),)); print(e.graph)",
    "export_not_strict": "train(model)\n"
    "print(torch.export.export(model, (torch.randn(2, 8),), strict=False).graph)",
    "script": "train(model); s = torch.jit.script(model.blocks[0]); print(s.code)",
    "trace": "train(model); print(torch.jit.trace(model, torch.randn(2, 8)).code)",
    "fx": "train(model); print(torch.fx.symbolic_trace(model).graph)\n"
    "train(nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8))))\n"
    "print(torch.fx.symbolic_trace(nn.Sequential(nn.Sequential(nn.Linear(8, 8)))).graph)",
    "make_fx": "from torch.fx.experimental.proxy_tensor import make_fx\n"
    "train(model); print(make_fx(lambda x: model(x))(torch.randn(2, 8)).code)",
    "vmap": "train(model); p = dict(model.named_parameters())\n"
    "f = lambda x: torch.func.functional_call(model, p, (x,)).sum()\n"
    "print(torch.vmap(f)(torch.ones(3, 8)).tolist(), torch.func.grad(f)(torch.ones(8)).tolist())",
    "pickles": "from torch.utils.data import DataLoader\ntrain(model)\n"
    "loader = DataLoader(torch.randn(8, 8), batch_size=2)\n"
    "for thing in (model, optimizer, loader, copy.deepcopy(model), Block, type(model).__call__):\n"
    "    data = pickle.dumps(thing); print(len(data), b'traceml' in data)\n"
    "buffer = io.BytesIO(); torch.save(model, buffer); print(b'traceml' in buffer.getvalue())",
    "torch_function": "seen = []\n"
    "class Mode(torch.overrides.TorchFunctionMode):\n"
    "    def __torch_function__(self, func, types, args=(), kwargs=None):\n"
    "        if func is torch.Tensor.to: seen.append('to')\n"
    "        return func(*args, **(kwargs or {}))\n"
    "class Sub(torch.Tensor):\n"
    "    @classmethod\n"
    "    def __torch_function__(cls, func, types, args=(), kwargs=None):\n"
    "        if func is torch.Tensor.to: seen.append('sub')\n"
    "        return super().__torch_function__(func, types, args, kwargs)\n"
    "train(model)\n"
    "with Mode(): torch.ones(2).to(torch.float64); torch.ones(2).to('meta')\n"
    "torch.ones(2).as_subclass(Sub).to(torch.float64); torch.ones(2).as_subclass(Sub).to('meta')\n"
    "print(seen)",
    "identities": "train(model)\nimport inspect\n"
    "print(nn.Module.__call__ is nn.Module.__call__, torch.Tensor.to is torch.Tensor.to)\n"
    "print(nn.modules.module._has_any_global_hook(), torch.cuda.is_initialized())\n"
    "for f in (nn.Module.__call__, torch.save, torch.Tensor.to, torch.autograd.backward):\n"
    "    where = getattr(f, '__module__', None)\n"
    "    print(f.__name__, f.__qualname__, where, (f.__doc__ or '')[:40])",
    "error_in_forward": "train(model); model(torch.randn(2, 5))",
    "error_in_backward": "train(model); l = model(torch.randn(2, 8)).sum()\n"
    "l.backward(); l.backward()",
    "error_in_optimizer": "class Bad(torch.optim.SGD):\n    def step(self, closure=None):\n"
    "        raise ValueError('bad step')\ntrain(model)\n"
    "optimizer = Bad(model.parameters(), lr=1)\ntrain(model)",
    "error_in_loader": "from torch.utils.data import DataLoader\nclass Bad(list):\n"
    "    def __getitem__(self, i):\n        raise KeyError(i)\ntrain(model)\n"
    "next(iter(DataLoader(Bad([1, 2]), batch_size=1)))",
    "error_in_save": "train(model); torch.save(lambda: 0, io.BytesIO())",
    "error_in_transfer": "train(model); torch.ones(2).to('cuda')",
    "error_printed": "import traceback\ntrain(model)\ntry:\n    model(torch.randn(2, 5))\n"
    "except RuntimeError:\n    print(traceback.format_exc())",
    "warnings": "warnings.simplefilter('always')\nclass W(nn.Module):\n    def forward(self, x):\n"
    "        warnings.warn('here', stacklevel=2)\n        return model(x)\ntrain(W())",
    "handlers": "import signal, os\ntrain(model)\n"
    "print([signal.getsignal(s) for s in signal.valid_signals() if s not in (9, 19)])\n"
    "print(sorted(k for k in os.environ if not k.startswith('TRACEML')))",
}


@pytest.mark.parametrize("name", sorted(CASES))
def test_torch_does_not_notice(tmp_path, name):
    script = write(tmp_path, PROLOGUE + CASES[name] + "\n")
    off = run(tmp_path, script, enabled=False)
    on = run(tmp_path, script, TRACEML_TEST_RAISE="1")
    assert on.stdout == off.stdout
    assert on.returncode == off.returncode
    assert without_addresses(on.other_stderr) == without_addresses(off.other_stderr)


def without_addresses(text):
    """Objects lie elsewhere in every process."""
    return re.sub(r"0x[0-9a-f]+", "0x", text)
