"""Where an attempt continued the one before it, and so which steps were made in vain.

Positions are counted in steps of the whole run, from 0 at the start of its first attempt.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from traceml_agent.report.membership import Attempt, anchors_of, machine_of
from traceml_agent.schema.records import Event
from traceml_agent.spool.reader import Spool, last_step

FILE_TIME_SLACK_NS = 20_000_000
"""A file may seem older than the end of its writing: file systems stamp by a clock that ticks every
4 to 10 ms."""
END_SLACK_NS = 2_000_000_000
"""A killed process lived longer than its files tell: by less than two samples of 1 s."""
LOAD_STATE_DICT = "Module.load_state_dict"


@dataclass(frozen=True, slots=True)
class Resumption:
    """The position at which an attempt began; None: it cannot be known."""

    position: int | None
    basis: str
    """"first attempt", "optimizer" (its own count), "checkpoint file" (when it was written), "last
    checkpoint" (assumed), "nothing was loaded", "unknown"."""


@dataclass(frozen=True, slots=True)
class _Save:
    """A checkpoint: the position that it holds."""

    position: int | None  # None: that of its attempt is not known
    optimizer_step: int | None
    start_ns: int  # wall
    end_ns: int


def resumptions_of(attempts: Sequence[Attempt]) -> list[Resumption]:
    """One for each attempt, in order."""
    found: list[Resumption] = []
    saves: list[_Save] = []
    for index, attempt in enumerate(attempts):
        spools = [life.spool for life in attempt.lives.values()]
        if index == 0:
            found.append(Resumption(0, "first attempt"))
        else:
            found.append(_resumption(spools, attempts[:index], found, saves))
        saves += _saves_of(spools, found[-1].position)
    return found


def kept_steps(attempts: Sequence[Attempt], resumed: Sequence[Resumption]) -> list[int | None]:
    """How many steps of each attempt no later one made again; None: cannot be known."""
    kept: list[int | None] = []
    for index, attempt in enumerate(attempts):
        begun, done = resumed[index].position, steps_of(attempt)
        later = [r.position for r in resumed[index + 1 :]]
        if not later:
            kept.append(done)
        elif begun is None or any(position is None for position in later):
            # What is known to start afresh or earlier keeps nothing, whatever came between.
            known = [p for p in later if p is not None]
            kept.append(0 if begun is not None and known and min(known) <= begun else None)
        else:
            least = min(position for position in later if position is not None)
            kept.append(max(0, min(done, least - begun)))
    return kept


def steps_of(attempt: Attempt) -> int:
    """Steps that an attempt closed: of the rank that came furthest."""
    return max((last_step(life.spool) for life in attempt.lives.values()), default=0)


def _resumption(
    spools: list[Spool],
    earlier: Sequence[Attempt],
    resumed: Sequence[Resumption],
    saves: list[_Save],
) -> Resumption:
    if all(spool.statuses.get("checkpoint") != "active" for spool in spools):
        return Resumption(None, "unknown")
    counted = _first_count(spools)
    if counted is not None:
        return _by_optimizer(counted, earlier, resumed, saves)
    loads = [e for s in spools for e in s.events if e.name == "load"]
    files = [e for e in loads if e.detail.get("call") != LOAD_STATE_DICT]
    was_before = {
        e.detail.get("at")
        for life in earlier[0].lives.values()
        for e in life.spool.events
        if e.name == "load"
    }
    if files:
        return _by_files(files, was_before, earlier, resumed, saves)
    has_state = any(e.name == "resume" for s in spools for e in s.events)
    if has_state or any(e.detail.get("at") not in was_before for e in loads):
        return Resumption(None, "unknown")  # a format of its own
    return Resumption(0, "nothing was loaded")


def _first_count(spools: list[Spool]) -> int | None:
    """How often the optimizer had stepped before the first step here, if it says so."""
    found = (e.detail.get("optimizer_step") for s in spools for e in s.events if e.name == "resume")
    return next((n for n in found if isinstance(n, int) and not isinstance(n, bool)), None)


def _by_optimizer(
    counted: int,
    earlier: Sequence[Attempt],
    resumed: Sequence[Resumption],
    saves: list[_Save],
) -> Resumption:
    for save in reversed(saves):
        if save.optimizer_step == counted:
            return _at(save, "optimizer")
    # No such save was seen: its record was lost with its process. One update is one step.
    first = _first_count([life.spool for life in earlier[0].lives.values()]) or 0
    position = counted - first
    if 0 <= position <= _reached(earlier, resumed):
        return Resumption(position, "optimizer")
    return Resumption(None, "unknown")


def _reached(earlier: Sequence[Attempt], resumed: Sequence[Resumption]) -> int:
    ends = [
        r.position + steps_of(a) + 1  # a step whose update is done may have died open
        for a, r in zip(earlier, resumed, strict=True)
        if r.position is not None
    ]
    return max(ends, default=0)


