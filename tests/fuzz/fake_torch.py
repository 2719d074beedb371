"""The part of torch that the patches touch, without any work in it: its time is a fake clock.

The patches themselves are the real ones. So a generated program reaches the tracker in just the
orders of calls, and leaves it by just the exceptions, that a real one could.
"""

import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from traceml_agent.capture import bracketed, open_step, steps
from traceml_agent.capture.patches import (
    backward,
    checkpoint,
    compile,
    dataloader,
    forward,
    optimizer,
    transfer,
)
from traceml_agent.capture.session import SESSION

Body = Callable[[], Any]
"""User code that runs inside a call of torch."""


class Clock:
    """Nanoseconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_000

    def __call__(self) -> int:
        return self.now


class Parameter:
    """What an UpdateProbe watches."""

    requires_grad = True

    def __init__(self) -> None:
        self._version = 0

    def is_inference(self) -> bool:
        return False


class FakeTorch(types.ModuleType):
    """A module `torch` with the real patches installed in it."""

    def __init__(self) -> None:
        super().__init__("torch")
        self.grad_enabled = True
        self.device = type("device", (), {})
        self.dtype = type("dtype", (), {})
        self.Tensor = _tensor_class()
        self.nn = types.SimpleNamespace(Module=_module_class())
        self.autograd = types.SimpleNamespace(backward=_backward, grad=_grad)
        self.amp = types.SimpleNamespace(GradScaler=_scaler_class())
        self.compiler = types.SimpleNamespace(is_dynamo_compiling=lambda: False)
        self.loaders = types.SimpleNamespace(
            _BaseDataLoaderIter=_iterator_class(), DataLoader=_loader_class()
        )
        self.utils = types.SimpleNamespace(data=types.SimpleNamespace(dataloader=self.loaders))
        self.serialization = types.SimpleNamespace()
        self.save = _save
        self.load = _load
        self.optimizer_module = _optimizer_module()
        self.compilations = _Compilations()
        with _in_place(self._modules(everything=True)):
            for each in (dataloader, transfer, forward, backward, optimizer, checkpoint, compile):
                assert each.install(self) == "active"

    def is_grad_enabled(self) -> bool:
        return self.grad_enabled

    def _modules(self, everything: bool) -> dict[str, types.ModuleType]:
        modules = {"torch.optim.optimizer": self.optimizer_module}
        if everything:
            callback = types.ModuleType("torch._dynamo.callback")
            callback.callback_handler = self.compilations
            modules |= {
                "torch": self,
                "torch._dynamo": types.ModuleType("torch._dynamo"),
                "torch._dynamo.callback": callback,
            }
        return modules

    @contextmanager
    def imported(self, clock: Clock) -> Iterator[None]:
        """While open, this is the torch that the agent sees, and this its clock."""
        with (
            _in_place(self._modules(everything=False)),
            patch.object(bracketed, "clock", clock),
            patch.object(open_step, "clock", clock),
            patch.object(steps, "clock", clock),
        ):
            yield


@contextmanager
def _in_place(modules: dict[str, types.ModuleType]) -> Iterator[None]:
    """`sys.modules` with these; what is imported meanwhile stays (patch.dict would undo that)."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def fake_torch() -> FakeTorch:
    """A FakeTorch, without a trace in the session but for its tracker, which the patches keep."""
    kept = dict(vars(SESSION))
    try:
        return FakeTorch()
    finally:
        vars(SESSION).clear()
        vars(SESSION).update(kept)


class _Compilations:
    """Dynamo's handler of callbacks: only the outermost compilation is told."""

    def __init__(self) -> None:
        self.starts: list[Body] = []
        self.ends: list[Body] = []
        self.depth = 0

    def register_start_callback(self, callback: Body) -> None:
        self.starts.append(callback)

    def register_end_callback(self, callback: Body) -> None:
        self.ends.append(callback)

    def run(self, body: Body) -> None:
        self.depth += 1
        try:
            if self.depth == 1:
                for start in self.starts:
                    start()
            body()
        finally:
            if self.depth == 1:
                for end in self.ends:
                    end()
            self.depth -= 1


def _backward(body: Body) -> None:
    body()


def _grad(body: Body, create_graph: bool = False) -> None:
    body()


def _save(body: Body) -> None:
    body()


def _load(body: Body) -> None:
    body()


def _tensor_class() -> type:
    class Tensor:
        def __init__(self, device: str = "cpu", shape: tuple[int, ...] = (4,)) -> None:
            self.device = types.SimpleNamespace(type=device)
            self.shape = shape
            self.body: Body = bool

        def to(self, target: Any) -> None:
            self.body()

        def cuda(self) -> None:
            self.body()

        def cpu(self) -> None:
            self.body()

    return Tensor


def _module_class() -> type:
    class Module:
        training = True

        def __init__(self, parameters: list[Parameter]) -> None:
            self._parameters = {str(number): item for number, item in enumerate(parameters)}
            self._modules: dict[str, Any] = {}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            pass

        def __call__(self, body: Body) -> None:
            body()

    return Module


def _iterator_class() -> type:
    class _BaseDataLoaderIter:
        _auto_collation = True

        def __init__(self, sampler: Any, body: Body) -> None:
            self._index_sampler, self.body = sampler, body

        def __next__(self) -> Any:
            return self.body()

    return _BaseDataLoaderIter


def _loader_class() -> type:
    class DataLoader:
        def __init__(self, sampler: Any, body: Body) -> None:
            self._index_sampler, self.body = sampler, body

        def _get_iterator(self) -> Any:
            return self.body()

    return DataLoader


def _optimizer_module() -> types.ModuleType:
    module = types.ModuleType("torch.optim.optimizer")
    pre_hooks: list[Any] = []
    post_hooks: list[Any] = []

    class Optimizer:
        def __init__(self, params: Any, defaults: Any) -> None:
            self.param_groups = [{"params": params}]
            cls = type(self)
            if not getattr(cls.step, "hooked", False):
                cls.step = self.profile_hook_step(cls.step)
                cls.step.hooked = True

        @staticmethod
        def profile_hook_step(function: Any) -> Any:
            # As torch's wrapper: a step that raises calls no post hook.
            def wrapper(self: Any, *args: Any) -> None:
                for hook in pre_hooks:
                    hook(self, args, {})
                function(self, *args)
                for hook in post_hooks:
                    hook(self, args, {})

            return wrapper

        def step(self, body: Body) -> None:
            body()

    class Subclass(Optimizer):
        """Calls the `step` of its base class: torch calls the hooks for both."""

        def step(self, body: Body) -> None:
            super().step(body)

    plain = {cls: cls.__dict__["step"] for cls in (Optimizer, Subclass)}

    def forget() -> None:
        """No optimizer was ever made."""
        for cls, step in plain.items():
            cls.step = step

    module.forget = forget
    module.register_optimizer_step_pre_hook = pre_hooks.append
    module.register_optimizer_step_post_hook = post_hooks.append
    module.Optimizer = Optimizer
    module.Subclass = Subclass
    return module


def _scaler_class() -> type:
    class GradScaler:
        def __init__(self) -> None:
            self.finite = True

        def step(self, optimizer: Any, body: Body) -> None:
            if self.finite:
                optimizer.step(body)

    return GradScaler
