"""The passes through the loaders of a process: which of them are epochs, and which evaluations."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

from traceml_agent.spool.reader import Spool

OPEN = 1 << 62
"""In place of an end that is not known."""


@dataclass(slots=True)
class Pass:
    """Once through a loader."""

    loader: int
    number: int
    start: int
    end: int | None
    last: int
    batches: int
    order: int = 0  # among all passes

    @property
    def known_end(self) -> int:
        """When it ended; of one that was left, when its last batch came."""
        return self.last if self.end is None else self.end


class StepBounds(NamedTuple):
    """Of a closed step."""

    start: int
    end: int
    micro_batches: int


def passes_of(spool: Spool) -> list[Pass]:
    """All that are known, in the order in which they began."""
    found: dict[tuple[int, int], Pass] = {}
    for record in spool.spans.passes:
        columns = zip(
            record.loader, record.number, record.start_ns, record.end_ns, record.last_ns,
            record.batches, strict=True,
        )  # fmt: skip
        for loader, number, *rest in columns:
            found[loader, number] = Pass(loader, number, *rest)
    ordered = sorted(found.values(), key=attrgetter("start"))
    for order, one in enumerate(ordered):
        one.order = order
    return ordered


def told_apart(
    spool: Spool, steps: Sequence[StepBounds], passes: Sequence[Pass], *, has_older: bool
) -> tuple[list[Pass], list[Pass]]:
    """Those in which steps ended, one at a time, and the others. `has_older`: there were steps
    before these."""
    ends = [step.end for step in steps]
    first = steps[0].start if steps else OPEN
    trainings: list[Pass] = []
    evaluations: list[Pass] = []
    limits = _limits(spool, passes)
    for one in passes:
        limit = limits[one.order]
        if has_older and limit <= first:
            continue  # its steps are not known one by one
        at = bisect_right(ends, one.known_end)
        after = steps[at] if at < len(steps) else None
        is_alone = bool(after is not None and _is_of_one_step(spool, one, after))
        if is_alone or bisect_right(ends, limit) > bisect_right(ends, one.start):
            # Several loaders at once: the one that was asked first counts.
            if not trainings or one.start >= min(limits[trainings[-1].order], trainings[-1].last):
                trainings.append(one)
        elif one.end is not None or _role(spool, one) != "train":
            evaluations.append(one)  # one of training without an end may close its first step yet
    return trainings, evaluations


def _limits(spool: Spool, passes: Sequence[Pass]) -> dict[int, int]:
    """Until when steps are looked for. A pass that was left in training is followed by the step of
    its last batch; one that evaluates by steps that are none of its own."""
    until: dict[int, int] = {}  # next pass of the same loader
    limits: dict[int, int] = {}
    for one in reversed(passes):
        limits[one.order] = one.known_end
        if one.end is None and _role(spool, one) != "eval":
            limits[one.order] = until.get(one.loader, OPEN)
        until[one.loader] = one.start
    return limits


def _is_of_one_step(spool: Spool, one: Pass, after: StepBounds) -> bool:
    """Whether the loop asked for the next batch before it used the last one, and one step, that
    ended `after`, took them all."""
    is_training = one.end is not None and _role(spool, one) == "train"
    return is_training and after.start <= one.known_end and after.micro_batches >= one.batches


def _role(spool: Spool, one: Pass) -> str | None:
    """What the loader is known for."""
    loader = spool.loaders.get(one.loader)
    return None if loader is None else loader.role
