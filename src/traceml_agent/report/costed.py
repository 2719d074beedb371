"""What the findings are about whose fix is given a price, and the words for it."""

PHASE_OF = {
    **dict.fromkeys(
        (
            "INPUT_BOUND", "MAIN_PROCESS_LOADING", "WORKER_BOUND", "STORAGE_BOUND",
            "TRANSFER_BOUND", "HEAD_OF_LINE", "WORKERS_OVERSUBSCRIBED", "PREFETCH_LOW",
            "EPOCH_RESTART",
        ),
        "input_wait",
    ),
    "H2D_BOUND": "h2d",
    "INPUT_WITHOUT_LOADER": "residual",
}  # fmt: skip
"""The phase that a kind of finding is about, or a part of."""
RESIDUAL_HEAVY = "RESIDUAL_HEAVY"
LINES = ("SLOW_LINE", "HOST_SYNC")
"""These name their own."""
LOSS_OF = {
    "GC_PAUSES": "gc",
    "CPU_THROTTLED": "throttled",
    "CPU_CONTENTION": "contention",
    "CPU_OVERSUBSCRIBED": "contention",
    "CHECKPOINT_COST": "checkpoint",
    "EVAL_COST": "eval",
    "LOGGING_COST": "logging",
    "RECOMPILES": "recompile",
    "PROCESS_STOPPED": "stopped",
}
"""The loss that a kind of finding is about."""
WITHOUT = {
    "input_wait": "the wait for input",
    "h2d": "the copies",
    "residual": "that time",
    "gc": "collections",
    "throttled": "throttling",
    "contention": "the wait for a core",
    "checkpoint": "checkpoints",
    "eval": "evaluation",
    "logging": "logging",
    "recompile": "recompilations",
    "stopped": "the stops",
}
METHOD = {
    "input_wait": "the wait for batches taken out of each step: input hidden behind the training",
    "h2d": "the copies to the device taken out of each step",
    "residual": "all time in no phase taken out of each step: the most that can be gained",
    "logging": "logging taken out of each step",
    "line": "the share of the phase that was sampled in this line, by its interval, taken out of "
    "each step",
    "part": "its part of the phase taken out of each step",
    "loss": "what was measured of it taken out of each step",
    "straggler": "each step computed anew with the work of the slow ranks replaced by the median's",
    "transfer": "the transfers taken out of the steps; the waiting for other ranks stays",
    "pages": "the time in the kernel for new pages taken out of the steps, all of it and by thread",
    "total": "all of it taken out of the steps",
}
