"""Which lines in no phase make the next batch: input without a DataLoader.

Nothing marks such code, so three things are asked, each with its own weight: is it the generator
or iterator of a `for`; does it have a name that says so; does it stand before the forward pass in
the function that trains, and not after the update.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from traceml_agent.report.line_kinds import LOG, PRINT
from traceml_agent.schema.stacks import RESIDUAL, CodeLine

_NAMED = re.compile(
    r"batch|(data|train|sample|token)_?(loader|set|iter|gen)|prefetch|collate|tokeni[sz]e|augment"
    r"|(get|next|load|fetch|read|make|sample|generate)_?(data|inputs?|examples?|samples?|images?)",
    re.IGNORECASE,
)
_NOT_NAMED = re.compile(
    r"log|save|write|print|metric|report|loss|eval|valid|batch_?(size|norm)", re.I
)


class TrainingLoop:
    """The function whose lines call forward, backward and the optimizer, as far as was seen."""

    def __init__(self, stacks: Sequence[tuple[str, Sequence[CodeLine]]]) -> None:
        """`stacks` are phases and the lines of a stack in it, the innermost first."""
        lines: dict[tuple[str, str], dict[str, set[int]]] = {}
        for phase, stack in stacks:
            for line in stack if phase in ("forward", "backward", "optimizer") else ():
                of_function = lines.setdefault((line.file, line.function), {})
                of_function.setdefault(phase, set()).add(line.line)
        self.function: tuple[str, str] | None = None
        self.forward = self.last = 0
        for function, found in lines.items():
            forward = min(found.get("forward", ()), default=0)
            after = [max(found[name]) for name in ("backward", "optimizer") if name in found]
            # Where one line holds all of it, its order is not that of the work.
            if forward and after and max(after) > forward:
                self.function, self.forward, self.last = function, forward, max(after)

    def side_of(self, stack: Sequence[CodeLine]) -> str | None:
        """ "before" the forward pass, "after" the backward pass or the update, or not known."""
        for line in stack:
            if (line.file, line.function) == self.function:
                if line.line < self.forward:
                    return "before"
                return "after" if line.line >= self.last else None
        return None


def input_confidence(
    phase: str, stack: Sequence[CodeLine], kind: str | None, loop: TrainingLoop
) -> str | None:
    """How sure it is that this stack makes the next batch: "medium", "low"; None: it does not."""
    if phase != RESIDUAL or not stack or kind in (PRINT, LOG):
        return None
    side = loop.side_of(stack)
    if _is_iterated(stack, loop):
        return "medium"
    if side == "after":
        return None
    if any(_is_named(line.function) for line in stack[:-1]) or any(
        _is_named(line.call or "") for line in stack[-2:]
    ):
        return "medium"
    return "low" if side == "before" and kind is None and len(stack) > 1 else None


def _is_iterated(stack: Sequence[CodeLine], loop: TrainingLoop) -> bool:
    """Whether a `for` of the function that trains asks for its next item."""
    if loop.function is None:
        return any(line.loop for line in stack[-2:]) and not stack[0].loop
    return any(
        line.loop and (line.file, line.function) == loop.function and line.line <= loop.forward
        for line in stack
    )


@lru_cache(maxsize=4096)
def _is_named(text: str) -> bool:
    name = text.partition("(")[0].rpartition(".")[2]
    return bool(_NAMED.search(name)) and not _NOT_NAMED.search(name)
