"""Trend: whether the steps become longer over the run, slowly or from one step on.

Judged on medians of stretches, so that spikes have no say, of steps less what is no part of a
typical one (evaluation, checkpoints, compilation).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from traceml_agent.report.series import RankSeries
from traceml_agent.report.stats import MAD_TO_SIGMA, Column, mean, median, middle, theil_sen

LEAST_STEPS = 60
MOST_STRETCHES = 120
LEAST_STRETCH = 5
"""Chosen: the median of 5 steps is no spike, and 12 stretches show a bend."""
LEAST_SIDE = 3
"""Stretches on each side of a bend. Chosen: one that is slow by chance is none."""
CHANGE_WARN = 0.10
"""Source: Falcon, as signals.md names it: a change of 10 %."""
NOISE_SIGMAS = 5.0
"""How far the change must stand out of the scatter of the stretches around it. Source: the outlier
rule of signals.md."""
STEADY_SHARE = 0.8
"""Of the stretches on a side that must lie on their side of the middle. Chosen: a busy machine
makes the steps longer for a while, and that is no trend."""


@dataclass(frozen=True, slots=True)
class Trend:
    """A change of the step over the run."""

    kind: str  # "step": from one step on; "drift": little by little
    at_step: int  # where the change is; of a drift its first step
    before_ms: float
    after_ms: float  # of a drift: at its end
    noise_ms: float
    slope_ms_per_1000: float  # Theil-Sen, over all steps

    @property
    def ratio(self) -> float:
        """By how much the steps became longer; negative: shorter."""
        return self.after_ms / self.before_ms - 1 if self.before_ms else 0.0


def trend_of(series: RankSeries, typical_ns: Column) -> Trend | None:
    """The change over the steps after the warm-up, where there is one beyond doubt."""
    first = series.first_steady
    count = len(typical_ns) - first
    if count < LEAST_STEPS:
        return None
    size = max(LEAST_STRETCH, -(-count // MOST_STRETCHES))
    stretches = [first + i * size for i in range(count // size)]
    levels = [(middle(typical_ns[at : at + size]) or 0.0) / 1e6 for at in stretches]
    steps = [float(series.steps[at]) for at in stretches]
    slope = theil_sen(list(zip(steps, levels, strict=True))) or 0.0
    line = [slope * (x - steps[0]) for x in steps]
    base = median([y - ns for y, ns in zip(levels, line, strict=True)]) or 0.0
    bend = _bend(levels)
    low, high = levels[:bend], levels[bend:]
    before, after = median(low) or 0.0, median(high) or 0.0
    by_bend = [y - before for y in low] + [y - after for y in high]
    by_line = [y - base - ns for y, ns in zip(levels, line, strict=True)]
    if _scatter(by_bend) <= _scatter(by_line):
        noise, at = _sigma(by_bend), series.steps[stretches[bend]]
        found = Trend("step", at, before, after, noise, slope * 1000)
        is_clear = _apart(low, high, (before + after) / 2)
    else:
        start, end = base, base + line[-1]
        found = Trend("drift", int(steps[0]), start, end, _sigma(by_line), slope * 1000)
        half = len(levels) // 2
        is_clear = _apart(levels[:half], levels[half:], (start + end) / 2)
    change = abs(found.after_ms - found.before_ms)
    is_large = change >= CHANGE_WARN * found.before_ms and change >= NOISE_SIGMAS * found.noise_ms
    return found if is_large and is_clear else None


def _bend(levels: Sequence[float]) -> int:
    """Where two constants describe the stretches best, by least squares."""
    whole, count = sum(levels), len(levels)
    best, best_gain, left = LEAST_SIDE, -1.0, sum(levels[:LEAST_SIDE])
    for at in range(LEAST_SIDE, count - LEAST_SIDE + 1):
        right = whole - left
        gain = left * left / at + right * right / (count - at)
        if gain > best_gain:
            best, best_gain = at, gain
        left += levels[at] if at < count else 0.0
    return best


def _apart(low: Sequence[float], high: Sequence[float], border: float) -> bool:
    """Whether nearly all stretches of each part lie on their side of the border."""
    rises = (mean(high) or 0.0) > (mean(low) or 0.0)
    below = sum((y < border) == rises for y in low) / len(low)
    above = sum((y > border) == rises for y in high) / len(high)
    return min(below, above) >= STEADY_SHARE


def _scatter(rest: Sequence[float]) -> float:
    return sum(abs(value) for value in rest)


def _sigma(rest: Sequence[float]) -> float:
    return MAD_TO_SIGMA * (median([abs(value) for value in rest]) or 0.0)
