"""Percentiles of each phase over the steps of all ranks, as the averages beside them are."""

from array import array
from collections.abc import Mapping, Sequence

from traceml_agent.report.stats import largest, quantile, sorted_column
from traceml_agent.schema.phases import PHASES

MS = 1e6
QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99))
MOST_VALUES = 200_000
"""Of one phase that are sorted. Chosen: 2,000 of them are above the 99th percentile."""
NAMES = ("step_time", *PHASES, "residual")


class Distribution:
    """Fed rank by rank: the columns of thousands of ranks are never in memory together."""

    def __init__(self, values: int) -> None:
        """`values`: how many a phase has over all ranks."""
        stride = max(1, -(-values // MOST_VALUES))
        while stride > 1 and (stride % 2 == 0 or stride % 5 == 0):
            stride += 1  # or what a loop does every ten steps would be seen always or never
        self._stride = stride
        self._ranks = 0
        self._values = {name: array("q") for name in NAMES}
        self._most: dict[str, int] = {}

    def add(self, columns: Mapping[str, Sequence[int] | None]) -> None:
        """Takes the columns of a rank: every n-th value, each rank beginning one later."""
        first = self._ranks % self._stride
        self._ranks += 1
        for name in NAMES:
            column = columns.get(name)
            if column is not None and len(column):
                self._values[name].extend(column[first :: self._stride])
                self._most[name] = max(largest(column), self._most.get(name, 0))

    def to_json(self) -> dict[str, dict[str, float | None]]:
        """Milliseconds, of the phases that some rank measured; the maximum is over all steps."""
        found = {}
        for name, most in self._most.items():
            ordered = sorted_column(self._values[name])
            found[name] = {
                label: None if (value := quantile(ordered, q)) is None else value / MS
                for label, q in QUANTILES
            }
            found[name]["max"] = most / MS
        return {name: found[name] for name in NAMES if name in found}
