"""Notes the calls of `torch.distributed` from Python, and the waits for their handles.

A call is no phase: it may lie inside forward or backward (FSDP), or in none. The calls go to a log
of their own. Not seen: what C++ calls (the reducer of DistributedDataParallel), and the functional
collectives of DTensor, which go to `torch.ops` directly: see ddp.py and flight.py.

Dynamo rewrites collectives that it knows by the identity of the function. Its table is made of
torch's names when it is first needed, and so of these functions; where it was made before, they
are added.
"""

import inspect
import os
import sys
from collections.abc import Callable
from time import perf_counter_ns as clock
from types import FunctionType
from typing import Any

from traceml_agent.capture.patches import ddp, flight
from traceml_agent.capture.patches.collective_watch import Watch
from traceml_agent.capture.patches.disguise import UNCOUNTED, hide_frame, like, skipped
from traceml_agent.capture.session import SESSION

OPERATIONS = {
    "all_reduce": "tensor",
    "all_reduce_coalesced": "tensors",
    "all_gather": "tensor_list",
    "all_gather_single": "output_tensor",
    "all_gather_into_tensor": "output_tensor",
    "_all_gather_base": "output_tensor",
    "all_gather_coalesced": None,
    "reduce_scatter": "input_list",
    "reduce_scatter_single": "input",
    "reduce_scatter_tensor": "input",
    "_reduce_scatter_base": "input",
    "broadcast": "tensor",
    "reduce": "tensor",
    "gather": "tensor",
    "scatter": "tensor",
    "all_to_all": "input_tensor_list",
    "all_to_all_single": "input",
    "barrier": None,
    "monitored_barrier": None,
    "all_gather_object": None,
    "gather_object": None,
    "broadcast_object_list": None,
    "scatter_object_list": None,
    "send": "tensor",
    "recv": "tensor",
    "isend": "tensor",
    "irecv": "tensor",
    "batch_isend_irecv": None,
    "send_object_list": None,
    "recv_object_list": None,
}
"""What is watched, and the argument whose bytes are told: the larger one of what goes in and comes
out; None: no tensor says it. A name that this torch does not have is left out."""


def install(torch: Any) -> str:
    """Patches every operation of `torch.distributed` in all modules that hold it."""
    distributed = getattr(torch, "distributed", None)
    if distributed is None or not distributed.is_available():
        return "not in: this torch was built without torch.distributed"
    watch = SESSION.collectives = Watch(torch)
    os.register_at_fork(after_in_child=watch.forget)
    c10d = distributed.distributed_c10d
    wrappers: dict[Any, Any] = {}
    for name in OPERATIONS:
        original = getattr(c10d, name, None)
        if type(original) is FunctionType:
            wrappers[original] = _wrapper(watch, name, original)
    for name, module in list(sys.modules.items()):
        if name.startswith("torch.distributed") and module is not None:
            _replace(vars(module), wrappers)
    work = c10d.Work
    work.wait = _wait(watch, work.wait)
    ddp.install(torch)
    flight.install(torch, watch)
    return "active"


def _replace(names: dict[str, Any], wrappers: dict[Any, Any]) -> None:
    for name, value in list(names.items()):
        # By type: `isinstance` would ask objects that warn of their deprecation.
        if type(value) is FunctionType and value in wrappers:
            names[name] = wrappers[value]
    remaps = names.get("traceable_collective_remaps")
    if isinstance(remaps, dict):
        for original in [key for key in remaps if key in wrappers]:
            remaps[wrappers[original]] = remaps[original]


def _wrapper(watch: Watch, name: str, original: Any) -> Any:
    tracker, log, is_compiling = SESSION.tracker, watch.log, watch.is_compiling
    passes, note = watch.passes, watch.note
    group_of = _argument(original, "group")
    payload_of = _argument(original, OPERATIONS[name])
    if name == "batch_isend_irecv":
        operations_of = _argument(original, "p2p_op_list")

        def group_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return operations_of(args, kwargs)[0].group

        skipped(group_of)

    def collective(*args: Any, **kwargs: Any) -> Any:
        if is_compiling() or passes():
            return original(*args, **kwargs)
        try:
            log.busy = True
            begun = (clock(), tracker.step + 1, tracker.phase)
            result = original(*args, **kwargs)
            ended = clock()
        except BaseException as error:
            hide_frame(error)
            raise
        finally:
            log.busy = False
        note(name, group_of(args, kwargs), payload_of(args, kwargs), result, begun, ended)
        return result

    return _disguised(collective, original)


def _wait(watch: Watch, original: Any) -> Any:
    tracker, log, is_compiling, passes = (
        SESSION.tracker,
        watch.log,
        watch.is_compiling,
        watch.passes,
    )

    def wait(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_compiling() or id(self) not in log.pending or passes():
            return original(self, *args, **kwargs)
        try:
            begun = (clock(), tracker.step + 1, tracker.phase)
            result = original(self, *args, **kwargs)
            ended = clock()
        except BaseException as error:
            hide_frame(error)
            raise
        watch.note_wait(self, begun, ended)
        return result

    like(wait, original)
    skipped(wait)
    return wait


def _disguised(wrapper: Any, original: Any) -> Any:
    """The wrapper with the signature of the original, and skipped by Dynamo where that is.

    Dynamo binds the arguments of a call by `inspect.signature`, and skips frames by the name of
    their file: it must not try to compile this one.
    """
    like(wrapper, original)
    wrapper.__dict__.update(original.__dict__)  # __wrapped__ and __deprecated__, of torch
    for name in ("__annotations__", "__annotate__"):  # the second one since Python 3.14
        if hasattr(original, name):
            setattr(wrapper, name, getattr(original, name))
    if not hasattr(original, "__wrapped__"):
        wrapper.__signature__ = inspect.signature(original)
    # With the line of the original, `inspect.getsource` finds its text through the module.
    code = original.__code__
    # And its name, which the stack of a hang shows.
    names = {"co_name": original.__name__, "co_qualname": original.__qualname__}
    wrapper.__code__ = wrapper.__code__.replace(
        co_filename=code.co_filename + UNCOUNTED,
        co_firstlineno=code.co_firstlineno,
        **{name: value for name, value in names.items() if hasattr(code, name)},  # 3.11 has both
    )
    return wrapper


def _argument(function: Any, name: str | None) -> Callable[[tuple[Any, ...], dict[str, Any]], Any]:
    """A function that finds an argument of a call; None where it was not given."""
    code = inspect.unwrap(function).__code__
    names = code.co_varnames[: code.co_argcount]
    place = names.index(name) if name in names else len(names)

    def find(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[place] if place < len(args) else kwargs.get(name or "")

    skipped(find)
    return find
