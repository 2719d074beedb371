"""Losses: what each cause took of each step, the common coin of spikes, findings and what-ifs."""

from dataclasses import dataclass

from traceml_agent.report.stats import Column


@dataclass(frozen=True, slots=True)
class Loss:
    """What one cause took of the steps of one rank.

    `lost_ns` holds one integer a step, in the order of `RankSeries.steps`; it is time that the
    training thread lost, so never more than the step. Losses of two causes may overlap: `within`
    names the phase in which most of it lies, None for the residual.
    """

    cause: str  # "gc", "throttled", "contention", "checkpoint", "recompile", "input", ...
    rank: int
    lost_ns: Column
    within: str | None = None
