"""Audit: what the agent costs the training thread, measured where it costs, and the breaker.

Now and then, for some steps, the tracker times its own methods between the operations of the
training. A loop of its own would not do: in a tight loop the same code costs a seventh. From this
comes the cost that the summary reports, and a patch over its budget passes through from then on.
"""

from collections.abc import Callable
from time import perf_counter_ns as clock
from typing import TYPE_CHECKING, Any

from traceml_agent.capture.open_step import NEVER, NONE
from traceml_agent.capture.segment import Segment
from traceml_agent.capture.steps import StepTracker
from traceml_agent.guard import INTERNAL, guard
from traceml_agent.schema.phases import PATCH_OF_PHASE, PHASES

if TYPE_CHECKING:
    from traceml_agent.capture.rest import Rest

FIRST_STEP = 10
"""Chosen: discovery has ended, and CPython has specialised the code."""
STEPS = 50
EVERY_STEPS = 1000
EVERY_SHORT_STEPS = 10_000
"""Where the patches rest now and then: fifty audited steps cost as much as a thousand others."""
FIRST_REST = 512
"""Step before which the patches do not rest. Chosen: what most short runs have is seen whole."""
RESTED_SHARE = 0.5
"""Cost of a step at which the patches rest over that of one that they look into. Source:
tests/overhead/paired.py."""
LEAST_STEPS = 10
"""With fewer steps, no cost is told: at first everything is slow."""
SLOWEST_SHARE = 0.1
"""Of the audited steps, left out: where another process had the processor meanwhile."""
MIN_STEP_NS = 1_000_000
"""Shorter steps have no budget. Chosen: 1 % of them is less than a clock and a call cost."""
LEAST_COST_NS = 150_000
"""A patch that costs less is never shut. Chosen: three times what a healthy one costs where plain
Python between the calls leaves cold caches (22 to 53 us measured, docs/decisions/0004-audit.md);
shutting it loses the verdict to save 1 % of a step."""
SHELL_RATIO = 1.5
"""Cost of a patch over cost of its tracker methods: what remains is the call of the patch itself,
which cannot time itself. Source: tests/overhead/paired.py."""
RECORDER = "recorder"
"""Where closing a step is charged to: the ring, and what the session learns from the step."""


class AuditedTracker(StepTracker):
    """A StepTracker that times itself. A tracker becomes one for some steps, and back."""

    __slots__ = ()

    def _close(self, measured: Segment, end: int) -> None:
        audit: Audit = self.audit
        begun, inner = clock(), audit.inner_ns
        super()._close(measured, end)
        elapsed = clock() - begun
        audit.inner_ns = inner + elapsed
        audit.step_closed(elapsed, self.last_duration)

    def enter(self, phase: int) -> int:
        entered: int = self.timed("enter", PATCH_OF_PHASE[PHASES[phase]], phase)
        return entered

    def leave(self, previous: int) -> int:
        patch = PATCH_OF_PHASE[PHASES[max(0, self.phase)]]
        elapsed: int = self.timed("leave", patch, previous)
        return elapsed

    def timed(self, name: str, patch: str, *args: Any) -> Any:
        """Calls a method of StepTracker, and charges its own time to the patch."""
        try:
            audit: Audit = self.audit
            inner, audit.inner_ns = audit.inner_ns, 0
            begun = clock()
            result = getattr(super(), name)(*args)
            elapsed = clock() - begun
            audit.spent_ns[patch] = audit.spent_ns.get(patch, 0) + elapsed - audit.inner_ns
            audit.inner_ns = inner + elapsed
            return result
        except INTERNAL as error:  # of the audit: the methods of the tracker catch their own
            self.__class__, self.audit_at = StepTracker, NEVER  # type: ignore[assignment]
            self._fail(patch, error)
            return NONE


def _timing(name: str, patch: str) -> Callable[..., Any]:
    def method(self: AuditedTracker, *args: Any) -> Any:
        return self.timed(name, patch, *args)

    method.__name__ = name
    return method


for _patch, _names in {
    "dataloader": ("begin_fetch", "end_fetch", "end_fetch_without_batch"),
    "transfer": ("end_transfer",),
    "forward": ("end_forward", "end_eval"),
    "backward": ("begin_backward", "end_backward"),
    "optimizer": ("begin_update", "end_update", "begin_scaler_update", "end_scaler_update"),
}.items():
    for _name in _names:
        setattr(AuditedTracker, _name, _timing(_name, _patch))


def _mean(values: list[int]) -> float:
    kept = values[: len(values) - int(SLOWEST_SHARE * len(values))]
    return sum(kept) / len(kept)


