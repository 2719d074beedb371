"""Device time by CUDA events: the only file of the agent that touches `torch.cuda`.

Event pairs from a pool are recorded on the current stream and resolved at later step boundaries
by `query()`. Nothing here waits for the device, creates a context, or runs while a stream is
being captured.
"""

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from traceml_agent.schema.phases import DEVICE_PHASES, PHASES

if TYPE_CHECKING:
    from traceml_agent.identity import Group
    from traceml_agent.schema.records import DeviceMemory

PENDING_LIMIT = 256
"""Steps whose events may be open at once; the oldest beyond that stay unmeasured. Chosen: far
more than the queue of a device holds, and a bound for memory."""
PAIRS_LIMIT = 256
"""Event pairs in one step; a step with more is not timed on the device."""

_TIMED = frozenset(PHASES.index(name) for name in DEVICE_PHASES)


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """Device times of one step; None: an event did not resolve."""

    step: int
    duration_ns: int | None
    phase_ns: dict[int, int]


class DeviceTimer:
    """Records events at phase switches and step ends. Called by the training thread only."""

    def __init__(self, torch: Any) -> None:
        self._cuda = torch.cuda
        self._pool: list[Any] = []
        self._pairs: list[tuple[int, Any, Any]] = []
        self._open: Any = None
        self._step_start: Any = None
        self._spoiled = True  # the step in progress began before we did
        self._pending: deque[tuple[int, Any, Any, list[tuple[int, Any, Any]]]] = deque()
        self.resolved: deque[DeviceStep] = deque()

    def switch(self, ended: int, begun: int) -> None:
        """One phase ends and another begins; -1 stands for none."""
        if ended not in _TIMED and begun not in _TIMED:
            return
        if self._cuda.is_current_stream_capturing() or len(self._pairs) >= PAIRS_LIMIT:
            self._spoiled = True
            self._open = None
            return
        now = self._record()
        if ended in _TIMED and self._open is not None:
            self._pairs.append((ended, self._open, now))
        self._open = now if begun in _TIMED else None

    def close_step(self, step: int) -> None:
        """A step ended: keeps its events until they resolve, and resolves older steps."""
        if self._cuda.is_current_stream_capturing():
            self._spoiled = True
            return
        end = self._record()
        # An optimizer stepped inside a phase: its time is partly that of the next step.
        divided, self._open = self._open is not None, None
        if self._spoiled or divided or self._step_start is None:
            self.resolved.append(DeviceStep(step, None, {}))
        else:
            self._pending.append((step, self._step_start, end, self._pairs))
        self._pairs = []
        self._step_start = end
        self._spoiled = divided
        self.resolve()

    def resolve(self) -> None:
        """Turns the events of finished steps into times, oldest first."""
        while self._pending:
            step, start, end, pairs = self._pending[0]
            if not end.query():
                if len(self._pending) <= PENDING_LIMIT:
                    return
                self._pending.popleft()
                self.resolved.append(DeviceStep(step, None, {}))
                continue
            self._pending.popleft()
            self.resolved.append(_times(step, start, end, pairs))
            # The end event is the start event of the next step and returns to the pool with it.
            used = {id(event): event for _, first, last in pairs for event in (first, last)}
            used[id(start)] = start
            self._pool.extend(used.values())

    @property
    def is_idle(self) -> bool:
        """Whether the device is done with all steps that were closed."""
        return not self._pending

    def _record(self) -> Any:
        event = self._pool.pop() if self._pool else self._cuda.Event(enable_timing=True)
        event.record()
        return event


def _times(step: int, start: Any, end: Any, pairs: list[tuple[int, Any, Any]]) -> DeviceStep:
    phase_ns: dict[int, int] = {}
    try:
        duration_ns = round(start.elapsed_time(end) * 1e6)
        for phase, first, last in pairs:
            phase_ns[phase] = phase_ns.get(phase, 0) + round(first.elapsed_time(last) * 1e6)
    except (RuntimeError, ValueError):  # events of two devices: the loop changed its device
        return DeviceStep(step, None, {})
    return DeviceStep(step, duration_ns, phase_ns)


def can_be_used(torch: Any) -> bool:
    """Whether this build of torch knows CUDA (or ROCm, which goes by the same names)."""
    version = torch.version
    return version.cuda is not None or getattr(version, "hip", None) is not None


def is_in_use(torch: Any) -> bool:
    """Whether the program itself has initialised CUDA. Never initialises it."""
    return bool(torch.cuda.is_initialized())


def process_group(torch: Any) -> "Group | None":
    """Rank and world size of the default process group; None while there is none."""
    from traceml_agent.identity import Group

    distributed = getattr(torch, "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return Group(distributed.get_rank(), distributed.get_world_size())


def device_memory(torch: Any) -> "list[DeviceMemory] | None":
    """The allocator's figures of each device in use; None without CUDA in use."""
    from traceml_agent.schema.records import DeviceMemory

    if not is_in_use(torch):
        return None
    found = []
    for device in range(torch.cuda.device_count()):
        stats = torch.cuda.memory_stats(device)
        if not stats.get("allocation.all.allocated"):
            continue
        found.append(
            DeviceMemory(
                device=device,
                allocated_bytes=stats["allocated_bytes.all.current"],
                reserved_bytes=stats["reserved_bytes.all.current"],
                max_allocated_bytes=stats["allocated_bytes.all.peak"],
                max_reserved_bytes=stats["reserved_bytes.all.peak"],
                total_bytes=int(torch.cuda.get_device_properties(device).total_memory),
                alloc_retries=stats.get("num_alloc_retries"),
            )
        )
    return found or None
