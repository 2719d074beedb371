"""What is noted of a restore before the first step, and that the calls look as they did."""

import json

from tests.e2e.harness import run, write

LOOKS = """
import inspect, io, os
import torch
import torch.distributed.checkpoint as dcp
print(inspect.signature(torch.load))
print(inspect.signature(torch.save))
print(inspect.signature(torch.nn.Linear(1, 1).load_state_dict))
print(inspect.signature(dcp.load), torch.load.__module__, torch.load.__qualname__)
print(torch.load is torch.serialization.load)
try:
    torch.load("nowhere.pt")
except FileNotFoundError as error:
    names, traceback = [], error.__traceback__
    while traceback is not None:
        names.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    print(names)
class Odd:
    @property
    def name(self):
        raise RuntimeError("not yours to look at")
    def __init__(self, data):
        self.file = io.BytesIO(data)
    def __getattr__(self, key):
        return getattr(self.file, key)
data = io.BytesIO()
torch.save({"a": torch.ones(3)}, data)
print(torch.load(Odd(data.getvalue()))["a"].sum().item())
"""


def test_loads_look_fail_and_work_as_without_the_agent(tmp_path):
    script = write(tmp_path, LOOKS)
    off = run(tmp_path, script, enabled=False)
    on = run(tmp_path, script)
    assert off.returncode == 0, off.stderr
    assert (on.returncode, on.stdout, on.other_stderr) == (0, off.stdout, off.stderr)


READS = """
import torch
torch.set_num_threads(1)
model = torch.nn.Linear(4, 2)
for number in range(300):
    torch.save(torch.full((4,), 1.0), f"item{number}.pt")
class Items(torch.utils.data.Dataset):
    def __len__(self):
        return 300
    def __getitem__(self, index):
        return torch.load(f"item{index}.pt")
warm = [Items()[index] for index in range(300)]
optimizer = torch.optim.AdamW(model.parameters())
torch.load("item7.pt")
for batch in torch.utils.data.DataLoader(Items(), batch_size=10):
    optimizer.zero_grad()
    model(batch).sum().backward()
    optimizer.step()
"""


def test_a_data_set_that_loads_a_file_an_item_makes_one_event_a_line(tmp_path):
    done = run(tmp_path, write(tmp_path, READS))
    assert done.returncode == 0, done.stderr
    (spool,) = done.spools
    loads = [event.detail for event in spool.events if event.name == "load"]
    # In the loop they are part of the wait for input, and leave no event.
    assert sorted(detail["count"] for detail in loads) == [1, 300]
    assert all(detail["written_ns"] > 0 for detail in loads)
    assert "item7" not in json.dumps(loads)
    assert not [event for event in spool.events if event.name == "resume"]
