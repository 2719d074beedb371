"""The phases a step is made of. Their order is the order of every table."""

PHASES = (
    "input_wait",
    "h2d",
    "forward",
    "backward",
    "optimizer",
    "eval",
    "checkpoint",
    "compile",
    "logging",
)
"""What claims time in a step. What none claims is the residual."""

(
    INPUT_WAIT, H2D, FORWARD, BACKWARD, OPTIMIZER, EVAL, CHECKPOINT, COMPILE, LOGGING,
) = range(len(PHASES))  # fmt: skip

UNUSUAL = (EVAL, CHECKPOINT, COMPILE, LOGGING)
"""Phases that a step has seldom."""

COMPUTE_PHASES = ("forward", "backward", "optimizer")
"""The phases whose sum is `compute`."""

LONG_PHASES = ("eval", "checkpoint", "compile")
"""Phases that take as long as they take: a rank in one of them is at work, and does not hang."""

DEVICE_PHASES = PHASES[:LOGGING]
"""The phases that have a device time where a CUDA device is used: what the device did meanwhile. A
loop may log hundreds of times in one step, which is work of the host: on the clock of the device it
is a part of the residual."""

PATCH_OF_PHASE = {
    "input_wait": "dataloader",
    "h2d": "transfer",
    "forward": "forward",
    "backward": "backward",
    "optimizer": "optimizer",
    "eval": "forward",
    "checkpoint": "checkpoint",
    "compile": "compile",
    "logging": "logging",
}
"""The patch that measures a phase. A phase whose patch is not in is `null`, not 0."""
