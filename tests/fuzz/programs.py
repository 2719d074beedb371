"""Programs that train in every way and none: made of calls of torch, played on a fake clock.

A program is a tuple of nodes. Hypothesis draws them, `decode` makes them of the bytes of a
coverage-guided fuzzer, and `play` runs them and checks what must hold for any program.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any
from unittest.mock import patch

from tests.fuzz.fake_torch import Clock, FakeTorch, Parameter, fake_torch
from traceml_agent.capture import audit
from traceml_agent.capture.bracket import Bracket
from traceml_agent.capture.device import DeviceTimer
from traceml_agent.capture.open_step import IDLE_NS, NONE
from traceml_agent.capture.segment import Segment
from traceml_agent.capture.session import SESSION
from traceml_agent.capture.steps import StepTracker
from traceml_agent.schema.phases import (
    BACKWARD,
    CHECKPOINT,
    COMPILE,
    EVAL,
    FORWARD,
    H2D,
    INPUT_WAIT,
    OPTIMIZER,
    PHASES,
)

TIMES_NS = (0, 1, 7, 100, 30_000, 2_000_000, IDLE_NS + 1)
DEPTH_LIMIT = 6
NODES_LIMIT = 400
LOADERS = MODELS = OPTIMIZERS = 3


@dataclass(frozen=True, slots=True)
class Node:
    """One call: what runs in it, and the time before and in it, by their places in TIMES_NS."""

    op: str
    choice: int = 0  # which loader, model, optimizer
    before: int = 1
    within: int = 1
    children: tuple["Node", ...] = ()


Program = tuple[Node, ...]


class Raised(Exception):
    """An error of the program."""


class Stopped(BaseException):
    """What leaves a call without being an Exception, as KeyboardInterrupt does."""


@dataclass(frozen=True, slots=True)
class Step:
    """A closed step, as the tracker told it."""

    number: int
    start: int
    duration: int
    acc: tuple[int, ...]
    d2h_ns: int
    batches: int
    backwards: int
    updates: int
    samples: int | None
    micro_batches: int


class Events:
    """CUDA events of a device that is exactly as fast as the host."""

    def __init__(self, clock: Clock) -> None:
        self.cuda = self
        self.clock = clock

    def Event(self, enable_timing: bool) -> "Event":  # the name in torch
        return Event(self.clock)

    def is_current_stream_capturing(self) -> bool:
        return False


class Event:
    """One of them."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.at = 0

    def record(self) -> None:
        self.at = self.clock.now

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: "Event") -> float:
        return (other.at - self.at) / 1e6


