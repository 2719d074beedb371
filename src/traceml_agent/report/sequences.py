"""Which ranks never entered which collective: by the sequence numbers of each process group."""

from collections.abc import Iterable
from dataclasses import dataclass

from traceml_agent.report.hangs import RankState
from traceml_agent.report.places import named
from traceml_agent.schema.stalls import Operation, ProcessGroup

_SAME_SIZES = """
all_reduce broadcast reduce allreduce_coalesced _allgather_base _reduce_scatter_base
all_gather_into_tensor reduce_scatter_tensor
"""
SAME_SIZES = frozenset(_SAME_SIZES.split())
"""Collectives whose inputs have one size on all ranks; of others a difference says nothing."""
NAME_LIMIT = 60


@dataclass(frozen=True, slots=True)
class GroupState:
    """One process group over its ranks."""

    name: str
    ranks: tuple[int, ...]  # its members; those that told of it, where they are not known
    sequence: int  # of the furthest collective that any of them entered
    operation: str | None
    missing: tuple[int, ...]  # told how far they got, and never entered that one
    unheard: tuple[int, ...]  # members that could not tell
    mismatch: str | None  # "all_reduce (4) on 3 ranks (0-1,3), broadcast (4) on rank 2"
    odd: tuple[int, ...]  # the ranks of the rarer operation
    sequence_of_mismatch: int | None
    stuck: bool  # some rank is known to be inside

    @property
    def is_evidence(self) -> bool:
        """Whether it tells anything: ranks apart, or all inside one collective."""
        return bool(self.missing or self.mismatch or self.stuck)


def group_states(states: Iterable[RankState]) -> list[GroupState]:
    """The groups that at least two ranks told of, those with a mismatch or missing ranks first."""
    told: dict[tuple[str, tuple[int, ...]], dict[int, ProcessGroup]] = {}
    for state in states:
        for group in state.groups:
            if group.entered is not None:
                told.setdefault((group.name, tuple(group.ranks)), {})[state.rank] = group
    found = [
        _state(ranks, by_rank)
        for (_, ranks), by_rank in told.items()
        if len(ranks) > 1 or len(by_rank) > 1
    ]
    return sorted(found, key=lambda g: (not g.mismatch, not g.missing, not g.stuck, -len(g.ranks)))


def _state(ranks: tuple[int, ...], by_rank: dict[int, ProcessGroup]) -> GroupState:
    entered = {rank: group.entered or 0 for rank, group in by_rank.items()}
    furthest = max(entered.values())
    at_furthest = _operations_at(furthest, by_rank)
    one = next(iter(by_rank.values()))
    mismatch, odd, sequence = _mismatch(by_rank)
    return GroupState(
        name=_name(one),
        ranks=ranks or tuple(sorted(by_rank)),
        sequence=furthest,
        operation=next(iter(at_furthest.values())).name if at_furthest else None,
        missing=tuple(sorted(rank for rank, last in entered.items() if last < furthest)),
        unheard=tuple(rank for rank in ranks if rank not in by_rank),
        mismatch=mismatch,
        odd=odd,
        sequence_of_mismatch=sequence,
        stuck=any(not operation.done for operation in at_furthest.values()),
    )


def _name(group: ProcessGroup) -> str:
    named = group.description not in ("", "undefined")
    if group.description == "default_pg":
        return "the default group"
    return f"group {(group.description if named else group.name)[:NAME_LIMIT]}"


def _operations_at(sequence: int, by_rank: dict[int, ProcessGroup]) -> dict[int, Operation]:
    return {
        rank: operation
        for rank, group in by_rank.items()
        for operation in group.operations
        if operation.sequence == sequence
    }


def _mismatch(by_rank: dict[int, ProcessGroup]) -> tuple[str | None, tuple[int, ...], int | None]:
    """The first collective that is not the same on all ranks: the words, its rarer side, number."""
    sequences = {o.sequence for group in by_rank.values() for o in group.operations}
    for sequence in sorted(sequences):
        sides: dict[str, list[int]] = {}
        for rank, operation in _operations_at(sequence, by_rank).items():
            sizes = f" of {operation.sizes}" if operation.name in SAME_SIZES else ""
            sides.setdefault(f"{operation.name}{sizes}"[:NAME_LIMIT], []).append(rank)
        if len(sides) > 1:
            order = sorted(sides.items(), key=lambda side: (-len(side[1]), side[1]))
            words = ", ".join(f"{name} on {named(ranks)}" for name, ranks in order)
            tied = len(order[0][1]) == len(order[1][1])
            odd = () if tied else tuple(rank for _, ranks in order[1:] for rank in sorted(ranks))
            return words, odd, sequence
    return None, (), None
