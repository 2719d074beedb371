"""Times `torch.autograd.backward`, which `Tensor.backward`, GradScaler and LBFGS all end in."""

from _thread import get_ident
from collections.abc import Callable
from typing import Any

from traceml_agent.capture.patches.disguise import compiling_test, hide_frame, like
from traceml_agent.capture.patches.flops import counted, counting
from traceml_agent.capture.session import SESSION
from traceml_agent.guard import Gate
from traceml_agent.schema.phases import BACKWARD, OPTIMIZER


def install(torch: Any) -> str:
    """Patches `torch.autograd.backward` and `torch.autograd.grad`."""
    autograd, is_compiling = torch.autograd, compiling_test(torch)
    count = counting(torch)
    plain = autograd.backward
    inner = plain if count is None else counted(plain, count, in_forward=False)
    autograd.backward = timed_backward(inner, is_compiling, SESSION.gates["backward"])
    autograd.grad = _grad(autograd.grad, is_compiling)
    return "active"


def timed_backward(original: Any, is_compiling: Callable[[], bool], gate: Gate) -> Any:
    """The call, as the phase backward and a proof of training, until the gate is shut."""
    tracker, rest = SESSION.tracker, SESSION.rest

    def backward(*args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return original(*args, **kwargs)
        if gate.shut:
            counts = rest.is_on and not rest.is_within and get_ident() == tracker.owner
            if not counts:
                return original(*args, **kwargs)
            rest.is_within = True
            try:
                result = original(*args, **kwargs)
            except BaseException as error:
                rest.is_within = False
                rest.backwards += 1
                hide_frame(error)
                raise
            rest.is_within = False
            rest.backwards += 1
            return result
        phase = tracker.phase
        if (phase >= 0 and phase != OPTIMIZER) or (
            get_ident() != tracker.owner and not SESSION.adopt_thread()
        ):
            return original(*args, **kwargs)
        previous = tracker.begin_backward()
        try:
            result = original(*args, **kwargs)
        except BaseException as error:
            tracker.end_backward(previous)
            hide_frame(error)
            raise
        tracker.end_backward(previous)
        return result

    return like(backward, original)


def _grad(original: Any, is_compiling: Callable[[], bool]) -> Any:
    tracker, gate, rest = SESSION.tracker, SESSION.gates["backward"], SESSION.rest

    def grad(*args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return original(*args, **kwargs)
        if gate.shut:
            rest.wake()  # seldom, and of several kinds
            if gate.shut:
                return original(*args, **kwargs)
        phase = tracker.phase
        if (phase >= 0 and phase != OPTIMIZER) or (
            get_ident() != tracker.owner and not SESSION.adopt_thread()
        ):
            return original(*args, **kwargs)
        # With create_graph it is a part of a loss (a gradient penalty, an inner loop): its time
        # is backward's, but it ends no micro-batch.
        ends_batch = not kwargs.get("create_graph", False)
        previous = tracker.begin_backward() if ends_batch else tracker.enter(BACKWARD)
        try:
            return original(*args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            raise
        finally:
            if ends_batch:
                tracker.end_backward(previous)
            else:
                tracker.leave(previous)

    return like(grad, original)
