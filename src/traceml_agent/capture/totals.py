"""Sums over all steps of this process, for the record of its end."""

from traceml_agent.schema.phases import PHASES
from traceml_agent.schema.records import StepSums


class Totals:
    """Exact sums over all closed steps, fed at each drain."""

    __slots__ = ("duration_ns", "micro_batches", "phase_ns", "samples", "steps", "updates")

    def __init__(self) -> None:
        self.steps = 0
        self.duration_ns = 0
        self.phase_ns = dict.fromkeys(PHASES, 0)
        self.micro_batches = 0
        self.samples: int | None = 0
        self.updates = 0

    def add(self, sums: StepSums) -> None:
        """Adds some steps."""
        self.steps += sums.count
        self.duration_ns += sums.duration_ns
        for phase, elapsed in sums.phase_ns.items():
            self.phase_ns[phase] += elapsed
        self.micro_batches += sums.micro_batches
        self.updates += sums.updates
        if sums.samples is None or self.samples is None:
            self.samples = None
        else:
            self.samples += sums.samples
