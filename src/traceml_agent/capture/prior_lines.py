"""PriorLines: of samples that came late, the line that ran before the one that was seen."""

from collections.abc import Sequence
from types import CodeType
from typing import Any

from traceml_agent.capture.code_line import NAME_LIMIT, position
from traceml_agent.capture.line_before import Lines
from traceml_agent.capture.source_text import SourceText
from traceml_agent.capture.user_code import cell, function_name
from traceml_agent.schema.stacks import CodeLine

BEFORE, WITHIN = 1, 2
"""What ran when a sample was due: something before the phase it came in; or something before the
line, in a function that has not run for longer than that. Else 0."""
MOST_TAKEN_APART = 50
"""Functions whose bytecode is looked at. Chosen: the loop, and what calls the model."""

Key = tuple[Any, ...]
"""Of a stack: phase, BEFORE or WITHIN or 0, callee, and code and instruction of each line."""
Seen = dict[int, set[int]]
"""The lines of functions, by the number of their code."""


class PriorLines:
    """Asked when a table is taken. Functions that were taken apart are kept."""

    def __init__(self, codes: Sequence[CodeType]) -> None:
        self._codes = codes  # by number, from 1 on
        self._lines: dict[int, Lines] = {}

    def seen(self, counts: Sequence[tuple[Key, Any]]) -> Seen:
        """The lines of the functions that are asked about in which the thread was, and most often
        did not hold the lock."""
        asked = {key[3] for key, count in counts if len(key) > 3 and (key[1] or count.late)}
        places: dict[tuple[int, int], int] = {}  # samples that were not late less those that were
        called: set[tuple[int, int]] = set()  # places in which something of Python was called
        for key, count in counts:
            pairs = () if key[1] else tuple(zip(key[3::2], key[4::2], strict=True))
            called.update(pairs if key[2] else pairs[1:])
            for pair in pairs:
                if pair[0] in asked:
                    free = count.samples - 2 * count.late
                    places[pair] = places.get(pair, 0) + free
        found: Seen = {}
        for (number, instruction), free in places.items():
            lines = self._lines_in(number)
            if free <= 0 or lines is None:
                continue
            if (number, instruction) in called or not lines.is_free(instruction):
                line = position(self._codes[number - 1], instruction)[0]
                found.setdefault(number, set()).add(line)
        return found

    def line(self, key: Key, count: Any, source: SourceText, seen: Seen) -> CodeLine | None:
        """The line that ran before that of a stack, where only one can have taken the time."""
        if len(key) == 3 or not (key[1] or count.late):
            return None
        number, instruction = key[3:5]
        lines = self._lines_in(number)
        if lines is None:
            return None
        is_free = lines.is_free(instruction)
        if not (key[1] or count.yielded or is_free):
            return None
        line = lines.before(
            instruction,
            seen.get(number, ()),
            whole=key[1] == WITHIN,
            sure=not key[1] and not is_free,
        )
        if line is None:
            return None
        code = self._codes[number - 1]
        return CodeLine(
            file=source.file_name(cell(code.co_filename) or code.co_filename),
            line=line,
            function=source.file_name(function_name(code))[:NAME_LIMIT],
            text=source.line(code.co_filename, line),
        )

    def _lines_in(self, number: int) -> Lines | None:
        """The lines of a function; None of one too many."""
        if number not in self._lines and len(self._lines) < MOST_TAKEN_APART:
            self._lines[number] = Lines(self._codes[number - 1])
        return self._lines.get(number)


def last_instruction(code: CodeType) -> int:
    """The offset of the last one that returns."""
    return Lines(code).end
