"""Reads what DistributedDataParallel measured of its own collectives, which C++ calls.

By its logging data, a private interface of torch: sums over the iterations that it samples (the
first ten, then one of a hundred). Read in the training thread only: reading takes the lock of the
reducer, which a backward pass that hangs would hold for ever.
"""

import inspect
import time
import weakref
from typing import TYPE_CHECKING, Any

from traceml_agent.capture.patches.disguise import hide_frame, like
from traceml_agent.capture.session import SESSION

if TYPE_CHECKING:
    from traceml_agent.schema.collectives import DdpTimes

MODULES_LIMIT = 8
"""Models wrapped by DDP that are watched; GANs have two."""


def install(torch: Any) -> None:
    """Notes each instance as it is made, by a weak reference."""
    parallel = torch.nn.parallel.DistributedDataParallel
    if not hasattr(parallel, "_get_ddp_logging_data"):
        return
    modules: list[weakref.ref[Any]] = []
    original = parallel.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            original(self, *args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            raise
        if len(modules) < MODULES_LIMIT:
            modules.append(weakref.ref(self))

    parallel.__init__ = like(__init__, original)
    parallel.__init__.__signature__ = inspect.signature(original)
    SESSION.looks["ddp"] = lambda at_end: _look(modules)


def _look(modules: list["weakref.ref[Any]"]) -> "list[DdpTimes]":
    from traceml_agent.schema.collectives import DdpTimes

    times = []
    for index, reference in enumerate(modules):
        module = reference()
        if module is None or getattr(module, "logger", None) is None:
            continue
        found = module._get_ddp_logging_data()
        if found.get("avg_backward_comm_time"):
            times.append(
                DdpTimes(
                    monotonic_ns=time.perf_counter_ns(),
                    model=index,
                    step=SESSION.tracker.step,
                    iterations=found.get("iteration", 0),
                    backend=str(found.get("backend_name", "")),
                    bytes=found.get("total_parameter_size_bytes"),
                    buckets=found.get("num_buckets_reduced"),
                    forward_ns=found.get("avg_forward_compute_time"),
                    backward_ns=found.get("avg_backward_compute_time"),
                    communication_ns=found["avg_backward_comm_time"],
                    overlap_ns=found.get("avg_backward_compute_comm_overlap_time"),
                )
            )
    return times
