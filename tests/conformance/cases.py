"""The corpus: ordinary and strange trainings. Each prints what it computed and what it saw."""

PROLOGUE = """
import copy, io, json, os, pickle, signal, sys, threading, warnings
import probe
__EARLY__import torch
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

if __name__ == "__main__":
    probe.before()
"""

EPILOGUE = """
if __name__ == "__main__":
    probe.after(model)
"""

LOADER = """from torch.utils.data import DataLoader
if __name__ == '__main__':
    for persistent in (False, True):
        loader = DataLoader(list(range(24)), batch_size=4, num_workers=2,
                            multiprocessing_context='METHOD', persistent_workers=persistent)
        for epoch in range(1 + persistent):  # a worker of a spawned kind costs seconds
            for batch in loader:
                print(batch.tolist())
                optimizer.zero_grad()
                model(batch[:, None].repeat(1, 8).float()).sum().backward()
                optimizer.step()
        del loader"""

CASES = {
    # A tensor with a weak reference cannot be swapped, and modules of tensor subclasses are.
    "swap": "train(model)\n"
    "torch.__future__.set_swap_module_params_on_conversion(True)\n"
    "model.to(torch.float64).to(torch.float32); model.load_state_dict(model.state_dict())\n"
    "torch.utils.swap_tensors(model.head.weight, nn.Parameter(torch.ones(2, 8)))\n"
    "optimizer = torch.optim.SGD(model.parameters(), lr=0.1); train(model)\n"
    "print([p.sum().item() for p in model.parameters()])",
    "compile_model": "train(torch.compile(model, backend='eager', fullgraph=True))\n"
    "print(counters())",
    "compile_after_training": "train(model)\n"
    "train(torch.compile(model, backend='eager', fullgraph=True))\n"
    "print(counters())",
    "compile_while_training": "c = torch.compile(model, backend='aot_eager')\n"
    "train(model, 2); train(c, 12); print(counters())",
    "compile_method": "model.compile(backend='eager'); train(model); print(counters())",
    "compile_sequential": "layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))\n"
    "layers.compile(backend='eager'); x = torch.ones(2, 4)\n"
    "optimizer = torch.optim.SGD(layers.parameters(), lr=0.1)\nfor _ in range(8):\n"
    "    optimizer.zero_grad(); layers(x).sum().backward(); optimizer.step()\nprint(counters())",
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
    "compile_step": "loss_of = nn.MSELoss()\n@torch.compile(backend='eager')\ndef f(x):\n"
    "    l = loss_of(model(x), x[:, :2]); l.backward(); optimizer.step()\n"
    "    optimizer.zero_grad(); return l.detach()\n"
    "for _ in range(6): print(f(torch.randn(4, 8)).item())\n"
    "c = counters(); print(c.pop('breaks') < 6, c)",
    "compile_inductor": "train(torch.compile(model), 6); print(counters())",
    "checkpointing": "from torch.utils.checkpoint import checkpoint\n"
    "for reentrant in (True, False):\n"
    "    train(lambda x: model.head(checkpoint(\n"
    "        model.blocks[0], x.requires_grad_(), use_reentrant=reentrant)))",
    "amp": "scaler = torch.amp.GradScaler('cpu', init_scale=2.0**120, growth_interval=2)\n"
    "for _ in range(12):\n"
    "    optimizer.zero_grad()\n"
    "    with torch.autocast('cpu', dtype=torch.bfloat16):\n"
    "        loss = model(torch.randn(4, 8)).float().square().mean()\n"
    "    scaler.scale(loss).backward(); scaler.step(optimizer); scaler.update()\n"
    "    print(loss.item(), scaler.get_scale())",
    "lbfgs": "o = torch.optim.LBFGS(model.parameters(), max_iter=4, history_size=3)\n"
    "x = torch.randn(16, 8)\ndef closure():\n    o.zero_grad(); l = model(x).square().mean()\n"
    "    l.backward(); return l\nfor _ in range(5): print(o.step(closure).item())",
    "policy_gradient": "for episode in range(4):\n"
    "    with torch.no_grad():\n"
    "        states = [torch.randn(8) for _ in range(10)]\n"
    "        d = [torch.distributions.Categorical(logits=model(s)) for s in states]\n"
    "        actions = [one.sample() for one in d]\n"
    "    for _ in range(3):\n"
    "        p = torch.distributions.Categorical(logits=model(torch.stack(states)))\n"
    "        l = -p.log_prob(torch.stack(actions)).mean(); optimizer.zero_grad(); l.backward()\n"
    "        optimizer.step(); print(l.item())",
    "parallel_threads": "twin = copy.deepcopy(model)\n"
    "def half(i, m, x):\n    outs[i] = m(x).sum()\nfor _ in range(6):\n"
    "    optimizer.zero_grad(); x = torch.randn(4, 8); outs = [None, None]\n"
    "    halves = [threading.Thread(target=half, args=(i, m, x[2 * i : 2 * i + 2]))\n"
    "              for i, m in enumerate((model, twin))]\n"
    "    for t in halves: t.start()\n"
    "    for t in halves: t.join()\n"
    "    (outs[0] + outs[1]).backward(); optimizer.step()\nprint(probe.digest(twin))",
    "data_parallel": "many = nn.DataParallel(model); train(many)\n"
    "print(type(many.module), probe.digest(many))",
    "gan": "makes, judges = nn.Linear(4, 8), nn.Linear(8, 1)\n"
    "first, second = (torch.optim.Adam(m.parameters(), lr=0.01) for m in (makes, judges))\n"
    "for _ in range(6):\n"
    "    second.zero_grad()\n"
    "    fake = makes(torch.randn(4, 4))\n"
    "    (judges(fake.detach()).mean() - judges(torch.randn(4, 8)).mean()).backward()\n"
    "    second.step(); first.zero_grad(); (-judges(fake).mean()).backward(); first.step()\n"
    "print(probe.digest(makes), probe.digest(judges))",
    "spawned_training": "import torch.multiprocessing as mp  # as multiprocessing\n"
    "def work(rank, queue):\n    torch.manual_seed(rank); train(model)\n"
    "    queue.put((rank, probe.digest(model), sorted(map(str, probe.handlers()))))\n"
    "if __name__ == '__main__':\n    queue = mp.get_context('spawn').SimpleQueue()\n"
    "    mp.spawn(work, (queue,), nprocs=2)\n"
    "    print(sorted(queue.get() for _ in range(2))); train(model)",
    "overridden_methods": "class Mine(nn.Linear):\n    def __call__(self, *a):\n"
    "        calls.append('call'); return super().__call__(*a)\n"
    "class T(torch.Tensor):\n    def to(self, *a, **k):\n"
    "        calls.append('to'); return super().to(*a, **k)\n"
    "class O(torch.optim.SGD):\n    def step(self, closure=None):\n"
    "        calls.append('step'); return super().step(closure)\n"
    "from torch.utils.data import DataLoader\nclass D(DataLoader):\n    def __iter__(self):\n"
    "        calls.append('iter'); return super().__iter__()\n"
    "calls = []; model = Mine(8, 2); o = O(model.parameters(), lr=0.1)\n"
    "for x in D(torch.randn(12, 8), batch_size=4):\n"
    "    x = x.as_subclass(T).to(torch.float32).as_subclass(torch.Tensor)\n"
    "    o.zero_grad(); model(x).sum().backward(); o.step()\nprint(calls)",
    "own_patches": "real = torch.autograd.backward; seen = []\n"
    "def mine(*a, **k):\n    seen.append('mine'); return real(*a, **k)\n"
    "torch.autograd.backward = mine; train(model); print(seen, torch.autograd.backward is mine)",
    "own_patches_of_calls": "train(model); real = nn.Module.__call__; seen = []\n"
    "def mine(self, *a, **k):\n    seen.append(type(self).__name__); return real(self, *a, **k)\n"
    "nn.Module.__call__ = mine; w = nn.Parameter(torch.ones(8, 1)); train(lambda x: x @ w)\n"
    "train(nn.Sequential(nn.Linear(8, 2))); train(model)\n"
    "print(len(seen), set(seen), nn.Module.__call__ is mine)\n"
    "nn.Module.__call__ = real; train(model)",
    "hooks_of_the_user": "seen = []\n"
    "model.register_forward_pre_hook(lambda m, a: seen.append('pre'))\n"
    "model.register_full_backward_hook(lambda m, i, o: seen.append('back'))\n"
    "optimizer.register_step_post_hook(lambda o, a, k: seen.append('step'))\n"
    "train(model); print(seen)",
    "tensor_attributes": "train(model)\n"
    "print([n for n in dir(torch.Tensor) if 'trace' in n.lower()], sorted(vars(model)))\n"
    "print(sorted(vars(optimizer)), sorted(optimizer.state_dict()))\n"
    "print(model, optimizer)",
    "workers_fork": LOADER.replace("METHOD", "fork"),
    "workers_spawn": LOADER.replace("METHOD", "spawn"),
    "workers_forkserver": LOADER.replace("METHOD", "forkserver"),
    "handlers_before_torch": "def handler(number, frame):\n    print('handled', number)\n"
    "signal.signal(signal.SIGTERM, handler); signal.signal(signal.SIGUSR1, handler)\n# torch\n"
    "train(model)\nfor n in (15, 10): signal.raise_signal(n)",
    "handlers_after_torch": "def handler(number, frame):\n    print('handled', number)\n"
    "train(model, 3)\nsignal.signal(signal.SIGTERM, handler)\n"
    "signal.signal(signal.SIGINT, handler)\ntrain(model)\n"
    "for n in (15, 2): signal.raise_signal(n)",
    "faulthandler_of_the_user": "import faulthandler\nfaulthandler.enable(open('fatal.txt', 'w'))\n"
    "# torch\ntrain(model); print(faulthandler.is_enabled())\n"
    "faulthandler.register(signal.SIGUSR2, open('stack.txt', 'w'))\n"
    "train(model); print(faulthandler.unregister(signal.SIGUSR2))",
    "fork_after_training": "train(model)\npid = os.fork()\nif pid == 0:\n"
    "    train(model); print(probe.digest(model), flush=True); sys.exit(3)\n"
    "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\ntrain(model)",
    "exec_after_training": "train(model); print(probe.digest(model), flush=True)\n"
    "if not os.environ.get('AGAIN'):\n    os.environ['AGAIN'] = '1'\n"
    "    os.execv(sys.executable, [sys.executable, *sys.argv])",
    "subprocess_of_python": "import subprocess\ntrain(model)\n"
    "print(subprocess.run([sys.executable, '-c', 'import torch; print(torch.ones(2).sum())'],\n"
    "                     capture_output=True, text=True))",
    "threads_that_train": "def work():\n    torch.manual_seed(3); m = Net()\n"
    "    o = torch.optim.SGD(m.parameters(), lr=0.1)\n"
    "    g = torch.Generator().manual_seed(1)\n"
    "    for _ in range(5):\n"
    "        o.zero_grad(); m(torch.randn(4, 8, generator=g)).sum().backward(); o.step()\n"
    "    print(probe.digest(m))\ntrain(model)\n"
    "t = threading.Thread(target=work); t.start(); t.join()",
    "saved_and_loaded": "train(model)\ntorch.save(model.state_dict(), 'model.pt')\n"
    "torch.save({'o': optimizer.state_dict(), 'm': model}, 'all.pt')\n"
    "model.load_state_dict(torch.load('model.pt')); train(model)",
    "recursion_to_the_limit": "train(model)\nclass Deep(nn.Module):\n    def forward(self, n):\n"
    "        return self(n + 1)\n"
    "try:\n    Deep()(0)\nexcept RecursionError as e:\n    print(type(e))\ntrain(model)",
    "batches_of_odd_objects": "from torch.utils.data import DataLoader\nclass Odd:\n"
    "    def __init__(self, x): self.x = x\n"
    "    def __getattr__(self, name): raise RuntimeError(name)\n"
    "class Strange(dict):\n    def values(self): raise ValueError('values')\n"
    "class Broken:\n    @property\n    def shape(self): return ('a', 'b')\n"
    "for make in (Odd, lambda x: Strange(x=x), lambda x: Broken(), lambda x: [], lambda x: None):\n"
    "    for b in DataLoader(torch.randn(4, 8), batch_size=2, collate_fn=make):\n"
    "        optimizer.zero_grad(); model(torch.randn(4, 8)).sum().backward(); optimizer.step()",
}

SLOW = {"compile_inductor"}


def script(name):
    """The text of a program; `early` cases put their first part before `import torch`."""
    early, _, late = CASES[name].rpartition("# torch\n")
    return PROLOGUE.replace("__EARLY__", early) + late + EPILOGUE
