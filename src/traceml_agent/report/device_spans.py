"""What the device did in spans: the steps that were timed on it, and what holds them."""

from collections.abc import Collection, Iterable

from traceml_agent.report.spans import Row
from traceml_agent.schema.phases import PHASES
from traceml_agent.spool.reader import Spool

STEP = "step"


def add_device_times(rows: Iterable[Row], spool: Spool, moved: Collection[int] = ()) -> None:
    """Fills `gpu_ns` of automatic steps and of their phases; and of each span around steps, if all
    of these are known, with their sum. `moved`: ids of steps that are shown without their
    beginning, which the device worked for too."""
    if not spool.device_batches:
        return
    times = _times(spool)
    known = {row.id: row for row in rows}
    unknown: set[int] = set()
    steps = [row for row in known.values() if row.id < 0 and row.name == STEP]
    first = min(steps, key=lambda row: row.start_ns, default=None)
    is_cut = bool(spool.sums) or first is None or first.index != 1
    for row in steps:
        duration, phases = times.get(int(row.index or 0), (None, {}))
        if row.id in moved:
            duration = None
        row.gpu_ns = duration
        for number, name in enumerate(PHASES):
            phase = known.get(row.id - number - 1)
            if phase is not None and phase.name == name:
                phase.gpu_ns = phases.get(name)
        for around in _around(row, known):
            begins_before = first is not None and around.start_ns < first.start_ns
            if duration is None or (is_cut and begins_before):
                unknown.add(around.id)
            else:
                around.gpu_ns = (around.gpu_ns or 0) + duration
    for number in unknown:
        known[number].gpu_ns = None


def _times(spool: Spool) -> dict[int, tuple[int | None, dict[str, int | None]]]:
    """Of each step its time on the device, and that of its phases."""
    return {
        batch.first_step + at: (
            duration,
            {name: column[at] for name, column in batch.phase_ns.items()},
        )
        for batch in spool.device_batches
        for at, duration in enumerate(batch.duration_ns)
    }


def _around(row: Row, known: dict[int, Row]) -> Iterable[Row]:
    at = row.parent_id
    for _ in known:  # a damaged spool may go round
        if at is None or at not in known:
            return
        yield known[at]
        at = known[at].parent_id
