"""RetainedWatch: which tensors that the steps make outlive them, and the lines that made them.

Opt-in (TRACEML_RETAINED): Python's own tracemalloc runs for a few steps, which makes these steps
slower. At their end it tells of each tensor that is alive which line made it. Most of these live on
for a while: batches that were fetched ahead, windows of metrics. So they are looked for once more
after many steps, by weak references.
"""

import ctypes
import gc
import time
import tracemalloc
import weakref
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from traceml_agent.capture.samplers.stacks import started_wall_s, working_directory
from traceml_agent.capture.source_text import SourceText
from traceml_agent.capture.user_code import is_library
from traceml_agent.schema.retained import Retained, RetainedTensors

if TYPE_CHECKING:
    from traceml_agent.capture.audit import Audit
    from traceml_agent.capture.session import Session

FIRST_STEP = 30
"""Chosen: after what the first steps make once, such as optimizer state. The audit of the agent's
own cost is waited for: under tracing a healthy patch costs so much that the breaker would shut it.
"""
WATCHED_STEPS = 20
"""Chosen: enough to tell a tensor a step from one in ten, few enough to cost little."""
LATER_STEPS = 200
"""Until what was made is looked for again. Chosen: longer than the windows over which programs
average, and than what a loader fetches ahead."""
WATCHED_MOST_NS = 30_000_000_000
"""Of tracing. Chosen: steps of a second still come to 20; a training that stands is left alone."""
PAUSE_NS = 120_000_000_000
"""From one watch to the next, which sees what begins to grow later. Chosen: 20 steps in two minutes
are 2 % of those of a training of 10 steps a second."""
LEAST_SHARE = 0.5
"""Of the steps that leave a tensor. Chosen: a list that keeps every other loss is still named."""
FRAMES = 16
"""That tracemalloc keeps. Chosen: from a tensor through a nested model out to the loop."""
MOST_GROUPS = 20
OTHERS = "the program traces its memory itself"
_BEFORE_OBJECT = (32, 16, 24, 48)
"""Bytes from the begin of a block to the object in it. Source: the headers of CPython's garbage
collector and of a managed dictionary, 16 bytes each."""

_Frames = tuple[tuple[str, int], ...]
"""File and line, the innermost first; empty: not traced."""
_Group = tuple[str, int, tuple[int, ...], str]  # file, line, shape, dtype


class _Made(NamedTuple):
    """What some steps made and had not dropped at their end."""

    step: int
    steps: int
    tensors: dict[_Group, list["weakref.ref[Any]"]]
    with_graph: Counter[_Group]


