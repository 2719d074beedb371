"""transformers, Accelerate and DeepSpeed: steps by their own count, and what they do beside them.

The programs are those of `examples/`, so that these run too.
"""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.boot.conftest import REPOSITORY
from tests.e2e.harness import Result, write
from tests.engines.conftest import IS_OLDER, Engine, assert_one_run, outline, same_lines
from traceml_agent.report.fold import fold
from traceml_agent.spool.reader import Spool

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # an environment is made first

EXAMPLES = REPOSITORY / "examples"
TORCHRUN = ("python", "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port")
OFFLINE = {"HF_HUB_OFFLINE": "1"}
ON_CPU = {"DS_ACCELERATOR": "cpu"}
WITH_TIMES = re.compile(r"runtime|WARNING|second|^\[\d{4}-")
"""Lines of the frameworks that are no two times the same."""


def told(result: Result) -> str:
    """What the program prints, without what a clock says."""
    return "".join(s for s in result.stdout.splitlines(True) if not WITH_TIMES.search(s))


def framework(result: Result, name: str) -> dict[str, Any]:
    """The entry of a framework in the summary."""
    found = fold(result.run_dir).payload["run_context"]["frameworks"]
    (entry,) = [entry for entry in found if entry["name"] == name]
    return entry


def micro_batches(spool: Spool) -> list[int]:
    """Of each step."""
    found: list[int] = []
    for batch in spool.batches:
        number = batch.micro_batches
        found += [number] * batch.count if isinstance(number, int) else number
    return found


def events(spool: Spool, name: str) -> list[tuple[object, int]]:
    """Call and step of each event of that name."""
    return [(event.detail["call"], event.step) for event in spool.events if event.name == name]


def steps_with(spool: Spool, phase: str) -> list[int]:
    """The steps in which a phase took time."""
    return [
        batch.first_step + index
        for batch in spool.batches
        for index, ns in enumerate(batch.phase_ns.get(phase, ()))
        if ns
    ]


def test_the_trainer_is_recorded_step_by_step_with_all_that_it_does_beside(
    engine: Engine,
) -> None:
    command = ("python", str(EXAMPLES / "huggingface_trainer.py"))
    on = engine.run(*command, **OFFLINE)
    off = engine.run(*command, enabled=False, **OFFLINE)
    assert (on.returncode, off.returncode) == (0, 0), on.stderr
    assert told(on) == told(off)
    (spool,) = on.spools
    assert spool.statuses["huggingface"] == "active"
    by_trainer = framework(on, "transformers")
    found = (
        f"{spool.end.updates} updates, {sum(micro_batches(spool))} micro-batches, "
        f"{by_trainer['evaluations']} evaluations, {by_trainer['checkpoints'] - 1} checkpoints"
    )
    assert on.stdout.splitlines()[-1] == found  # the program counts by callbacks of its own
    if IS_OLDER:  # its windows go on from one epoch into the next, and it ends before the last
        assert found.startswith("6 updates, 24 micro-batches, 3 evaluations")
        return
    assert found == "9 updates, 33 micro-batches, 5 evaluations, 3 checkpoints"
    assert (spool.end.steps, spool.end.updates, spool.end.samples) == (9, 9, 3 * 44)
    assert micro_batches(spool) == [4, 4, 3] * 3  # the last window of each epoch is short
    assert by_trainer | {"version": None} == {
        "name": "transformers", "version": None, "epochs": 3.0, "steps": 9, "trainings": 1,
        "evaluations": 5, "predictions": 1, "checkpoints": 4, "logs": 9 + 5 + 1,
    }  # fmt: skip
    at_steps = [("Trainer.evaluate", step) for step in (2, 4, 6, 8, 9)]
    assert events(spool, "eval") == [*at_steps, ("Trainer.predict", 10)]
    # One each, whatever files it writes.
    saved = [("Trainer._save_checkpoint", step) for step in (3, 6, 9)]
    assert events(spool, "checkpoint") == [*saved, ("Trainer.save_model", 10)]
    # The last step ends with its update: what follows lies outside of it.
    assert steps_with(spool, "eval") == [2, 4, 6, 8]
    assert steps_with(spool, "checkpoint") == [3, 6]
    assert spool.outside_ns["eval"] > 0 and spool.outside_ns["checkpoint"] > 0
    # The third is in the second epoch: both end with the sixth step. So is the prediction.
    assert outline(on) == [("epoch[0]", 3, 1), ("epoch[1]", 3, 2), ("epoch[2]", 3, 3)]