class Player:
    """Runs one program, and counts on its own what the tracker should have seen."""

    def __init__(
        self, torch: FakeTorch, with_device: bool = False, with_audit: bool = False
    ) -> None:
        self.torch = torch
        self.clock = Clock()
        self.tracker = SESSION.tracker
        self.tracker.__class__ = StepTracker
        StepTracker.__init__(self.tracker, _this_thread(), self._proof, self._close)
        for gate in SESSION.gates.values():
            gate.shut = False
        if with_device:
            self.tracker.device = DeviceTimer(Events(self.clock))
        if with_audit:
            # Of every four steps, two are audited; nothing costs too much.
            audit.Audit(self.tracker, 0, lambda patch, reason: None)
            self.tracker.audit_at = 1
        torch.grad_enabled = True
        self.parameter = Parameter()
        self.samplers = [_Sampler() for _ in range(LOADERS)]
        self.models = [torch.nn.Module([self.parameter]) for _ in range(MODELS)]
        module = torch.optimizer_module
        module.forget()
        self.classes = (module.Optimizer, module.Optimizer, module.Subclass)
        self.optimizers: dict[int, Any] = {}
        self.scaler = torch.amp.GradScaler()
        self.steps: list[Step] = []
        self.checked = 0  # the steps so far, and their sums
        self.closed_ns = [0] * len(PHASES)
        self.closed_updates = 0
        self.closed_backwards = 0
        self.proofs = 0
        self.seen_ns = [0] * (len(PHASES) + 1)  # by the phase that was open; the last: none
        self.to_host_ns = 0
        self.quiet: list[tuple[int, int]] = []
        self.stack: list[str] = []
        self.updates = 0
        self.late = 0  # updates right after a bracket
        self.backwards = 0
        self.spoiled = False  # an update raised, or a patch was shut: counts are not exact

    # What the tracker tells

    def _proof(self) -> None:
        self.proofs += 1
        assert not self.steps

    def _close(
        self, number: int, start: int, duration: int, measured: Segment, micro_batches: int
    ) -> None:
        self.steps.append(
            Step(
                number,
                start,
                duration,
                tuple(measured.acc),
                measured.d2h_ns,
                measured.batches,
                measured.backwards,
                measured.updates,
                measured.samples,
                micro_batches,
            )
        )

    # Playing

    def play(self, program: Sequence[Node]) -> None:
        """Runs the program to its end and checks it."""
        with (
            self.torch.imported(self.clock),
            patch.object(audit, "STEPS", 1),
            patch.object(audit, "EVERY_STEPS", 2),
        ):
            for node in program:
                with contextlib.suppress(Raised, Stopped):
                    self._run((node,))
                assert self.stack == []
                self.check()
            self._advance(1)
            self.tracker.finish()
            self.check(finished=True)
            self._check_end()

    def _advance(self, time: int) -> None:
        elapsed = TIMES_NS[time % len(TIMES_NS)]
        self.clock.now += elapsed
        self.seen_ns[self.tracker.phase] += elapsed
        if self.clock.now - self.tracker.since > IDLE_NS:
            self.quiet.append((self.tracker.since, self.clock.now))

    def _run(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            self._advance(node.before)
            OPS[node.op](self, node)

    def _inside(self, node: Node, result: Any = None) -> Callable[[], Any]:
        """The user code in a call: it takes time, calls what is in it, and takes time again."""

        def body() -> Any:
            self.stack.append(node.op)
            try:
                self._advance(node.within)
                self._run(node.children)
                self._advance(node.within)
            finally:
                self.stack.pop()
            return result

        return body

    def _copy(self, node: Node) -> Callable[[], None]:
        """A copy runs no user code, but may fail."""

        def body() -> None:
            self._advance(node.within)
            if self.tracker.phase == H2D and node.op == "to_host":
                self.to_host_ns += TIMES_NS[node.within]
            if node.choice % 8 == 7:
                raise Raised

        return body

    def optimizer(self, choice: int) -> Any:
        """Made at its first use: a program without one has none. The last calls its base class."""
        choice %= OPTIMIZERS
        if choice not in self.optimizers:
            made = self.classes[choice]([self.parameter], {})
            self.optimizers[choice] = made
        return self.optimizers[choice]

    @property
    def in_optimizer(self) -> bool:
        return any(op in UPDATE_OPS for op in self.stack)

    # Checking

    def check(self, finished: bool = False) -> None:
        """What holds after each call of any program."""
        for number in range(self.checked + 1, len(self.steps) + 1):
            step = self.steps[number - 1]
            assert step.number == number
            assert step.start > 0
            assert min(step.acc) >= 0, f"negative phase in {step}"
            assert step.d2h_ns >= 0
            assert sum(step.acc) + step.d2h_ns <= step.duration, f"phases exceed {step}"
            assert step.micro_batches >= 1
            assert min(step.batches, step.backwards, step.updates) >= 0
            assert step.samples is None or step.samples >= 0
            assert step.start + step.duration <= self.clock.now
            if number > 1:
                self._check_tiling(self.steps[number - 2], step)
            for phase, elapsed in enumerate(step.acc):
                self.closed_ns[phase] += elapsed
            self.closed_updates += step.updates
            self.closed_backwards += step.backwards
        self.checked = len(self.steps)
        assert bool(self.steps) <= (self.proofs == 1)
        self._check_time()
        if not self.spoiled and not finished:
            parts = self._open_segments()
            missing = self.updates - self.closed_updates - sum(s.updates for s in parts)
            assert 0 <= missing <= self.late  # of a bracket, and then came a pause
            assert self.backwards == self.closed_backwards + sum(s.backwards for s in parts)
            assert self.tracker.phase == NONE

    def _check_tiling(self, before: Step, step: Step) -> None:
        gap = (before.start + before.duration, step.start)
        assert gap[0] <= gap[1], f"{step} overlaps {before}"
        if gap[0] < gap[1]:
            quiet = [q for q in self.quiet if gap[0] <= q[0] and q[1] <= gap[1]]
            assert quiet, f"time is lost between {before} and {step}"

    def _open_segments(self) -> list[Segment]:
        tracker = self.tracker
        return [s for s in (tracker._done, tracker.segment) if s is not None]

    def _check_time(self) -> None:
        """Each nanosecond in a phase is in one step, in the open one, or outside, and only once."""
        parts = [self.closed_ns, *(s.acc for s in self._open_segments())]
        found = [sum(column) for column in zip(self.tracker.outside, *parts, strict=True)]
        if self.tracker.phase != NONE:
            found[self.tracker.phase] += self.clock.now - self.tracker.since
        seen = self.seen_ns[:]
        seen[H2D] -= self.to_host_ns
        for phase in (BACKWARD, OPTIMIZER, CHECKPOINT, COMPILE):
            assert found[phase] == seen[phase], PHASES[phase]
        # These become evaluation when no gradient follows.
        open_to_judgement = (INPUT_WAIT, H2D, FORWARD, EVAL)
        assert sum(found[p] for p in open_to_judgement) == sum(seen[p] for p in open_to_judgement)

    def _check_end(self) -> None:
        assert self.tracker.phase == NONE
        device = self.tracker.device
        if device is None:
            return
        assert [step.step for step in device.resolved] == [step.number for step in self.steps]
        for step in device.resolved:
            if step.duration_ns is not None:
                assert min(step.phase_ns.values(), default=0) >= 0
                assert sum(step.phase_ns.values()) <= step.duration_ns


class _Sampler:
    batch_size = 4


def _this_thread() -> int:
    from _thread import get_ident

    return get_ident()


# The calls that a program is made of


def _fetch(player: Player, node: Node, result: Any) -> None:
    sampler = player.samplers[node.choice % LOADERS]
    iterator = player.torch.loaders._BaseDataLoaderIter(sampler, player._inside(node, result))
    next(iterator)


def _fetch_batch(player: Player, node: Node) -> None:
    _fetch(player, node, [player.torch.Tensor()])


def _fetch_unknown(player: Player, node: Node) -> None:
    _fetch(player, node, object())


def _fetch_nothing(player: Player, node: Node) -> None:
    body = player._inside(node)

    def exhausted() -> None:
        body()
        raise StopIteration

    sampler = player.samplers[node.choice % LOADERS]
    with contextlib.suppress(StopIteration):
        next(player.torch.loaders._BaseDataLoaderIter(sampler, exhausted))


def _start_workers(player: Player, node: Node) -> None:
    sampler = player.samplers[node.choice % LOADERS]
    player.torch.loaders.DataLoader(sampler, player._inside(node))._get_iterator()


def _to_device(player: Player, node: Node) -> None:
    tensor = player.torch.Tensor("cpu")
    tensor.body = player._copy(node)
    tensor.cuda()


def _to_host(player: Player, node: Node) -> None:
    tensor = player.torch.Tensor("cuda")
    tensor.body = player._copy(node)
    tensor.to("cpu")


def _forward(player: Player, node: Node) -> None:
    player.models[node.choice % MODELS](player._inside(node))


def _forward_in_eval_mode(player: Player, node: Node) -> None:
    model = player.models[node.choice % MODELS]
    model.training = False
    try:
        model(player._inside(node))
    finally:
        model.training = True


def _evaluate(player: Player, node: Node) -> None:
    enabled, player.torch.grad_enabled = player.torch.grad_enabled, False
    try:
        player.models[node.choice % MODELS](player._inside(node))
    finally:
        player.torch.grad_enabled = enabled


def _with_grad(player: Player, node: Node) -> None:
    """`torch.enable_grad()` around something."""
    enabled, player.torch.grad_enabled = player.torch.grad_enabled, True
    try:
        player._run(node.children)
    finally:
        player.torch.grad_enabled = enabled


def _backward(player: Player, node: Node) -> None:
    player.backwards += not player.stack
    player.torch.autograd.backward(player._inside(node))


def _grad(player: Player, node: Node) -> None:
    player.backwards += not player.stack
    player.torch.autograd.grad(player._inside(node))


def _grad_for_a_penalty(player: Player, node: Node) -> None:
    player.torch.autograd.grad(player._inside(node), create_graph=True)


def _make_optimizer(player: Player, node: Node) -> None:
    player.optimizer(node.choice)


def _count_update(player: Player, update: Callable[[], None], counts: bool = True) -> None:
    outermost = not player.in_optimizer
    player.late += player.tracker._parted
    try:
        update()
    except BaseException:
        player.spoiled = True
        raise
    player.updates += outermost and counts


def _update(player: Player, node: Node) -> None:
    optimizer = player.optimizer(node.choice)
    _count_update(player, lambda: optimizer.step(player._inside(node)))
    player.parameter._version += 1


def _update_by_scaler(player: Player, node: Node) -> None:
    optimizer = player.optimizer(node.choice)
    player.scaler.finite = True
    _count_update(player, lambda: player.scaler.step(optimizer, player._inside(node)))
    player.parameter._version += 1


def _update_skipped(player: Player, node: Node) -> None:
    optimizer = player.optimizer(node.choice)
    player.late += player.tracker._parted
    player.scaler.finite = False
    player.scaler.step(optimizer, player._inside(node))


def _write_parameter(player: Player, node: Node) -> None:
    player.parameter._version += 1


def _save(player: Player, node: Node) -> None:
    player.torch.save(player._inside(node))


def _compile(player: Player, node: Node) -> None:
    # Dynamo traces the program: what it meets does not run.
    player.torch.compilations.run(lambda: player._advance(node.within))


def _pause(player: Player, node: Node) -> None:
    player._advance(node.within)


def _raise(player: Player, node: Node) -> None:
    raise Stopped if node.choice % 4 == 3 else Raised


def _try(player: Player, node: Node) -> None:
    with contextlib.suppress(Raised, Stopped):
        player._run(node.children)


def _bracket(player: Player, node: Node) -> None:
    """A step whose bounds the program gives: until its end none is closed, and then one."""
    tracker = player.tracker
    with patch.object(SESSION, "torch", player.torch):
        bracket = Bracket(None)
        with bracket:
            begun = len(player.steps)
            is_own = tracker.bracket is bracket
            player._run(node.children)
            is_own = is_own and tracker.bracket is bracket
            is_empty = tracker._exhausted and tracker._is_empty()
            assert not is_own or len(player.steps) == begun
    if is_own:
        assert len(player.steps) == begun + (not is_empty)


def _shut(player: Player, node: Node) -> None:
    """A patch is switched off, in the middle of whatever runs."""
    names = sorted(SESSION.gates)
    SESSION.gates[names[node.choice % len(names)]].shut = True
    player.spoiled = True


OPS: dict[str, Callable[[Player, Node], None]] = {
    "fetch": _fetch_batch,
    "fetch_unknown": _fetch_unknown,
    "fetch_nothing": _fetch_nothing,
    "start_workers": _start_workers,
    "to_device": _to_device,
    "to_host": _to_host,
    "forward": _forward,
    "forward_in_eval_mode": _forward_in_eval_mode,
    "evaluate": _evaluate,
    "with_grad": _with_grad,
    "backward": _backward,
    "grad": _grad,
    "grad_for_a_penalty": _grad_for_a_penalty,
    "make_optimizer": _make_optimizer,
    "update": _update,
    "update_by_scaler": _update_by_scaler,
    "update_skipped": _update_skipped,
    "write_parameter": _write_parameter,
    "save": _save,
    "compile": _compile,
    "pause": _pause,
    "raise": _raise,
    "try": _try,
    "shut": _shut,
    "bracket": _bracket,
}
UPDATE_OPS = frozenset(op for op in OPS if op.startswith("update"))
LEAVES = frozenset(
    {
        "compile",
        "make_optimizer",
        "pause",
        "raise",
        "shut",
        "to_device",
        "to_host",
        "write_parameter",
    }
)
NAMES = tuple(OPS)

_torch: list[FakeTorch] = []


def play(program: Program, with_device: bool = False, with_audit: bool = False) -> list[Step]:
    """Runs a program, checks all that must hold, and returns the closed steps."""
    if not _torch:
        _torch.append(fake_torch())
    player = Player(_torch[0], with_device, with_audit)
    player.play(program)
    return player.steps


# Programs as bytes, for a fuzzer that knows nothing else


def decode(data: bytes) -> Program:
    """The program that these bytes stand for: any bytes are one."""
    nodes, _ = _decode(data, 0, DEPTH_LIMIT, NODES_LIMIT)
    return nodes


def _decode(data: bytes, at: int, depth: int, most: int) -> tuple[Program, int]:
    nodes: list[Node] = []
    while at < len(data) and len(nodes) < most:
        code = data[at]
        at += 1
        if code == 0:  # the end of the children
            break
        op = NAMES[(code - 1) % len(NAMES)]
        choice = data[at] if at < len(data) else 0
        times = data[at + 1] if at + 1 < len(data) else 0
        at += 2
        children: Program = ()
        if op not in LEAVES and depth:
            children, at = _decode(data, at, depth - 1, most)
        nodes.append(Node(op, choice, times % 7, times // 7 % 7, children))
    return tuple(nodes), at


def encode(program: Program) -> bytes:
    """Bytes that `decode` makes this program of."""
    parts = []
    for node in program:
        parts.append(bytes([NAMES.index(node.op) + 1, node.choice, node.before + 7 * node.within]))
        if node.op not in LEAVES:
            parts.append(encode(node.children) + b"\0")
    return b"".join(parts)


def mutate(program: Program, random_: Random) -> Program:
    """The program with one thing changed: a call more or less, moved, wrapped or repeated."""
    places = list(_lists(program, ()))
    where = random_.choice(places)
    nodes = list(_at(program, where))
    at = random_.randint(0, len(nodes))
    until = min(len(nodes), at + random_.randint(1, 4))
    how = random_.randrange(6)
    if how == 0:
        del nodes[at:until]
    elif how == 1:
        nodes[at:at] = nodes[at:until] * random_.randint(1, 4)
    elif how == 2:
        op = random_.choice([name for name in NAMES if name not in LEAVES])
        nodes[at:until] = [Node(op, random_.randrange(16), children=tuple(nodes[at:until]))]
    elif how == 3:
        moved = nodes[at:until]
        del nodes[at:until]
        to = random_.randint(0, len(nodes))
        nodes[to:to] = moved
    elif how == 4 and at < len(nodes):
        times = (random_.randrange(len(TIMES_NS)), random_.randrange(len(TIMES_NS)))
        nodes[at] = Node(nodes[at].op, random_.randrange(16), *times, nodes[at].children)
    else:
        nodes.insert(at, Node(random_.choice(NAMES), random_.randrange(16)))
    return _with(program, where, tuple(nodes))


def _lists(nodes: Program, where: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The way to each list of nodes of a program."""
    yield where
    for index, node in enumerate(nodes):
        if node.op not in LEAVES and len(where) < DEPTH_LIMIT:
            yield from _lists(node.children, (*where, index))


def _at(program: Program, where: tuple[int, ...]) -> Program:
    for index in where:
        program = program[index].children
    return program


def _with(program: Program, where: tuple[int, ...], nodes: Program) -> Program:
    if not where:
        return nodes
    index, *rest = where
    changed = replace(program[index], children=_with(program[index].children, tuple(rest), nodes))
    return (*program[:index], changed, *program[index + 1 :])