class RetainedWatch:
    """Lives in the agent's thread, which calls `tick` now and then."""

    def __init__(self, session: "Session") -> None:
        self._session = session
        self._tensor = session.torch.Tensor
        self._text = SourceText(started_wall_s(session), working_directory())
        self._made: _Made | None = None
        self._is_tracing = False
        self._begun_step = self._begun_ns = self._looked_ns = 0
        self._next_ns = 0
        self._frames_of: Callable[[Any], _Frames] | None = None
        self.is_off: str | None = None  # why nothing is looked at any more

    def tick(self, now_ns: int, step: int) -> Retained | None:
        """Begins a watch, goes on with it, or says at its end what it found."""
        if self._is_tracing:
            self._trace_on(now_ns, step)
        elif self._made is not None and step >= self._made.step + LATER_STEPS:
            return self._kept(now_ns, step)
        elif self._made is None and step >= FIRST_STEP and now_ns >= self._next_ns:
            self._begin(now_ns, step)
        return None

    def close(self, now_ns: int, step: int) -> Retained | None:
        """Ends the watch, and with it tracing, if that is ours; what was found so far."""
        if self._is_tracing:
            self._stop()
        if self._made is not None and step >= self._made.step + WATCHED_STEPS:
            return self._kept(now_ns, step)
        return None

    def _begin(self, now_ns: int, step: int) -> None:
        if tracemalloc.is_tracing():  # the program's own: it must find only what it asked for
            self.is_off = OTHERS
            return
        audit: Audit = self._session.tracker.audit
        audit.is_disturbed = True  # first: the training thread may begin one at any moment
        if audit.is_running:
            audit.is_disturbed = False
            return
        self._next_ns = now_ns + PAUSE_NS
        tracemalloc.start(FRAMES)
        self._is_tracing = True
        self._begun_step, self._begun_ns = step, now_ns
        self._frames_of = _frames_of_objects()
        if self._frames_of is None:
            self._stop()
            self.is_off = "this Python does not tell where an object was made"

    def _trace_on(self, now_ns: int, step: int) -> None:
        if not tracemalloc.is_tracing():  # the program ended it
            self._is_tracing = self._session.tracker.audit.is_disturbed = False
            self.is_off = OTHERS
        elif step - self._begun_step >= WATCHED_STEPS:
            self._made = self._look(step)
            self._stop()
        elif now_ns - self._begun_ns > WATCHED_MOST_NS:
            self._stop()

    def _stop(self) -> None:
        tracemalloc.stop()
        self._is_tracing = self._session.tracker.audit.is_disturbed = False

    def _look(self, step: int) -> _Made:
        begun, frames_of, tensor = time.perf_counter_ns(), self._frames_of or _public, self._tensor
        made = _Made(step, step - self._begun_step, {}, Counter())
        made_by: dict[_Frames, tuple[str, int] | None] = {}
        # Exactly this type: the attributes of a subclass may run code of the program.
        for item in [item for item in gc.get_objects() if type(item) is tensor]:
            frames = frames_of(item)
            if frames not in made_by:
                made_by[frames] = _place(frames)
            place = made_by[frames]
            if place is not None:
                group = (*place, tuple(item.shape), str(item.dtype).removeprefix("torch."))
                made.tensors.setdefault(group, []).append(weakref.ref(item))
                made.with_graph[group] += item.grad_fn is not None
        for group in [g for g, of in made.tensors.items() if len(of) < LEAST_SHARE * made.steps]:
            del made.tensors[group]
        self._looked_ns = time.perf_counter_ns() - begun
        return made

    def _kept(self, now_ns: int, step: int) -> Retained | None:
        made, self._made = self._made, None
        if made is None:
            return None
        alive: dict[_Group, tuple[int, int]] = {}
        for group, references in made.tensors.items():
            kept = [item for reference in references if (item := reference()) is not None]
            if len(kept) >= LEAST_SHARE * made.steps:
                alive[group] = len(kept), sum(i.numel() * i.element_size() for i in kept)
            del kept
        groups = sorted(alive, key=lambda group: (-alive[group][1], group))
        return Retained(
            monotonic_ns=now_ns,
            step=made.step,
            steps=made.steps,
            later_steps=step - made.step,
            tensors=[self._tensors(g, alive[g], made.with_graph[g]) for g in groups[:MOST_GROUPS]],
            left_out=max(0, len(groups) - MOST_GROUPS),
            looked_ns=self._looked_ns,
        )

    def _tensors(self, group: _Group, alive: tuple[int, int], graphs: int) -> RetainedTensors:
        file, line, shape, dtype = group
        return RetainedTensors(
            file=self._text.file_name(file),
            line=line,
            text=self._text.line(file, line),
            shape=list(shape),
            dtype=dtype,
            count=alive[0],
            bytes=alive[1],
            with_graph=min(graphs, alive[0]),
        )


def _place(frames: _Frames) -> tuple[str, int] | None:
    """The innermost line of the program; None if only libraries took part."""
    return next(((file, line) for file, line in frames if not is_library(file)), None)


class _Probe:
    """An object like a tensor: with a dictionary of its own."""


def _frames_of_objects() -> Callable[[Any], _Frames] | None:
    """How this Python tells where an object was made, now that tracing is on; None: not at all.

    `tracemalloc.get_object_traceback` of Python 3.11 knows no object with a dictionary, since these
    lie further behind the begin of their block: then the same C function is asked about that.
    """
    probe = _Probe()
    if _public(probe):
        return _public
    name = "_PyTraceMalloc_GetTraceback"
    ask = getattr(ctypes.pythonapi, name, None)
    if ask is None:
        return None
    ask.argtypes, ask.restype = (ctypes.c_uint, ctypes.c_size_t), ctypes.py_object
    for before in _BEFORE_OBJECT:
        found = _by_address(ask, before)
        if found(probe):
            return found
    return None


def _public(item: Any) -> _Frames:
    trace = tracemalloc.get_object_traceback(item)
    return () if trace is None else tuple((f.filename, f.lineno) for f in reversed(trace))


def _by_address(ask: Any, before: int) -> Callable[[Any], _Frames]:
    def frames(item: Any) -> _Frames:
        return ask(0, id(item) - before) or ()

    return frames
