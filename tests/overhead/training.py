"""The training that `peers.py` runs under each tool: one script with five places for the tool."""

from dataclasses import dataclass
from string import Template

# `import torch` comes first and the tool's set-up second; start-up ends with the first step, for
# what a tool puts off until then. Steps end when the next batch is there.
TRAINING = Template("""
import json, os, sys, threading, time
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
$setup
here, window_s, warm_steps = sys.path[0], $window_s, $warm_steps
with open(here + "/pid", "w") as file:
    file.write(str(os.getpid()))
progress = os.open(here + "/progress", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
mark = b"OVERHEAD_CHILD=" + os.environ["OVERHEAD_CHILD"].encode() + b"\\0"

def others():
    # CPU seconds, MiB and count of the processes started for this run, besides this one.
    cpu_s, mib, count = 0.0, 0.0, 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/environ", "rb") as file:
                if int(pid) == os.getpid() or mark not in file.read() + b"\\0":
                    continue
            with open(f"/proc/{pid}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        cpu_s += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        mib += int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20
        count += 1
    return cpu_s, mib, count

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name + ":"))

class Endless(Dataset):
    def __len__(self):
        return 10**9
    def __getitem__(self, index):
        return index

torch.set_num_threads(1)
torch.manual_seed(0)
$model
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
loader = DataLoader(Endless(), batch_size=1, collate_fn=lambda _: (inputs, labels))
deadline, done = float("inf"), -1
for x, y in loader:
    done += 1
    $progress
    if done == 1:
        start_s, start_others_s = time.process_time(), others()[0]
    elif done == warm_steps:
        others_begun_s, begun_s = others()[0], time.process_time()
        deadline = time.perf_counter() + window_s
    elif time.perf_counter() >= deadline:
        break
    $around
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    $after
cpu_s = time.process_time() - begun_s
others_s, others_mib, count = others()
measured = done - warm_steps
result = {
    "steps": done,
    "us": cpu_s / measured * 1e6,
    "others_us": (others_s - others_begun_s) / measured * 1e6,
    "mib": status("VmRSS") / 1024,
    "others_mib": others_mib,
    "threads": status("Threads"),
    "processes": 1 + count,
    "start_s": start_s,
    "start_others_s": start_others_s,
    "end": time.time(),
}
with open(here + "/result.json", "w") as file:
    json.dump(result, file)
$finish
""")


@dataclass(frozen=True, slots=True)
class Model:
    name: str
    code: str  # defines `model`, `inputs` and `labels`
    warm_steps: int  # past the first 50 steps that the agent audits, one in twenty in a long run


ROWS = "inputs, labels = torch.randn(32, 32), torch.randint(0, 10, (32,))"
MODELS = (
    Model(
        "MLP, 3 modules",
        f"model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))\n{ROWS}",
        200,
    ),
    Model(
        "MLP, 61 modules",
        "layers = [layer for _ in range(30) for layer in (nn.Linear(32, 32), nn.ReLU())]\n"
        f"model = nn.Sequential(*layers, nn.Linear(32, 10))\n{ROWS}",
        100,
    ),
    Model(
        "conv net",
        """
model = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(32 * 8 * 8, 10),
)
inputs, labels = torch.randn(24, 3, 32, 32), torch.randint(0, 10, (24,))
""",
        70,
    ),
    Model(
        "transformer, compiled",
        """
class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
        self.embedding = nn.Embedding(256, 64)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 256)
    def forward(self, tokens):
        return self.head(self.encoder(self.embedding(tokens))).flatten(0, 1)

model = torch.compile(Transformer())
inputs, labels = torch.randint(0, 256, (8, 32)), torch.randint(0, 256, (8 * 32,))
""",
        70,
    ),
)
