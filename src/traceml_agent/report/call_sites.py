"""Where the training calls something: the line at which stacks part from those of the training."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from traceml_agent.report.diagnose.issue import Place
from traceml_agent.report.diagnose.seen import DOMINANT
from traceml_agent.report.view import RankView
from traceml_agent.schema.phases import COMPUTE_PHASES
from traceml_agent.schema.stacks import CodeLine

Lines = dict[tuple[str, str], set[int]]


def call_site(ranks: Sequence[RankView], phase: str) -> Place | None:
    """The line of the training's own code from which most of a phase was reached; None: unknown."""
    stacks = list(_stacks(ranks))
    training: Lines = defaultdict(set)
    for name, path, _ in stacks:
        if name in COMPUTE_PHASES:
            for line in path:
                training[line.file, line.function].add(line.line)
    weights: dict[tuple[str, int, str], int] = defaultdict(int)
    whole = 0
    for name, path, weight in stacks:
        if name != phase:
            continue
        whole += weight
        site = _site(path, training)
        if site is not None:
            weights[site.file, site.line, site.function] += weight
    best = max(weights, key=lambda key: weights[key], default=None)
    return None if best is None or weights[best] < DOMINANT * whole else Place(*best)


def _stacks(ranks: Sequence[RankView]) -> Iterable[tuple[str, list[CodeLine], int]]:
    """Phase, lines (the outermost first) and time of all stacks that were seen."""
    for rank in ranks:
        stacks = rank.spool.stacks
        for row in () if stacks is None else stacks.rows:
            if row.lines and not row.before and stacks is not None:
                yield row.phase, [stacks.lines[n] for n in reversed(row.lines)], row.weight_ns


def _site(path: Sequence[CodeLine], training: Lines) -> CodeLine | None:
    """The first line that the training was not seen in, of a function that it was seen in."""
    known = None
    for line in path:
        lines = training.get((line.file, line.function))
        if lines is None:
            return known
        if line.line not in lines:
            return line
        known = line
    return None
