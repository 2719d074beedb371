"""Which line of a function ran just before one that was seen, where only one can have taken time.

A sample may come late: plain Python holds the interpreter lock, and is seen where it lets go. Which
code lies between the line seen there and the last one seen before it stands in the bytecode.
"""

import dis
from bisect import bisect_right
from collections.abc import Collection
from types import CodeType
from typing import NamedTuple

from traceml_agent.schema.stacks import FREE_CALLS

_COMPREHENSIONS = {"<listcomp>", "<genexpr>", "<setcomp>", "<dictcomp>"}
END = -2
"""In place of an instruction: the last one of the function."""
MOST_BYTES = 60_000
"""Of bytecode. Chosen: a function of 3,000 lines; to take apart a longer one costs 0.1 s."""


class _Loop(NamedTuple):
    """Offsets and lines of a `for` or `while`."""

    begin: int
    end: int  # the first one behind it
    line: int  # of its head; of `while True`, which has none, the first one
    above: int  # the line behind which the body begins


class Lines:
    """The lines of a code object: which of them call or repeat something, and its loops."""

    def __init__(self, code: CodeType) -> None:
        self._loops: list[_Loop] = []
        self._calls: set[int] = set()
        self._comprehensions: set[int] = set()
        self._line_at: dict[int, int] = {}
        self._free: set[int] = set()  # offsets
        self.end = 0  # offset of the last instruction
        names = _Callees()
        self._first = line = code.co_firstlineno
        starts = {start: number for start, _, number in code.co_lines() if number is not None}
        found = dis.get_instructions(code) if len(code.co_code) <= MOST_BYTES else ()
        for at in found:
            line = starts.get(at.offset, line)
            self._line_at[at.offset] = line
            if names.is_free(at):
                self._free.add(at.offset)
            elif "CALL" in at.opname and at.opname != "PRECALL":
                self._calls.add(line)
            if at.opname.startswith("RETURN_") and line >= self._line_at.get(self.end, 0):
                self.end = at.offset
            is_code = isinstance(at.argval, CodeType)
            if is_code and at.argval.co_name in _COMPREHENSIONS:
                self._comprehensions.add(line)
            elif at.opname == "FOR_ITER":
                self._loops.append(_Loop(at.offset, int(at.argval), line, line))
            elif "JUMP" in at.opname and isinstance(at.argval, int) and at.argval < at.offset:
                first = self._line_at.get(at.argval)
                if first is not None and all(loop.begin != at.argval for loop in self._loops):
                    # The test of a `while` stands behind its body, or the jump before the test.
                    above = line if line < first else first - ("IF" not in at.opname)
                    head = min(line, first)
                    self._loops.append(_Loop(at.argval, at.offset + 2, head, above))
        self._all = frozenset(self._line_at.values())
        self._offsets = sorted(self._line_at)

    def is_free(self, instruction: int) -> bool:
        """Whether this is a call that takes no time."""
        return self._whole(instruction) in self._free

    def before(
        self, instruction: int, seen: Collection[int], *, whole: bool = False, sure: bool = False
    ) -> int | None:
        """The line that ran before this instruction, after the last line that was `seen`.

        None where several can have taken the time, or none, or where it is not known. `whole`: the
        function began in that time, so that it may be the line itself. `sure`: only a line that
        repeats something.
        """
        instruction = self.end if instruction == END else self._whole(instruction)
        line = self._line_at.get(instruction)
        if line is None:
            return None
        between = self._between(instruction, line, seen)
        if between is None and whole:
            between = {n for n in self._all if n < line}
        if between is None:
            return None
        ended = [x for x in self._loops if not x.begin <= instruction < x.end]
        loops = [loop for loop in ended if loop.line in between]
        repeats = (self._comprehensions & between) | {loop.line for loop in loops}
        for loop in loops:  # of loops within one another the outer one
            repeats -= self._body(loop) - {loop.line}
        own = line in self._comprehensions or any(loop.line == line for loop in ended)
        if own and not self._is_header(instruction):
            repeats.add(line)  # arguments are made before the call
        if repeats or sure:
            return repeats.pop() if len(repeats) == 1 else None
        calls = self._calls & between
        is_only = self._calls == {line} and between <= {self._first}
        if whole and is_only and not self._is_header(instruction):
            return line
        return calls.pop() if len(calls) == 1 else None

    def _whole(self, instruction: int) -> int:
        """The instruction that this offset lies in: a frame that calls may stand behind its begin,
        where the interpreter keeps what it learned of it."""
        at = bisect_right(self._offsets, instruction)
        return self._offsets[at - 1] if at else instruction

    def _between(self, instruction: int, line: int, seen: Collection[int]) -> set[int] | None:
        around = [loop for loop in self._loops if loop.begin <= instruction < loop.end]
        inner = max(around, key=lambda loop: loop.begin, default=None)
        last = max((n for n in seen if n < line), default=None)
        if self._is_header(instruction) and inner is not None:
            return self._tail(inner, seen)
        if inner is not None and (last is None or last < inner.above):
            return {n for n in self._all if inner.above < n < line} | self._tail(inner, seen)
        if last is None:
            return None
        return {n for n in self._all if last < n < line}

    def _tail(self, loop: _Loop, seen: Collection[int]) -> set[int]:
        """The lines of a loop behind the last one that was seen in it."""
        body = {n for n in self._body(loop) if n > loop.above}
        last = max((n for n in seen if n in body), default=loop.above)
        return {n for n in body if n > last}

    def _body(self, loop: _Loop) -> set[int]:
        return {n for at, n in self._line_at.items() if loop.begin < at < loop.end}

    def _is_header(self, instruction: int) -> bool:
        return any(loop.begin == instruction for loop in self._loops)


class _Callees:
    """Follows which function each call of a code object is of, as far as its name stands there.

    From Python 3.11 on a NULL is pushed where the callee of a call is loaded; calls end in the
    reverse order.
    """

    def __init__(self) -> None:
        self._open: list[str | None] = []

    def is_free(self, at: dis.Instruction) -> bool:
        """Whether this instruction ends a call that takes no time; to be asked of each in order."""
        if at.opname == "PUSH_NULL":
            self._open.append(None)  # whatever is loaded next
        elif at.opname == "LOAD_METHOD" or (at.opname.startswith("LOAD_") and "NULL" in at.argrepr):
            self._open.append(str(at.argval))
        elif at.opname in ("CALL", "CALL_METHOD") and self._open:
            return self._open.pop() in FREE_CALLS
        elif at.opname in ("CALL_FUNCTION_EX", "CALL_KW") and self._open:
            self._open.pop()
        return False
