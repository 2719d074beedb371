"""Times the outermost `nn.Module.__call__`: the phases forward and eval.

While discovering, the patch sits on `nn.Module` itself and every submodule pays a look at the
tracker. After a few steps it moves to the types that were called outermost, and submodules of
other types pay nothing. Where the program compiles, it stays where it is: moving it would
invalidate Dynamo's guards, and compiled submodules do not come by here.
"""

from _thread import get_ident
from typing import Any

from traceml_agent.capture.patches.disguise import UNCOUNTED, compiling_test, hide_frame, like
from traceml_agent.capture.patches.flops import counted, counting
from traceml_agent.capture.session import SESSION
from traceml_agent.guard import guard
from traceml_agent.schema.phases import EVAL, FORWARD, OPTIMIZER

DISCOVERY_STEPS = 3
"""Chosen: loops that alternate (two models, a loss every other step) show all in three steps."""
DISCOVERY_LIMIT = 16
"""How often discovery may start again: once an epoch at first, never for ever."""


def install(torch: Any) -> str:
    """Patches `nn.Module.__call__`."""
    Discovery(torch)
    return "active"


class Discovery:
    """Where the patch sits: on `nn.Module`, or on the types of the outermost modules."""

    def __init__(self, torch: Any) -> None:
        self.module_class = torch.nn.Module
        self.original = self.module_class.__call__
        self.roots: set[type] = set()
        self.patched: set[type] = set()
        self.wide = False
        self.rounds = 0
        self.until = DISCOVERY_STEPS
        self.wrapper = _wrapper(torch, self)
        self._widen()
        # cloudpickle sends classes of `__main__` by value, with their `__call__`. It sends a
        # function by reference if it is found under its name, and this one's name is torch's:
        # whoever unpickles such a class gets torch's own function.
        self.module_class._wrapped_call_impl = self.wrapper
        SESSION.discovery = self

    def step_closed(self, step: int) -> None:
        """Narrows when the types are known; starts again when a step saw no module called."""
        if not self.wide:
            self.start_again(step)
        elif step >= self.until:
            self._narrow()

    def start_again(self, step: int) -> None:
        """Looks at all modules for the next steps: an epoch ended, or a model was not seen."""
        if SESSION.compiled or self.rounds >= DISCOVERY_LIMIT:
            return
        if self.module_class.__call__ is not self.original:
            return  # somebody else's patch lies there now, and stays
        self.rounds += 1
        self.until = step + DISCOVERY_STEPS
        self._widen()
        SESSION.tracker.on_close = SESSION.close_step  # which narrows again

    def leave(self) -> None:
        """Takes the patch off. Where the program compiles, or patched over it, it stays, shut."""
        SESSION.discovery = None
        if SESSION.compiled:
            return
        if self.module_class.__call__ is self.wrapper:
            self.module_class.__call__ = self.original
        for root in self.patched:
            if vars(root).get("__call__") is self.wrapper:
                del root.__call__

    def _widen(self) -> None:
        self.module_class.__call__ = self.wrapper
        self.wide = True

    def _narrow(self) -> None:
        if SESSION.compiled or not self.roots or not all(map(self._can_carry, self.roots)):
            self.until = 1 << 62
            return
        for root in self.roots - self.patched:
            root.__call__ = self.wrapper  # type: ignore[method-assign]  # the patch
            self.patched.add(root)
        self.module_class.__call__ = self.original
        self.wide = False

    def _can_carry(self, root: type) -> bool:
        # A type with a `__call__` of its own (also each GraphModule and ScriptModule) keeps it.
        return root in self.patched or root.__call__ is self.wrapper


def _wrapper(torch: Any, discovery: Discovery) -> Any:
    tracker, gate, rest = SESSION.tracker, SESSION.gates["forward"], SESSION.rest
    is_compiling = compiling_test(torch)
    is_grad_enabled = torch.is_grad_enabled
    module_class = discovery.module_class
    original = plain = discovery.original
    count = counting(torch)
    if count is not None:
        original = counted(plain, count, in_forward=True)

    def _wrapped_call_impl(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return plain(self, *args, **kwargs)
        # On a narrowed type, torch's own tools (fx) may have patched `Module.__call__` meanwhile.
        call = module_class.__call__
        if call is plain or call is wrapper:
            call = original
        if rest.is_on:
            if rest.is_within or get_ident() != tracker.owner:
                return call(self, *args, **kwargs)
            if is_grad_enabled():
                rest.is_within = True
                try:
                    result = call(self, *args, **kwargs)
                except BaseException as error:
                    rest.is_within = False
                    hide_frame(error)
                    raise
                rest.is_within = False
                return result
            rest.wake()  # an evaluation
        phase = tracker.phase
        if gate.shut or (phase >= 0 and phase != OPTIMIZER) or get_ident() != tracker.owner:
            return call(self, *args, **kwargs)
        if discovery.wide:
            _discover(discovery, self)
        if not is_grad_enabled():
            previous = tracker.enter(EVAL)
            try:
                result = (plain if call is original else call)(self, *args, **kwargs)
            except BaseException as error:
                tracker.end_eval(previous)
                hide_frame(error)
                raise
            tracker.end_eval(previous)
            return result
        previous = tracker.enter(FORWARD)
        try:
            result = call(self, *args, **kwargs)
        except BaseException as error:
            tracker.end_forward(previous, self.training)
            hide_frame(error)
            raise
        tracker.end_forward(previous, self.training)
        return result

    wrapper = like(_wrapped_call_impl, plain)
    # Dynamo goes by the file when it decides whether to compile a frame, and compiles none of
    # torch's own: not the calls of the layers of a Sequential that is compiled.
    file_name = plain.__code__.co_filename + UNCOUNTED
    wrapper.__code__ = wrapper.__code__.replace(co_filename=file_name)
    return wrapper


def _discover(discovery: Discovery, module: Any) -> None:
    with guard("discovery"):
        if type(module) not in discovery.roots:
            discovery.roots.add(type(module))
            SESSION.look_for_strategy(module)
        if SESSION.snapshots is not None:
            SESSION.snapshots.saw(module)
        if SESSION.tracker.probe.wants_parameter():
            SESSION.tracker.probe.watch(module)
