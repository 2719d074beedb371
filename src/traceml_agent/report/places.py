"""Where a stack stands, in words of the program: the innermost line of the user's own code."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+), in (?P<function>.*)')
_LIBRARY = re.compile(
    r"[/\\](site|dist)-packages[/\\]|[/\\]lib(64)?[/\\]python3[^/\\]*[/\\]|^<frozen "
)
_SEPARATOR = re.compile(r"[/\\]")
_COLLECTIVE = re.compile(r"[/\\]torch[/\\](distributed|nn[/\\]parallel)[/\\]")
_WRAPPERS = """
wrapper inner wrapped _wrapped decorate_context _fn _use_grad _wrapped_call_impl _call_impl __call__
"""
WRAPPERS = frozenset(_WRAPPERS.split())
"""Names of functions around a call that say nothing about it."""


_KNOWN_AS = {"_BaseDataLoaderIter.__next__": "DataLoader.__next__"}


@dataclass(frozen=True, slots=True)
class Place:
    """A line of the user's code and the function of a library that it called, if any."""

    file: str
    line: int
    function: str
    call: str | None
    in_collective: bool  # inside torch.distributed

    @property
    def text(self) -> str:
        """`all_reduce at train.py:88`; `load_batch at data.py:40` where the line itself runs."""
        where = f"{_SEPARATOR.split(self.file)[-1] or self.file}:{self.line}"
        what = self.call or ("" if self.function == "<module>" else self.function)
        return f"{what} at {where}" if what else where


def place_of(stack: str) -> Place | None:
    """The place of a stack with the innermost frame last; None for an empty one.

    Where no frame is the user's (a program that lives in site-packages), its innermost frame.
    """
    frames = [found for found in map(_FRAME.fullmatch, stack.splitlines()) if found]
    if not frames:
        return None
    own = [i for i, frame in enumerate(frames) if not _LIBRARY.search(frame["file"])]
    at = own[-1] if own else len(frames) - 1
    called = [_short(frame["function"]) for frame in frames[at + 1 :]]
    return Place(
        file=frames[at]["file"],
        line=min(int(frames[at]["line"][:9]), 10**8),
        function=_short(frames[at]["function"]),
        call=next((name for name in called if name.rpartition(".")[2] not in WRAPPERS), None),
        in_collective=any(_COLLECTIVE.search(frame["file"]) for frame in frames[at:]),
    )


def _short(function: str) -> str:
    short = function.rpartition("<locals>.")[2]
    return _KNOWN_AS.get(short, short)


def intervals(ranks: Iterable[int]) -> str:
    """Ranks in short: `0-6,8-511`."""
    parts: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if parts and rank == parts[-1][1] + 1:
            parts[-1][1] = rank
        else:
            parts.append([rank, rank])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def named(ranks: Iterable[int]) -> str:
    """`rank 17`, or `61 ranks (0-16,18-61)`."""
    members = sorted(set(ranks))
    if len(members) == 1:
        return f"rank {members[0]}"
    return f"{len(members)} ranks ({intervals(members)})"
