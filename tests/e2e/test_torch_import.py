"""However torch comes into the process, it is patched once, and its import is the user's."""

import pytest

from tests.e2e.harness import run, write

TRAIN = """
def train(torch, steps=15):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.utils.data.DataLoader(torch.randn(3 * steps, 4), batch_size=3)
    for inputs in data:
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        optimizer.step()
    print(loss.item())
"""

WAYS = {
    "in a thread": """
import threading
found = []
thread = threading.Thread(target=lambda: found.append(__import__("torch")))
thread.start(); thread.join()
train(found[0])
""",
    "in four threads at once": """
import importlib, threading
start = threading.Barrier(4)
def load():
    start.wait()
    importlib.import_module("torch")
threads = [threading.Thread(target=load) for _ in range(4)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
import torch
train(torch)
""",
    "looked up first": """
import importlib.util, sys
print(importlib.util.find_spec("torch") is not None, "torch" in sys.modules)
import torch
print(type(torch.__spec__.loader).__name__, type(torch.__loader__).__name__)
train(torch)
""",
    "a submodule first": """
import torch.nn.functional as F
import torch
train(torch)
""",
    "a part reloaded": """
import importlib, torch
importlib.reload(torch.nn)
importlib.reload(torch.utils.data)
train(torch)
""",
    "after torch._dynamo": """
import torch._dynamo
import torch
model = torch.compile(torch.nn.Linear(4, 2), backend="eager", fullgraph=True)
train(torch)
model(torch.randn(2, 4))
counters = torch._dynamo.utils.counters
print(sorted(counters["stats"].items()), counters["graph_break"])
""",
    "beside a finder of the user": """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        return None
sys.meta_path.insert(0, Finder())
import torch
print([type(finder).__name__ for finder in sys.meta_path if type(finder) is Finder])
train(torch)
""",
    "by importlib without the finders' list": """
import importlib, sys
sys.meta_path[:] = list(sys.meta_path)
torch = importlib.import_module("torch")
train(torch)
""",
}


@pytest.mark.parametrize("way", WAYS)
def test_torch_is_patched_once_and_the_program_prints_the_same(tmp_path, way):
    script = write(tmp_path, TRAIN + WAYS[way])
    off = run(tmp_path, script, enabled=False)
    on = run(tmp_path, script)
    assert (on.returncode, on.stdout, on.other_stderr) == (0, off.stdout, off.stderr)
    (spool,) = on.spools
    # A second layer of patches would count each step or batch twice.
    assert (spool.end.steps, spool.end.micro_batches, spool.end.updates) == (15, 15, 15)
    assert not spool.faults


BROKEN_ONCE = """
import os, pathlib, sys
broken = pathlib.Path("broken/torch")
broken.mkdir(parents=True)
(broken / "__init__.py").write_text("raise ImportError('libcudart.so.99: cannot open')")
sys.path.insert(0, str(broken.parent))
try:
    import torch
except ImportError as error:
    print(repr(error), error.__cause__, error.__context__)
sys.path.pop(0)
sys.path_importer_cache.clear()
(broken / "__init__.py").unlink()
import torch
train(torch)
"""


def test_an_import_that_fails_first_fails_as_without_the_agent_and_works_later(tmp_path):
    off_dir, on_dir = tmp_path / "off", tmp_path / "on"
    off_dir.mkdir(), on_dir.mkdir()
    off = run(off_dir, write(off_dir, TRAIN + BROKEN_ONCE), enabled=False)
    on = run(on_dir, write(on_dir, TRAIN + BROKEN_ONCE))
    assert "libcudart.so.99" in off.stdout
    assert on.stdout.replace(str(on_dir), str(off_dir)) == off.stdout
    assert (on.returncode, on.other_stderr) == (0, off.stderr)
    assert on.spools[0].end.steps == 15


IMPORTED_AGAIN = """
import sys
import torch
train(torch)
first = torch
for name in [name for name in sys.modules if name == "torch"]:
    del sys.modules[name]
sys.modules["torch"] = first
train(torch)
"""


def test_torch_deleted_and_put_back_is_not_patched_twice(tmp_path):
    on = run(tmp_path, write(tmp_path, TRAIN + IMPORTED_AGAIN))
    assert on.returncode == 0, on.stderr
    assert on.spools[0].end.steps == 30
    assert on.spools[0].end.updates == 30


IN_SITECUSTOMIZE = "import torch\n"


def test_torch_imported_by_the_users_sitecustomize_is_patched(tmp_path):
    write(tmp_path, IN_SITECUSTOMIZE, "sitecustomize.py")
    on = run(
        tmp_path, write(tmp_path, TRAIN + "import torch\ntrain(torch)"), PYTHONPATH=str(tmp_path)
    )
    assert on.returncode == 0, on.stderr
    assert on.spools[0].end.steps == 15


@pytest.mark.parametrize(
    ("gone", "out", "active"),
    [
        ("torch.utils.data.dataloader._BaseDataLoaderIter", "dataloader", "forward"),
        ("torch.autograd.backward", "backward", "optimizer"),
        ("torch.optim.optimizer.register_optimizer_step_pre_hook", "optimizer", "backward"),
        ("torch.save", "checkpoint", "dataloader"),
    ],
)
def test_a_torch_of_another_shape_loses_one_patch_with_its_reason(tmp_path, gone, out, active):
    """A loader takes one name out of the real torch before anyone can look at it."""
    owner, _, name = gone.rpartition(".")
    customize = f"""
import importlib.abc, importlib.util, sys
class Trimmed(importlib.abc.Loader):
    def __init__(self, loader):
        self.loader = loader
    def create_module(self, spec):
        return self.loader.create_module(spec)
    def exec_module(self, module):
        self.loader.exec_module(module)
        import operator
        module.__version__ = "99.0"
        owner = sys.modules.get({owner!r}) or operator.attrgetter({owner!r}[6:])(module)
        delattr(owner, {name!r})
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        spec.loader = Trimmed(spec.loader)
        return spec
sys.meta_path.insert(-1, Finder())
"""
    write(tmp_path, customize, "sitecustomize.py")
    body = """
import torch
torch.set_num_threads(1)
parameter = torch.nn.Parameter(torch.ones(3))
model = torch.nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(5):
    loss = model(torch.ones(1, 4)).sum()
    torch.autograd.grad(loss, list(model.parameters()))
    optimizer.step()
print(torch.__version__)
"""
    on = run(tmp_path, write(tmp_path, body), PYTHONPATH=str(tmp_path))
    assert (on.returncode, on.stdout) == (0, "99.0\n"), on.stderr
    statuses = on.spools[0].statuses
    assert statuses[out].startswith("not in: torch 99.0 has another shape here"), statuses
    assert statuses[active] == "active"