def _median(values: list[int]) -> float:
    return values[len(values) // 2]


class Audit:
    """Decides when the tracker times itself, keeps the result, and shuts what costs too much."""

    def __init__(
        self,
        tracker: StepTracker,
        limit_percent: float,
        shut: Callable[[str, str], None],
        rest: "Rest | None" = None,
    ) -> None:
        """`shut` is called with a patch, or RECORDER, and the reason; None: no patch ever rests."""
        self.tracker = tracker
        self.inner_ns = 0  # spent in timed methods that the present one called
        self.spent_ns: dict[str, int] = {}  # in the step in progress
        self._limit_percent = limit_percent
        self._shut = shut
        self._steps: list[dict[str, int]] = []
        self._durations: list[int] = []
        self._step_ns: float | None = None  # cost of one step
        self._known_to = 0  # the cost of so many steps is in _known_ns
        self._known_ns = 0.0
        self.on_turn: Callable[[], None] | None = None
        self.is_disturbed = False  # what is measured now would not be the agent's usual cost
        self.rest = rest
        self._next = tracker.step + FIRST_STEP  # step with which the next audit begins
        tracker.audit = self
        tracker.audit_at = self._next

    @property
    def is_running(self) -> bool:
        """Whether the tracker times itself in these steps."""
        return type(self.tracker) is AuditedTracker

    def turn(self, step: int) -> None:
        """Begins or ends timing; called when the step `tracker.audit_at` closes."""
        tracker = self.tracker
        if self.rest is not None and step < self._next:
            self.rest.is_wanted = True
            tracker.audit_at = self._next
            return
        if not self.is_running and self.is_disturbed:
            tracker.audit_at = step + STEPS
        elif not self.is_running:
            tracker.__class__ = AuditedTracker
            tracker.audit_at = step + STEPS + 1  # the first one is audited in part
            self._steps, self._durations, self.spent_ns = [], [], {}
        else:
            tracker.__class__ = StepTracker
            tracker.audit_at = self._next = step + EVERY_STEPS
            with guard("audit"):
                self._judge(step)
        if self.on_turn is not None:
            self.on_turn()

    def woken(self, watched: int | None) -> None:
        """The patches look again, for so many steps; None: until the next audit."""
        if self.is_running:
            return
        self.tracker.audit_at = self._next
        if watched is not None:
            self.tracker.audit_at = min(self._next, self.tracker.step + watched)

    def _worth(self, step: int) -> int:
        """So many steps would have cost as much if the patches had looked into each."""
        rested = 0 if self.rest is None else self.rest.steps
        return step - round((1 - RESTED_SHARE) * rested)

    def step_closed(self, close_ns: int, duration_ns: int) -> None:
        """A step was closed under audit, which took `close_ns`."""
        self.spent_ns[RECORDER] = close_ns
        self._steps.append(self.spent_ns)
        self._durations.append(duration_ns)
        self.spent_ns = {}

    def total_ns(self) -> int | None:
        """Cost of all steps so far; None before enough of them were audited."""
        if self._step_ns is None:
            if len(self._steps) <= LEAST_STEPS:
                return None
            return round(sum(self.costs().values()) * self._worth(self.tracker.step))
        later = self._worth(self.tracker.step) - self._known_to
        return round(self._known_ns + self._step_ns * later)

    def _judge(self, step: int) -> None:
        costs = self.costs()
        cost = sum(costs.values())
        before = cost if self._step_ns is None else self._step_ns
        worth = self._worth(step)
        self._known_ns += before * (worth - self._known_to)
        self._known_to, self._step_ns = worth, cost
        step_ns = _median(sorted(self._durations))
        if self.rest is not None and self.rest.helps(step_ns, cost, self._limit_percent):
            self._next = step + EVERY_SHORT_STEPS
            self.tracker.audit_at = max(FIRST_REST, step + 1)
        if step_ns < MIN_STEP_NS or not self._limit_percent:
            return
        # By the median: neighbours on the machine slow some steps down, a defect slows down most.
        for patch, patch_ns in self.costs(_median).items():
            percent = 100 * patch_ns / step_ns
            if percent > self._limit_percent and patch_ns >= LEAST_COST_NS:
                self._shut(
                    patch,
                    f"switched off at step {step}: it cost {patch_ns / 1e3:.0f} us a step, "
                    f"{percent:.1f} % of it (limit {self._limit_percent:g} %, "
                    "TRACEML_MAX_OVERHEAD)",
                )

    def costs(self, typical: Callable[[list[int]], float] = _mean) -> dict[str, float]:
        """Nanoseconds a step for each patch: what is `typical` of its sorted values."""
        steps = self._steps[1:]
        costs = {}
        for patch in sorted({patch for step in steps for patch in step}):
            values = sorted(step.get(patch, 0) for step in steps)
            ratio = 1.0 if patch == RECORDER else SHELL_RATIO
            costs[patch] = ratio * typical(values)
        return costs
