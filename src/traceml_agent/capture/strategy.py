"""How the ranks train together, told from the model: ddp, fsdp, fsdp2; None of a plain model."""

import sys
from typing import Any

MODULES_LOOKED_AT = 2000
"""Chosen: under 2 ms, once for each type of root; wrappers lie near the root."""


def strategy_of_model(root: Any) -> str | None:
    """The wrapper of torch's that is found first, from the root down.

    Reads `_modules` alone: no method of the model is called. What was never imported is not there.
    """
    parallel, fsdp = map(sys.modules.get, ("torch.nn.parallel", "torch.distributed.fsdp"))
    wrappers = (
        ("ddp", getattr(parallel, "DistributedDataParallel", None)),
        ("fsdp", getattr(fsdp, "FullyShardedDataParallel", None)),
        ("fsdp2", getattr(fsdp, "FSDPModule", None)),
    )
    known = [(name, kind) for name, kind in wrappers if kind is not None]
    level = [root]
    left = MODULES_LOOKED_AT
    while level and left > 0:
        below = []
        for module in level:
            left -= 1
            for name, kind in known:
                if isinstance(module, kind):
                    return name
            children = getattr(module, "__dict__", {}).get("_modules") or {}
            below += [child for child in children.values() if child is not None]
        level = below[: max(0, left)]
    return None