def test_each_rank_of_the_trainer_counts_its_own_micro_batches(engine: Engine, port: str) -> None:
    command = (*TORCHRUN, port, str(EXAMPLES / "huggingface_trainer.py"))
    on = engine.run(*command, **OFFLINE)
    off = engine.run(*command, enabled=False, **OFFLINE)
    assert (on.returncode, off.returncode) == (0, 0), on.stderr
    assert same_lines(told(on), told(off))
    steps, windows, evaluated = 6, [4, 2] * 3, [2, 4, 6, 7]
    if IS_OLDER:
        steps, windows, evaluated = 3, [4, 6, 2], [2, 4]
    assert_one_run(on, "torchrun", steps=steps)
    for spool in on.spools:
        assert micro_batches(spool) == windows
        assert [step for _, step in events(spool, "eval")] == evaluated
    assert fold(on.run_dir).payload["step_time"]["rank_balance"]["strategy"] == "ddp"


BY_HAND = """
import pickle, sys
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments
from traceml_agent.integrations import huggingface
from traceml_agent.integrations.huggingface import TraceMLTrainer, TraceMLTrainerCallback

torch.set_num_threads(1)


class Data(Dataset):
    def __init__(self, count):
        self.x = torch.randn(count, 8, generator=torch.Generator().manual_seed(count))

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"x": self.x[index], "labels": (self.x[index].sum() > 0).long()}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, x, labels=None):
        logits = self.layer(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Mine(TraceMLTrainer):
    def evaluate(self, *args, **kwargs):
        return super().evaluate(*args, **kwargs)

    def log(self, logs, *args, **kwargs):
        print({name: value for name, value in logs.items() if "loss" in name})
        super().log(logs, *args, **kwargs)


class Ending(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise KeyError("the fourth")


def trainer(make, callbacks, **more):
    torch.manual_seed(0)
    arguments = TrainingArguments(
        output_dir="out", use_cpu=True, per_device_train_batch_size=4, report_to=[],
        disable_tqdm=True, save_strategy="no", **more,
    )
    two = {"a": Data(5), "b": Data(6)}
    return make(
        model=Model(), args=arguments, train_dataset=Data(22), eval_dataset=two,
        callbacks=callbacks,
    )


huggingface.init()
huggingface.init()
by_hand = [TraceMLTrainerCallback]
first = trainer(Mine, by_hand, num_train_epochs=2, eval_strategy="epoch")
first.train()
first.evaluate()
trainer(TraceMLTrainer, by_hand, max_steps=7).train()
for kind in (TraceMLTrainer, TraceMLTrainerCallback):
    assert pickle.loads(pickle.dumps(kind)) is kind
trainer(lambda **rest: TraceMLTrainer(traceml_enabled=False, **rest), [Ending], max_steps=9).train()
"""


