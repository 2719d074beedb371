"""Epochs, evaluations, steps and phases as spans, with the scopes of the program among them.

All of it is made when somebody looks, from records that exist anyway: steps with their start and
duration, the passes through each loader, and of each scope the phase in which it was opened.
A phase of a step is a sum: when its parts began is not known, so phases stand one after another.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter

from traceml_agent.report.device_spans import STEP, add_device_times
from traceml_agent.report.passes import OPEN, Pass, StepBounds, passes_of, told_apart
from traceml_agent.report.spans import Row
from traceml_agent.schema.phases import CHECKPOINT, EVAL, PHASES
from traceml_agent.spool.reader import Spool

SLACK_NS = 100_000
"""A scope may begin so long before the step that it holds the first call of: `with scope("load"):
batch = next(batches)`. Chosen: some calls of Python on a busy machine."""
EPOCH, EVALUATION = "epoch", "evaluation"
_PASS = len(PHASES) + 1
_IDS = _PASS + 1  # of a step: its own, then its phases, then one for a pass
_DEEPEST = 1_000


@dataclass(slots=True)
class _Node:
    """A span on the time line of the training thread."""

    row: Row
    start: int
    end: int  # OPEN: none yet
    least: int  # it may be shown as ended from here on
    phases: dict[int, int]
    parent: "_Node | None" = None
    is_automatic: bool = True
    micro_batches: int = 1  # of a step


def with_automatic(rows: list[Row], spool: Spool, most: int) -> list[Row]:
    """The rows of scopes, and those of the training around and among them; the newest `most`."""
    steps = _steps(spool, most)
    passes = passes_of(spool)
    if not steps and not passes:
        return rows
    bounds = [StepBounds(node.start, node.end, node.micro_batches) for node in steps]
    trainings, evaluations = told_apart(spool, bounds, passes, has_older=_has_older(spool, steps))
    nodes = [*steps]
    elsewhere = {row.id for row in rows if row.phase is None}
    users = [
        _of_user(row) for row in rows if row.phase is not None and row.parent_id not in elsewhere
    ]
    latest = max([one.start for one in passes] + [node.end for node in steps[-1:]])
    ends = {one.order: _end_of(one, latest, spool.end is not None) for one in evaluations}
    epochs = _epochs(spool, steps, trainings, evaluations, users, ends)
    own_epochs = _Epochs(users)
    nodes += [node for node in epochs if not own_epochs.hold(node.start)]
    nodes += [_evaluation(e, number, ends[e.order]) for number, e in enumerate(evaluations)]
    moved = _begin_with_pass(steps, trainings)
    _lean_on_steps(users, steps)
    _place([*nodes, *users])
    found = [*rows]
    for node in nodes:
        node.row.end_ns = None if node.end == OPEN else node.end
        found.append(node.row)
    found += _phases(nodes, users)
    for node in (*nodes, *users):
        node.row.parent_id = None if node.parent is None else node.parent.row.id
    _below_phases(nodes, users, {row.id: row for row in found})
    add_device_times(found, spool, moved)
    return newest(found, most)


def newest(rows: list[Row], most: int) -> list[Row]:
    """The open spans, and of the closed ones those that were closed last."""
    closed = [row for row in rows if row.end_ns is not None]
    if len(closed) <= most:
        return rows
    closed.sort(key=lambda row: (row.end_ns or 0, -len(row.name)))
    gone = {row.id for row in closed[: len(closed) - most]}
    return [row for row in rows if row.id not in gone]


# What there is


def _steps(spool: Spool, most: int) -> list[_Node]:
    """The newest steps with their phases, up to so many spans."""
    found: list[_Node] = []
    for batch in sorted(spool.batches, key=attrgetter("first_step"), reverse=True):
        start = batch.start_ns + sum(batch.duration_ns)
        columns = [(PHASES.index(name), column) for name, column in batch.phase_ns.items()]
        for at in range(batch.count - 1, -1, -1):
            end, start = start, start - batch.duration_ns[at]
            phases = {phase: int(c[at]) for phase, c in sorted(columns) if c[at]}
            most -= 1 + len(phases)
            if most < 0:
                return found[::-1]
            number = batch.first_step + at
            row = Row(-_IDS * number, None, STEP, number, start, end, None, {}, [])
            micro = batch.micro_batches
            node = _Node(row, start, end, start + sum(phases.values()), phases)
            node.micro_batches = micro if isinstance(micro, int) else micro[at]
            found.append(node)
    return found[::-1]


def _has_older(spool: Spool, steps: Sequence[_Node]) -> bool:
    """Whether there were steps that are not known one by one."""
    return bool(spool.sums) or (bool(steps) and steps[0].row.index != 1)


def _evaluation(one: Pass, number: int, end: int) -> _Node:
    row = Row(-_IDS * one.order - _PASS, None, EVALUATION, number, one.start, None, None, {}, [])
    return _Node(row, one.start, end, one.known_end, {})


def _end_of(one: Pass, latest: int, is_over: bool) -> int:
    """Of a pass; one that has no end was left, or the process was."""
    if one.end is not None:
        return one.end
    return one.last if latest > one.last or is_over else OPEN


def _epochs(
    spool: Spool,
    steps: Sequence[_Node],
    trainings: Sequence[Pass],
    evaluations: Sequence[Pass],
    users: Sequence[_Node],
    ends_of: dict[int, int],
) -> list[_Node]:
    """An epoch lasts until the next one begins; the last one as long as what belongs to it."""
    found = []
    is_cut = _has_older(spool, steps)
    for number, one in enumerate(trainings):
        after = trainings[number + 1].start if number + 1 < len(trainings) else None
        inner = [e for e in evaluations if one.start <= e.start and (not after or e.start < after)]
        ends = [ends_of[e.order] for e in inner]
        least = max([one.known_end, *(e.known_end for e in inner)])
        if after is not None:
            end = max(after, one.start)
        elif (one.end is None and spool.end is None) or OPEN in ends:
            end = OPEN
        else:
            last = steps[-1].end if steps and steps[-1].end > one.start else one.start
            around = [
                user.end
                for user in users
                for e in inner
                if one.start <= user.start <= e.start and e.known_end <= user.end < OPEN
            ]
            end = max([least, last, *around])
        index = one.number if is_cut else number
        row = Row(-_IDS * one.order - _PASS, None, EPOCH, index, one.start, None, None, {}, [])
        found.append(_Node(row, one.start, end, min(least, end), {}))
    return found


class _Epochs:
    """The scopes that the program itself calls epochs."""

    def __init__(self, users: Sequence[_Node]) -> None:
        found = sorted((u.start, u.end) for u in users if u.row.name == EPOCH)
        self._starts = [start for start, _ in found]
        self._ends = [end for _, end in found]

    def hold(self, start: int) -> bool:
        """Whether one of them holds this moment."""
        at = bisect_right(self._starts, start)
        return at > 0 and start < self._ends[at - 1]


def _of_user(row: Row) -> _Node:
    end = OPEN if row.end_ns is None else row.end_ns
    return _Node(row, row.start_ns, end, end, {}, is_automatic=False)


# Where it belongs


def _begin_with_pass(steps: Sequence[_Node], trainings: Sequence[Pass]) -> set[int]:
    """The first step of an epoch holds what came since the last one: it is shown without. Returns
    the ids of these."""
    moved: set[int] = set()
    starts = [node.start for node in steps]
    for one in trainings:
        at = bisect_left(starts, one.start) - 1
        if at < 0 or steps[at].end <= one.start:
            continue
        node = steps[at]
        gap = one.start - node.start
        before = node.phases.get(EVAL, 0) + node.phases.get(CHECKPOINT, 0)
        if before <= gap:
            node.phases.pop(EVAL, None)
            node.phases.pop(CHECKPOINT, None)
        node.start = node.row.start_ns = one.start
        moved.add(node.row.id)
        length = node.end - node.start
        node.phases = {phase: ns for phase, ns in node.phases.items() if ns <= length}
        node.least = min(node.end, node.start + sum(node.phases.values()))
    return moved


def _lean_on_steps(users: Sequence[_Node], steps: Sequence[_Node]) -> None:
    starts = [node.start for node in steps]
    for user in users:
        at = bisect_right(starts, user.start)
        if at < len(starts) and starts[at] <= user.start + SLACK_NS:
            step = steps[at]
            # One that has room for all phases holds the step, and is not held by it.
            if step.start < user.end < step.least:
                user.start = step.start


def _place(nodes: list[_Node]) -> None:
    """Gives each node the nearest one around it."""
    nodes.sort(key=lambda n: (n.start, -n.end, not n.is_automatic, n.row.name != EPOCH, n.row.id))
    known = {node.row.id: node for node in nodes}
    around: list[_Node] = []
    for node in nodes:
        around = [other for other in around if other.end > node.start]
        if node.is_automatic:
            node.parent = _container(node, around)
        else:
            node.parent = _around_scope(node, around, known)
        around.append(node)


def _container(node: _Node, around: Sequence[_Node]) -> _Node | None:
    for other in reversed(around):
        if other.end >= node.end:
            return other
        if other.end >= node.least and not (other.is_automatic and other.row.name != EPOCH):
            node.end = other.end  # what follows, up to the next step, is none of its phases
            return other
    return None


def _around_scope(node: _Node, around: Sequence[_Node], known: dict[int, _Node]) -> _Node | None:
    """The scope that the program has it in, unless a part of the training lies between them."""
    own = None if node.row.parent_id is None else known.get(node.row.parent_id)
    for other in reversed(around):
        if other is own:
            return own
        if other.is_automatic and other.end >= node.end and _is_below(other, own):
            return other
    return own


def _is_below(node: _Node, wanted: _Node | None) -> bool:
    at: _Node | None = node
    for _ in range(_DEEPEST):  # a damaged spool may go round
        if at is None or at is wanted:
            break
        at = at.parent
    return at is wanted


def _phases(nodes: Sequence[_Node], users: Sequence[_Node]) -> list[Row]:
    """A row for each phase of each step, not before the first scope that was opened in it."""
    inner: dict[tuple[int, int], int] = {}
    for user in users:
        if user.parent is not None and user.row.phase:
            key = (user.parent.row.id, user.row.phase - 1)
            inner[key] = min(user.start, inner.get(key, user.start))
    found = []
    for node in nodes:
        at = node.start
        left = sum(node.phases.values())
        for phase, length in node.phases.items():
            at = max(at, min(inner.get((node.row.id, phase), at), node.end - left))
            left -= length
            number = node.row.id - phase - 1
            row = Row(number, node.row.id, PHASES[phase], None, at, at + length, None, {}, [])
            row.fixed = True
            found.append(row)
            at += length
    return found


def _below_phases(nodes: Sequence[_Node], users: Sequence[_Node], rows: dict[int, Row]) -> None:
    """What was opened within a phase of a step lies below that phase."""
    for node in (*nodes, *users):
        if node.parent is None or node.parent.row.name != STEP or not node.parent.is_automatic:
            continue
        phase = EVAL if node.is_automatic else (node.row.phase or 0) - 1
        around = rows.get(node.parent.row.id - phase - 1) if phase >= 0 else None
        if around is None or around.end_ns is None or node.end == OPEN:
            continue
        if node.end - node.start <= around.end_ns - around.start_ns:
            node.row.parent_id, node.row.fixed = around.id, True
