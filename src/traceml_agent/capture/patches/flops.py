"""Counts the floating-point operations of one step (TRACEML_FLOPS).

Those of matrix products, convolutions and attention, by the formulas of torch's FlopCounterMode.

A dispatch mode is on during the outermost forward calls and the backward passes of that step, never
between them: a mode of the program that begins in a step and ends in the next one stays in order.
Where torch.compile is in use nothing is counted: under a mode it would run without compilation.
"""

from _thread import get_ident
from typing import Any

from traceml_agent.capture.patches.disguise import hide_frame, like
from traceml_agent.capture.session import SESSION
from traceml_agent.guard import guard
from traceml_agent.schema.records import FLOPS_EVENT

COUNTED_STEP = 20
"""The last closed step when counting begins. Chosen: after warm-up, and before most runs end."""
_CALLS = "torch/_ops.py"
_KEEPS_OUT = ("torch/_compile.py", "torch/_dynamo/eval_frame.py")
NO_COUNT = "torch.compile is in use"


class FlopCount:
    """What is counted in one step. Belongs to the training thread."""

    __slots__ = ("_mode", "custom", "forward", "is_on", "is_over", "other", "total")

    def __init__(self, mode: Any) -> None:
        self._mode = mode
        self.forward = self.total = 0
        self.custom = 0  # operations of libraries, of which no formula is known
        self.is_on = self.is_over = False
        self.other: dict[str, int] = {}  # data type: its part

    def is_due(self) -> bool:
        """Whether this call belongs to the step that is counted; ends the count after it."""
        if self.is_over or self.is_on or SESSION.tracker.step < COUNTED_STEP:
            return False
        if SESSION.tracker.step > COUNTED_STEP or SESSION.compiled:
            self._end()
            return False
        return get_ident() == SESSION.tracker.owner

    def run(self, function: Any, args: Any, kwargs: Any, *, in_forward: bool) -> Any:
        """Calls a function and counts what it does."""
        before = self.total
        self.is_on = True
        try:
            with self._mode(self):
                result = function(*args, **kwargs)
        except BaseException as error:
            _hide_mode(error)
            hide_frame(error)
            raise
        finally:
            self.is_on = False
            if in_forward:
                self.forward += self.total - before
        return result

    def add(self, packet: Any, formula: Any, args: Any, kwargs: Any, out: Any) -> None:
        """One operation."""
        with guard("flops"):
            count = int(formula(*args, **kwargs, out_val=out))
            self.total += count
            name = str(getattr(args[0], "dtype", "")).removeprefix("torch.")
            self.other[name] = self.other.get(name, 0) + count

    def _end(self) -> None:
        self.is_over = True
        if SESSION.compiled:
            SESSION.set_status("flops", NO_COUNT)
            return
        SESSION.set_status("flops", "active" if self.total else "no operation with a formula")
        if self.total:
            dtype = max(self.other, key=lambda name: self.other[name])
            detail: dict[str, str | int | float | None] = {
                "flops": self.total,
                "forward_flops": self.forward,
                "dtype": dtype,
                "tf32": int(bool(SESSION.torch.backends.cuda.matmul.allow_tf32)),
                "custom_operations": self.custom,
            }
            SESSION.note_event(FLOPS_EVENT, 0, detail)


def _hide_mode(error: BaseException) -> None:
    """Takes the frames of the mode from the end of the traceback: there an operation raised."""
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append(traceback)
        traceback = traceback.tb_next
    files = [found.tb_frame.f_code.co_filename for found in frames]
    at = len(frames) - 1
    while at > 0 and files[at].endswith(_CALLS):
        at -= 1
    if frames[at].tb_frame.f_globals is not globals():
        return
    # Torch calls the mode through a function that keeps Dynamo out.
    while at > 1 and files[at - 1].endswith(_KEEPS_OUT):
        at -= 1
    if at > 0:
        frames[at - 1].tb_next = None


def counting(torch: Any) -> FlopCount | None:
    """The count that the patches of forward and backward share; None without TRACEML_FLOPS."""
    if not SESSION.config.flops:
        return None
    count: FlopCount | None = SESSION.flops
    if count is None:
        with guard("flops"):
            count = SESSION.flops = FlopCount(_mode_of(torch))
            SESSION.set_status("flops", f"step {COUNTED_STEP + 1} was not reached")
    return count


def counted(original: Any, count: FlopCount, *, in_forward: bool) -> Any:
    """The call, with its operations counted if it is due."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if not count.is_due():
            return original(*args, **kwargs)
        try:
            return count.run(original, args, kwargs, in_forward=in_forward)
        except BaseException as error:
            hide_frame(error)
            raise

    return like(call, original)


def _mode_of(torch: Any) -> Any:
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry, sdpa_flop_count

    on_cpu = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)

    def attention(query: Any, key: Any, value: Any, *_: Any, out_val: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query.shape, key.shape, value.shape))

    formulas = {**flop_registry, on_cpu: attention}

    class Mode(TorchDispatchMode):  # type: ignore[misc]  # a class of torch
        supports_higher_order_operators = True

        def __init__(self, count: FlopCount) -> None:
            super().__init__()
            self.count = count

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = func(*args, **(kwargs or {}))
            packet = getattr(func, "_overloadpacket", func)
            formula = formulas.get(packet)
            if formula is not None:
                self.count.add(packet, formula, args, kwargs or {}, out)
            elif getattr(func, "namespace", "aten") not in ("aten", "prim"):
                self.count.custom += 1
            return out

    return Mode
