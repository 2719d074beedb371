"""DeepSpeed with ZeRO, the optimizer stepping in pieces, on GPUs or on CPUs.

pip install deepspeed
TRACEML_ENABLE=1 deepspeed examples/deepspeed_zero.py --stage 3
DS_ACCELERATOR=cpu TRACEML_ENABLE=1 torchrun --nproc-per-node 2 examples/deepspeed_zero.py
"""

import argparse
import os
import tempfile

import deepspeed
import torch
from torch import nn
from torch.utils.data import TensorDataset

CPU = os.environ.get("DS_ACCELERATOR") == "cpu"


def settings(stage: int) -> dict[str, object]:
    return {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        # As small as this model, so that ZeRO 3 has several groups as it has for a large one.
        "zero_optimization": {"stage": stage, "sub_group_size": 500},
        "optimizer": {"type": "Adam", "params": {"lr": 1e-2, "torch_adam": True}},
        "steps_per_print": 1_000_000,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--stage", type=int, default=3)
    parser.add_argument("--local_rank", type=int, default=0)  # the launcher of DeepSpeed gives it
    options = parser.parse_args()
    torch.manual_seed(0)
    if CPU:
        # Collectives in shared memory, in C++ that would be compiled for half a minute first.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo" if CPU else None)
    inputs = torch.randn(96, 16)
    labels = (inputs.sum(1) > 0).long()
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 2))
    engine, _, loader, _ = deepspeed.initialize(
        model=model,
        model_parameters=model.parameters(),
        training_data=TensorDataset(inputs, labels),
        config=settings(options.stage),
    )
    losses = []
    for batch, wanted in loader:
        batch, wanted = batch.to(engine.device), wanted.to(engine.device)
        loss = nn.functional.cross_entropy(engine(batch), wanted)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    with tempfile.TemporaryDirectory() as directory:
        engine.save_checkpoint(directory)
    # One write a rank: lines of several ranks do not mix.
    print(
        f"rank {engine.global_rank}: {engine.global_steps} updates, {losses}\n", end="", flush=True
    )


if __name__ == "__main__":
    main()
