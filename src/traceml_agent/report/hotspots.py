"""Hotspots: the lines of the program in which each phase passes, from samples of all ranks.

The share of a line in a phase is that of the time its samples stand for; what it takes of a step is
this share of the exact time of the phase. Both are estimates, with an interval.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import sqrt

from traceml_agent.report.diagnose.issue import Place
from traceml_agent.report.input_lines import TrainingLoop, input_confidence
from traceml_agent.report.late_samples import placed
from traceml_agent.report.line_kinds import PYTHON, kind_of
from traceml_agent.report.view import RankView
from traceml_agent.schema.phases import COMPUTE_PHASES
from traceml_agent.schema.stacks import OUTSIDE, RESIDUAL, UNKNOWN, CodeLine, StackRow, Stacks

Z = 1.96
"""Of the interval: 95 %."""
ONE_CALL = 0.8
"""Of the time of a line: an expression that takes so much is named in place of the whole line."""
LATE_SHARE = 0.5
"""Of the samples of a line: if so many came late, it is code that holds the interpreter lock; if so
many came where the program let go of the lock, it may be the code before."""
MOST_PATHS = 3

Key = tuple[str, str, int, bool]


@dataclass(frozen=True, slots=True)
class Path:
    """One way on which a line was reached."""

    share: float  # of the line
    lines: tuple[CodeLine, ...]  # the innermost first


@dataclass(frozen=True, slots=True)
class Hotspot:
    """One line in one phase, over all ranks."""

    phase: str
    place: Place
    kind: str | None
    input: str | None  # how sure it is that it makes the next batch
    before: bool  # not this line, but what ran just before it
    share: float  # of the phase
    low: float
    high: float
    samples: int
    ms_per_step: float | None  # None outside steps
    late_share: float
    yielded_share: float  # of the samples: the line that they saw, or what ran just before it
    library: str | None  # the innermost function of a library that it is most often in
    paths: tuple[Path, ...]
    ranks: tuple[int, ...]  # those on which it takes more than on the others


@dataclass(frozen=True, slots=True)
class Hotspots:
    """All lines, the one that takes most first, and what a phase was sampled."""

    spots: list[Hotspot]
    samples: dict[str, int]  # by phase
    host_ms: dict[str, float]  # exact, by phase and residual; `step` the whole


@dataclass(slots=True)
class _Line:
    """What is known of a line while ranks are added."""

    weight: int = 0
    samples: int = 0
    late: int = 0
    yielded: int = 0
    calls: dict[str | None, int] = field(default_factory=lambda: defaultdict(int))
    kinds: dict[str | None, int] = field(default_factory=lambda: defaultdict(int))
    inputs: dict[str | None, int] = field(default_factory=lambda: defaultdict(int))
    leaves: dict[str | None, int] = field(default_factory=lambda: defaultdict(int))
    paths: dict[tuple[CodeLine, ...], int] = field(default_factory=lambda: defaultdict(int))
    ranks: dict[int, tuple[int, int]] = field(default_factory=dict)  # weight, samples
    line: CodeLine | None = None


def hotspots_of(ranks: Sequence[RankView], host_ms: dict[str, float]) -> Hotspots:
    """The lines of all ranks; `host_ms` is what each phase takes of a step."""
    lines: dict[Key, _Line] = defaultdict(_Line)
    weights: dict[str, int] = defaultdict(int)
    samples: dict[str, int] = defaultdict(int)
    of_rank: dict[int, dict[str, tuple[int, int]]] = {}
    loop = TrainingLoop([(phase, stack) for rank in ranks for phase, stack in _stacks(rank)])
    for rank in ranks:
        stacks = rank.spool.stacks
        if stacks is None:
            continue
        rows = placed(stacks)
        of_rank[rank.rank] = found = _totals(rows, stacks)
        for phase, (weight, count) in found.items():
            weights[phase] += weight
            samples[phase] += count
        _add(rank.rank, rows, stacks, lines, loop)
    spots = [
        _hotspot(key, line, weights, samples, host_ms, of_rank)
        for key, line in lines.items()
        if key[0] != UNKNOWN
    ]
    spots.sort(key=lambda s: (-(s.ms_per_step or 0.0), -s.share, s.place.file, s.place.line))
    return Hotspots(spots, dict(samples), host_ms)


def _stacks(rank: RankView) -> Iterable[tuple[str, tuple[CodeLine, ...]]]:
    stacks = rank.spool.stacks
    for row in () if stacks is None else stacks.rows:
        yield row.phase, tuple(stacks.lines[number] for number in row.lines) if stacks else ()


def _totals(rows: list[StackRow], stacks: Stacks) -> dict[str, tuple[int, int]]:
    """Time and number of the samples of each phase."""
    found: dict[str, tuple[int, int]] = {}
    for row in rows:
        weight, count = found.get(row.phase, (0, 0))
        found[row.phase] = weight + row.weight_ns, count + row.samples
    for phase, other in stacks.other.items():
        weight, count = found.get(phase, (0, 0))
        found[phase] = weight + other, count + stacks.other_samples.get(phase, 0)
    return found


def _add(
    rank: int,
    rows: list[StackRow],
    stacks: Stacks,
    lines: dict[Key, _Line],
    loop: TrainingLoop,
) -> None:
    for row in rows:
        if not row.lines:
            continue
        path = tuple(stacks.lines[number] for number in row.lines)
        inner = path[0]
        found = lines[row.phase, inner.file, inner.line, row.before]
        found.line = found.line or inner
        found.weight += row.weight_ns
        found.samples += row.samples
        found.late += row.late
        found.yielded += row.yielded
        found.calls[inner.call] += row.weight_ns
        kind = kind_of(inner.call, inner.text, row.callee, row.leaf)
        found.kinds[kind] += row.weight_ns
        found.inputs[input_confidence(row.phase, path, kind, loop)] += row.weight_ns
        found.leaves[row.leaf or row.callee] += row.weight_ns
        found.paths[path[1:]] += row.weight_ns
        weight, count = found.ranks.get(rank, (0, 0))
        found.ranks[rank] = weight + row.weight_ns, count + row.samples


def _is_own(phase: str, found: _Line) -> bool:
    """Whether the line works itself: in the residual all do; in a model most call a library."""
    return phase == RESIDUAL or (phase in COMPUTE_PHASES and _most(found.leaves) is None)


def _hotspot(
    key: Key,
    found: _Line,
    weights: dict[str, int],
    samples: dict[str, int],
    host_ms: dict[str, float],
    of_rank: dict[int, dict[str, tuple[int, int]]],
) -> Hotspot:
    phase, file, number, before = key
    share = found.weight / weights[phase] if weights[phase] else 0.0
    low, high = interval(share, samples[phase])
    late = found.late / found.samples if found.samples else 0.0
    kind = _most(found.kinds)
    line = found.line or CodeLine(file, number, "")
    ms = host_ms.get(phase)
    return Hotspot(
        phase=phase,
        place=Place(file, number, line.function, _code(found, line)),
        kind=PYTHON if kind is None and late >= LATE_SHARE and _is_own(phase, found) else kind,
        input=_most(found.inputs),
        before=before,
        share=share,
        low=low,
        high=high,
        samples=found.samples,
        ms_per_step=None if phase == OUTSIDE or ms is None else share * ms,
        late_share=late,
        yielded_share=found.yielded / found.samples if found.samples else 0.0,
        library=_most(found.leaves),
        paths=_paths(found),
        ranks=_ranks_apart(found, phase, of_rank),
    )


def _most(weights: dict[str | None, int]) -> str | None:
    return max(weights, key=lambda name: (weights[name], name or ""), default=None)


def _code(found: _Line, line: CodeLine) -> str | None:
    call = _most(found.calls)
    if call is not None and found.calls[call] >= ONE_CALL * found.weight:
        return call
    return line.text


def _paths(found: _Line) -> tuple[Path, ...]:
    """The ways to the line that most of its time was reached on."""
    ordered = sorted(found.paths.items(), key=lambda item: -item[1])
    return tuple(
        Path(weight / found.weight if found.weight else 0.0, path)
        for path, weight in ordered[:MOST_PATHS]
    )


def _ranks_apart(
    found: _Line, phase: str, of_rank: dict[int, dict[str, tuple[int, int]]]
) -> tuple[int, ...]:
    """Ranks whose interval lies above that of all others together."""
    if len(of_rank) < 2:
        return ()
    all_weight = sum(totals.get(phase, (0, 0))[0] for totals in of_rank.values())
    all_samples = sum(totals.get(phase, (0, 0))[1] for totals in of_rank.values())
    apart = []
    for rank, (weight, _) in found.ranks.items():
        rank_weight, rank_samples = of_rank[rank].get(phase, (0, 0))
        others, count = all_weight - rank_weight, all_samples - rank_samples
        if not rank_weight or not others:
            continue
        rest = (found.weight - weight) / others
        if interval(weight / rank_weight, rank_samples)[0] > interval(rest, count)[1]:
            apart.append(rank)
    return tuple(sorted(apart))


def interval(share: float, samples: int) -> tuple[float, float]:
    """The share of which so many samples may come, with 95 %. Source: Wilson's score interval."""
    if not samples:
        return 0.0, 1.0
    share = min(1.0, max(0.0, share))
    center = share + Z * Z / (2 * samples)
    spread = Z * sqrt(share * (1 - share) / samples + Z * Z / (4 * samples * samples))
    scale = 1 + Z * Z / samples
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)