def _by_files(
    files: list[Event],
    was_before: set[str | int | float | None],
    earlier: Sequence[Attempt],
    resumed: Sequence[Resumption],
    saves: list[_Save],
) -> Resumption:
    stamps = [e.detail.get("written_ns") for e in files]
    written = [w for w in stamps if isinstance(w, int) and not isinstance(w, bool)]
    began = min(life.born for life in earlier[0].lives.values())
    fresh = [w for w in written if w >= began - FILE_TIME_SLACK_NS]
    if fresh:
        found = _position_at(max(fresh), earlier, resumed, saves)
        if found is not None:
            return found
    elif len(written) == len(files):
        return Resumption(0, "nothing was loaded")  # older than the run: where it started from
    elif all(e.detail.get("at") in was_before for e in files):
        return Resumption(0, "nothing was loaded")  # the same as the first attempt loaded
    if saves:
        return _at(saves[-1], "last checkpoint")
    return Resumption(None, "unknown")


def _at(save: _Save, basis: str) -> Resumption:
    return Resumption(save.position, "unknown" if save.position is None else basis)


def _position_at(
    written_ns: int, earlier: Sequence[Attempt], resumed: Sequence[Resumption], saves: list[_Save]
) -> Resumption | None:
    """The position of the run when a file was written, by the clock of the machine that ran."""
    for save in reversed(saves):
        slack = FILE_TIME_SLACK_NS
        if save.start_ns - slack <= written_ns <= save.end_ns + slack:
            return _at(save, "checkpoint file")
    for attempt, where in zip(reversed(earlier), reversed(resumed), strict=True):
        lead = next(iter(attempt.lives.values()))
        if lead.born > written_ns:
            continue
        if written_ns > max(life.end for life in attempt.lives.values()) + END_SLACK_NS:
            return None  # copied since, or written by something that outlived the attempt
        if where.position is None:
            return Resumption(None, "unknown")
        anchor = anchors_of([lead.spool])[machine_of(lead.spool.header)]
        position = where.position + _closed_by(lead.spool, written_ns - anchor)
        return Resumption(position, "checkpoint file")
    return None


def _closed_by(spool: Spool, moment_ns: int) -> int:
    """Steps closed at a moment, and the one in which a checkpoint was being written then."""
    done, shift = 0, _shift_of(spool)
    for batch in spool.batches:
        ends = itertools.accumulate(batch.duration_ns, initial=batch.start_ns)
        saving = batch.phase_ns.get("checkpoint") or [0] * batch.count
        begun = next(ends)
        for step, (end, saved) in enumerate(zip(ends, saving, strict=True), batch.first_step):
            if end <= moment_ns:
                done = max(done, step)
            elif begun <= moment_ns and saved:
                done = max(done, step + shift)
            begun = end
    for part in spool.sums:
        if part.start_ns + part.duration_ns <= moment_ns:
            done = max(done, part.first_step + part.count - 1)
    return done


def _saves_of(spools: list[Spool], base: int | None) -> list[_Save]:
    """The checkpoints of an attempt, oldest first."""
    found = []
    for spool in spools:
        anchor = anchors_of([spool])[machine_of(spool.header)]
        for event in spool.events:
            done, count = event.detail.get("steps_done"), event.detail.get("optimizer_step")
            if event.name != "checkpoint" or event.detail.get("failed"):
                continue
            if not isinstance(done, int) or not 0 <= done <= last_step(spool) + 1:
                continue
            start = event.monotonic_ns + anchor
            end = start + (event.duration_ns or 0)
            counted = count if isinstance(count, int) else None
            found.append(_Save(None if base is None else base + done, counted, start, end))
        seen = max((e.step for e in spool.events if e.name == "checkpoint"), default=0)
        found += _unrecorded(spool, seen, base, anchor)
    return sorted(found, key=lambda save: (save.end_ns, save.position or 0))


def _unrecorded(spool: Spool, seen: int, base: int | None, anchor: int) -> list[_Save]:
    """Checkpoints after the last one on record: a killed process takes its last events along, but
    not its steps, which say that a checkpoint was written in them."""
    found, shift = [], _shift_of(spool)
    for batch in spool.batches:
        column = batch.phase_ns.get("checkpoint")
        if column is None or batch.first_step + batch.count <= seen:
            continue
        start = batch.start_ns + anchor
        for step, (length, saving) in enumerate(
            zip(batch.duration_ns, column, strict=True), batch.first_step
        ):
            if saving and step > seen:
                position = None if base is None else base + step + shift
                found.append(_Save(position, None, start, start + length))
            start += length
    return found


def _shift_of(spool: Spool) -> int:
    """0 where a checkpoint holds the step that its time is in; -1 where it holds the one before.

    In a loop without a DataLoader a step ends with its update, and what is saved then lies in the
    next one. Told by the last checkpoint on record.
    """
    for event in reversed(spool.events):
        done = event.detail.get("steps_done")
        if event.name != "checkpoint" or not isinstance(done, int):
            continue
        for batch in spool.batches:
            length = event.monotonic_ns - batch.start_ns
            if 0 <= length < sum(batch.duration_ns):
                ends = itertools.accumulate(batch.duration_ns)
                step = batch.first_step + sum(end <= length for end in ends)
                return max(-1, min(0, done - step))
    return 0
