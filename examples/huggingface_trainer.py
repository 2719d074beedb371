"""The Trainer of transformers on a tiny GPT-2: evaluates, logs and saves while it trains.

pip install transformers accelerate
TRACEML_ENABLE=1 python examples/huggingface_trainer.py
TRACEML_ENABLE=1 torchrun --nproc-per-node 2 examples/huggingface_trainer.py
"""

import argparse
import tempfile
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import (
    EvalPrediction,
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

LENGTH = 32


class Windows(Dataset):
    """Pieces of a text, a character a token."""

    def __init__(self, text: str, count: int, seed: int) -> None:
        codes = torch.tensor([min(ord(character), 127) for character in text])
        generator = torch.Generator().manual_seed(seed)
        starts = torch.randint(0, len(codes) - LENGTH, (count,), generator=generator)
        self.windows = [codes[start : start + LENGTH] for start in starts]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.windows[index], "labels": self.windows[index]}


class Counting(TrainerCallback):
    """What the Trainer says that it does, to be compared with the summary."""

    def __init__(self) -> None:
        self.micro_batches = self.evaluations = self.checkpoints = 0

    def on_substep_end(self, args, state, control, **kwargs) -> None:
        self.micro_batches += 1

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.micro_batches += 1

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        self.evaluations += 1

    def on_save(self, args, state, control, **kwargs) -> None:
        self.checkpoints += 1


def accuracy(predicted: EvalPrediction) -> dict[str, float]:
    hits = predicted.predictions[:, :-1].argmax(-1) == predicted.label_ids[:, 1:]
    return {"accuracy": float(hits.mean())}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    text = Path(__file__).read_text(encoding="utf-8")
    model = GPT2LMHeadModel(
        GPT2Config(
            n_layer=2, n_head=2, n_embd=64, vocab_size=128, n_positions=LENGTH,
        )
    )  # fmt: skip
    counting = Counting()
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=directory,
                use_cpu=not torch.cuda.is_available(),
                num_train_epochs=options.epochs,
                per_device_train_batch_size=4,
                gradient_accumulation_steps=4,
                learning_rate=1e-3,
                eval_strategy="steps",
                eval_steps=2,
                save_steps=3,
                logging_steps=1,
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=Windows(text, 44, seed=0),
            eval_dataset=Windows(text, 20, seed=1),
            compute_metrics=accuracy,
            callbacks=[counting],
        )
        trainer.train()
        test = trainer.predict(Windows(text, 12, seed=2))
        trainer.save_model()
    if trainer.is_world_process_zero():
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        print(f"losses {losses}")
        print(f"test loss {test.metrics['test_loss']}, {test.metrics['test_accuracy']:.2%} right")
        print(
            f"{trainer.state.global_step} updates, {counting.micro_batches} micro-batches, "
            f"{counting.evaluations} evaluations, {counting.checkpoints} checkpoints"
        )


if __name__ == "__main__":
    main()
