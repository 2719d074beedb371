"""Scenarios that no rule or threshold was tuned on: ordinary scripts of many styles.

Each is a script of its own in `held_out_scripts`, or a directory with `train.py` and the modules
that it imports. Look at the results, and do not change rules for them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.truth.scenario import INPUT, RESIDUAL, SCRIPT, Scenario

SCRIPTS = Path(__file__).resolve().parent / "held_out_scripts"
WORKERS = ("INPUT_BOUND", "WORKER_BOUND")


def held_out() -> list[Scenario]:
    """All of them, the healthy ones last."""
    return [*_loops(), *_input(), *_now_and_then(), *_whole_process(), *_healthy()]


def _loops() -> Iterator[Scenario]:
    """Work between the calls of the model, or inside a closure."""
    yield _scenario("trainer_callbacks", RESIDUAL)
    yield _scenario("helper_module", RESIDUAL)
    yield _scenario("functional_csv", RESIDUAL)
    yield _scenario("accumulation_norms", RESIDUAL)
    yield _scenario("gan_print", RESIDUAL)
    # What the games do comes before the next call of the policy, as making a batch does.
    yield _scenario("policy_gradient", (*RESIDUAL, "INPUT_WITHOUT_LOADER"))
    yield _scenario("argparse_logging", RESIDUAL)
    yield _scenario("autocast_best_model", RESIDUAL)
    yield _scenario("lbfgs_closure", RESIDUAL)
    yield _scenario("ema_drift", RESIDUAL)
    yield _scenario("confusion_matrix", RESIDUAL)


def _input() -> Iterator[Scenario]:
    """Input, of the main process and of workers."""
    yield _scenario("text_collator", INPUT)
    yield _scenario("image_augmentation", INPUT)
    yield _scenario("iterable_slow_items", (*INPUT, "PERIODIC_SPIKES"))
    # The sampler runs in the training thread: to blame the workers would be wrong.
    yield _scenario("hard_example_sampler", ("INPUT_BOUND",))
    yield _scenario("worker_tokenizer", WORKERS, has_share=False, workers_only=True)
    yield _scenario(
        "worker_slow_items",
        (*WORKERS, "HEAD_OF_LINE", "PREFETCH_LOW"),
        has_share=False,
        workers_only=True,
    )


def _now_and_then() -> Iterator[Scenario]:
    """What a few steps do."""
    yield _scenario("record_function_eval", ("EVAL_COST", "PERIODIC_SPIKES"))
    yield _scenario("dataclass_checkpoint", ("CHECKPOINT_COST", "PERIODIC_SPIKES"))
    yield _scenario("gc_collect", ("GC_PAUSES", "PERIODIC_SPIKES"))
    yield _scenario("compiled_lengths", ("RECOMPILES", "PERIODIC_SPIKES"))


def _whole_process() -> Iterator[Scenario]:
    """What no line of the training thread does."""
    # Its clean twin has a CPU of its own; what the lock alone takes, nobody measures.
    yield _scenario(
        "busy_thread", ("GIL_CONTENTION", "CPU_CONTENTION"), has_share=False, has_line=False
    )
    yield _scenario(
        "growing_history",
        ("CREEP_EARLY", "CREEP_CONFIRMED"),
        has_share=False,
        has_line=False,
        has_clean_twin=False,
        variables={"TRACEML_SAMPLE_INTERVAL_S": "0.2"},
    )


def _healthy() -> Iterator[Scenario]:
    """Nothing is wrong, however it looks."""
    for path in sorted(SCRIPTS.glob("healthy_*.py")):
        yield _scenario(path.stem, (), has_share=False, has_line=False, has_clean_twin=False)


def _scenario(stem: str, kinds: tuple[str, ...], **claims: Any) -> Scenario:
    texts = _texts(SCRIPTS / stem)
    name = stem.removeprefix("healthy_").replace("_", "-")
    name = f"held-out-{name}" if kinds else f"healthy-held-out-{name}"
    text = texts.pop(SCRIPT)
    return Scenario(name, text, kinds, held_out=True, files=texts, **claims)


def _texts(path: Path) -> dict[str, str]:
    """The files of a script by the names that they get beside each other."""
    if path.is_dir():
        return {file.name: file.read_text() for file in path.glob("*.py")}
    return {SCRIPT: path.with_suffix(".py").read_text()}