@pytest.mark.parametrize("begun", ["by both", "by hand alone", "by the program"])
def test_several_trainings_by_hand_each_end_where_they_end_and_nothing_counts_twice(
    engine: Engine, tmp_path: Path, begun: str
) -> None:
    script = write(tmp_path, BY_HAND)
    extra = {"TRACEML_SKIP": "huggingface"} if begun == "by hand alone" else {}
    if begun == "by the program":
        extra = {"TRACEML_DIR": str(tmp_path / "runs")}
    on = engine.run("python", script, enabled=begun != "by the program", **OFFLINE, **extra)
    off = engine.run("python", script, TRACEML_ENABLE="0", **OFFLINE)
    assert (on.returncode, off.returncode) == (1, 1)
    assert on.run_dir == off.run_dir  # the second one left none
    assert told(on) == told(off)
    assert on.other_stderr == off.other_stderr  # the traceback too: no frame of ours is in it
    assert "KeyError: 'the fourth'" in on.stderr and "traceml_agent" not in on.other_stderr
    (spool,) = on.spools
    assert spool.end.steps == 12 + 7 + 4
    assert spool.end.micro_batches == 12 + 7 + 4
    by_trainer = framework(on, "transformers")
    assert (by_trainer["trainings"], by_trainer["steps"]) == (3, 23)
    # Over two sets, which is one evaluation: after each epoch, and after the training.
    assert [step for _, step in events(spool, "eval")] == [6, 12, 13]


def test_a_loop_with_accelerate_is_recorded_and_its_saving_and_logging_have_names(
    engine: Engine,
) -> None:
    command = ("python", str(EXAMPLES / "accelerate_loop.py"))
    on = engine.run(*command)
    off = engine.run(*command, enabled=False)
    assert (on.returncode, off.returncode) == (0, 0), on.stderr
    assert on.stdout == off.stdout
    assert "12 updates" in on.stdout
    (spool,) = on.spools
    assert micro_batches(spool) == [3, 3, 3, 1] * 3
    # Accelerate fetches a batch ahead: the last window of an epoch fetches none.
    assert spool.end.samples == 3 * 40
    saved = [("Accelerator.save_state", step) for step in (4, 8, 12)]
    assert events(spool, "checkpoint") == saved
    entry = framework(on, "accelerate")
    assert (entry["checkpoints"], entry["logs"], entry["steps"]) == (3, 3, None)
    assert outline(on) == [(f"epoch[{number}]", 4, 1) for number in range(3)]


def test_each_rank_of_a_loop_with_accelerate_counts_its_own_micro_batches(
    engine: Engine, port: str
) -> None:
    command = (*TORCHRUN, port, str(EXAMPLES / "accelerate_loop.py"))
    on, off = engine.run(*command), engine.run(*command, enabled=False)
    assert (on.returncode, off.returncode) == (0, 0), on.stderr
    assert same_lines(told(on), told(off))
    assert_one_run(on, "torchrun", steps=6)
    for spool in on.spools:
        assert micro_batches(spool) == [3, 2] * 3
        assert [step for _, step in events(spool, "checkpoint")] == [2, 4, 6]
    assert outline(on) == [(f"epoch[{number}]", 2, 1) for number in range(3)]


@pytest.mark.parametrize(("stage", "ranks"), [("1", 1), ("1", 2), ("2", 2), ("3", 2)])
def test_an_update_of_deepspeed_is_one_in_however_many_pieces_its_optimizer_steps(
    engine: Engine, port: str, stage: str, ranks: int
) -> None:
    launcher = [str(ranks) if word == "2" else word for word in TORCHRUN]
    command = (*launcher, port, str(EXAMPLES / "deepspeed_zero.py"), "--stage", stage)
    on = engine.run(*command, **ON_CPU)
    assert on.returncode == 0, on.stderr
    steps = 12 // ranks
    assert_one_run(on, "torchrun", steps=steps, ranks=ranks)
    for spool in on.spools:
        assert micro_batches(spool) == [2] * steps
        assert spool.end.updates == steps
        assert [call for call, _ in events(spool, "checkpoint")] == [
            "DeepSpeedEngine.save_checkpoint"
        ]
    off = engine.run(*command, enabled=False, **ON_CPU)
    losses = [
        sorted(line for line in result.stdout.splitlines() if line.startswith("rank "))
        for result in (on, off)
    ]
    assert len(losses[0]) == ranks and losses[0] == losses[1]
