"""A training that times its parts by hand, and looks whether what is wrapped is what it was.

Prints what it found, as JSON, and a hash of the parameters. The arguments: those of `init`, and
whether `init` comes before or after `import torch`.
"""

import copy
import hashlib
import json
import pickle
import sys
from collections import namedtuple

import traceml_agent as traceml

ARGUMENTS, WHEN = json.loads(sys.argv[1]), sys.argv[2]
if WHEN == "before":
    traceml.init(**ARGUMENTS)

import torch  # noqa: E402
from torch import nn  # noqa: E402

if WHEN == "after":
    traceml.init(**ARGUMENTS)
traceml.init(**ARGUMENTS)  # once more: nothing happens

torch.manual_seed(0)
MODEL = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
OPTIMIZER = torch.optim.SGD(MODEL.parameters(), lr=0.01)
LOADER = torch.utils.data.DataLoader(torch.randn(48, 8), batch_size=4, num_workers=0)
Pair = namedtuple("Pair", "inputs labels")
facts = {}


class Engine:
    """Has a `step` and a `backward`, and is nothing of torch's."""

    def __init__(self):
        self.calls = []

    def step(self):
        self.calls.append("step")

    def backward(self, loss):
        self.calls.append("backward")
        return loss


class Batch(dict):
    def to(self, device):
        return Batch({name: tensor.to(device) for name, tensor in self.items()})


def main():
    loader = traceml.wrap_dataloader_fetch(LOADER)
    model = traceml.wrap_forward(MODEL)
    optimizer = traceml.wrap_optimizer(OPTIMIZER)
    facts["same"] = [model is MODEL, optimizer is OPTIMIZER, traceml.wrap_forward(model) is MODEL]
    facts["loader"] = [
        isinstance(loader, torch.utils.data.DataLoader), len(loader), loader.batch_size,
        type(pickle.loads(pickle.dumps(loader))).__name__, type(copy.copy(loader)).__name__,
    ]  # fmt: skip
    others()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    for _ in range(2):
        for batch in loader:
            inputs = traceml.wrap_h2d(batch)
            inputs.to("meta")  # stands for a device
            inputs = inputs.to("cpu")
            facts["copied"] = [type(inputs) is torch.Tensor, inputs is batch]
            optimizer.zero_grad()
            loss = traceml.wrap_backward(model(inputs).square().mean())
            loss.backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        model(batch)
    facts["loss"] = [isinstance(loss, torch.Tensor), type(loss * 2) is torch.Tensor, loss.dim()]
    facts["stored"] = type(pickle.loads(pickle.dumps(loss.detach()))) is torch.Tensor
    facts["bytes"] = b"traceml" in pickle.dumps(traceml.wrap_h2d(torch.ones(2)))
    facts["bytes of the model"] = b"traceml" in pickle.dumps([MODEL, OPTIMIZER.state_dict()])
    facts["copies"] = [type(copy.deepcopy(each)).__name__ for each in (MODEL, OPTIMIZER)]
    stream = traceml.wrap_dataloader_fetch(number for number in range(3))
    facts["stream"] = [next(stream), list(stream), hasattr(stream, "send")]
    facts["health"] = {
        name: traceml.health().get(name) for name in ("enabled", "mode", "patches", "steps")
    }
    weights = b"".join(p.detach().numpy().tobytes() for p in MODEL.parameters())
    print(json.dumps(facts), hashlib.sha256(weights).hexdigest())


def others():
    engine = Engine()
    traceml.wrap_optimizer(engine).step()
    traceml.wrap_backward(engine).backward(torch.ones(1))
    facts["engine"] = engine.calls
    ones = torch.ones(2)
    pair = traceml.wrap_h2d(Pair(ones, {"y": [ones, "text"]}))
    facts["pair"] = [type(pair).__name__, pair.labels["y"][1], pair.inputs.to("meta").device.type]
    batch = traceml.wrap_h2d(Batch(x=ones))
    facts["batch"] = [isinstance(batch, Batch), list(batch), type(batch.to("meta")).__name__]
    for call, value in (
        (traceml.wrap_forward, len), (traceml.wrap_optimizer, 1), (traceml.wrap_backward, "loss"),
        (traceml.wrap_h2d, ["text"]), (traceml.wrap_dataloader_fetch, 3),
    ):  # fmt: skip
        try:
            call(value)
        except TypeError as error:
            facts.setdefault("errors", []).append(str(error))


main()
