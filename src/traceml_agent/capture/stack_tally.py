"""StackTally: counts in which lines of the user's code a thread is seen, and how it got there.

A sample is a stack of the user's frames, each by its code and the instruction it stands at; frames
of libraries are folded into the line that called them. No frame is kept, and the table is bounded.
What the places are called is found out when the table is taken, not when a sample is added.
"""

import threading
from collections.abc import Iterable
from dataclasses import replace
from types import CodeType, FrameType
from typing import Any, NamedTuple

import orjson

from traceml_agent.capture.code_line import NAME_LIMIT, code_line
from traceml_agent.capture.line_before import END
from traceml_agent.capture.prior_lines import BEFORE, WITHIN, PriorLines, Seen, last_instruction
from traceml_agent.capture.source_text import SourceText
from traceml_agent.capture.user_code import (
    installed_program,
    is_library,
    library_name,
)
from traceml_agent.schema.stacks import OUTSIDE, CodeLine, StackRow

DEEPEST = 200
"""Frames that are looked at. Chosen: a model of five nested blocks under a framework has 60."""
MOST_LINES = 8
"""Of a stack. Chosen: from the step function into a helper of a helper; the outer rest is alike."""
MOST_STACKS = 2_000
"""In memory, some 600 bytes each. Chosen: a loop with a large model has a few hundred."""
MOST_CODES = 10_000
"""Functions that are known; a program that compiles a new one in each step must not grow."""
MOST_ROWS = 200
"""Of a table that is written. Chosen: beyond, a row has no share that anything would be said of."""
_PHASES_BEGIN = (
    "torch/nn/modules/module.py",
    "torch/utils/data/dataloader.py",
    "torch/_tensor.py",
    "torch/optim/optimizer.py",
)
_FETCH = "torch/utils/data/_utils/fetch.py"
_Key = tuple[Any, ...]


class Sample(NamedTuple):
    """A stack that was seen, before it is counted."""

    key: _Key  # phase, BEFORE or WITHIN or 0, callee, and code and instruction of each line
    leaf: int
    weight_ns: int
    late: bool
    yielded: bool = False

    def outside(self) -> "Sample":
        """The same in no step."""
        return self._replace(key=(OUTSIDE, *self.key[1:]))


class Table(NamedTuple):
    """What was counted so far. Time and samples of what is in no row, by phase."""

    samples: int
    weight_ns: int
    lines: list[CodeLine]
    rows: list[StackRow]
    other: dict[str, int]
    other_samples: dict[str, int]


class _Count:
    """Of one stack. Plain slots: one is changed at each sample."""

    __slots__ = ("late", "leaf", "samples", "votes", "weight_ns", "yielded", "yielded_ns")

    def __init__(self) -> None:
        self.samples = self.weight_ns = self.late = self.yielded = self.yielded_ns = 0
        self.leaf = self.votes = 0  # a majority vote: exact where one leaf has most samples

    def add(self, sample: Sample) -> None:
        self.samples += 1
        self.weight_ns += sample.weight_ns
        self.late += sample.late
        if sample.yielded:
            self.yielded += 1
            self.yielded_ns += sample.weight_ns
        if sample.leaf == self.leaf:
            self.votes += 1
        elif self.votes:
            self.votes -= 1
        else:
            self.leaf, self.votes = sample.leaf, 1

    def copied(self) -> "_Count":
        copy = _Count()
        for name in self.__slots__:
            setattr(copy, name, getattr(self, name))
        return copy


class StackTally:
    """Filled by one thread, taken by another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._codes: list[CodeType] = []  # by number, from 1 on
        self._numbers: dict[_Key, int] = {}  # a code that is made anew is the same one
        self._known: dict[int, tuple[CodeType, int]] = {}  # by id: 0 ours, < 0 of a library
        self._counts: dict[_Key, _Count] = {}
        self._other: dict[str, list[int]] = {}
        self._program = installed_program()
        self._lines: dict[tuple[int, int], CodeLine] = {}
        self._begins: set[int] = set()  # numbers of codes in which a phase begins
        self._fetches: set[int] = set()  # of those in which a DataLoader makes a batch
        self._priors = PriorLines(self._codes)

    def add(self, frame: FrameType | None, phase: str, weight_ns: int) -> None:
        """Counts the stack whose innermost frame this is."""
        self.count(self.seen(frame, phase, weight_ns))

    def seen(
        self,
        frame: FrameType | None,
        phase: str,
        weight_ns: int,
        *,
        late: bool = False,
        before: bool = False,
        yielded: bool = False,
        collated: CodeType | None = None,
        fetched: CodeType | None = None,
    ) -> Sample:
        """The stack whose innermost frame this is, to be counted; StackRow has the words.

        `collated`: the function that makes a batch of items ran when it was due. `fetched`: this
        one, which makes an item, did.
        """
        known = self._known
        key: list[Any] = [phase, BEFORE if before else 0, 0]
        leaf = depth = 0
        while frame is not None and depth < DEEPEST:
            code = frame.f_code
            number = known[id(code)][1] if id(code) in known else self._look_at(code)
            if number > 0:
                key.append(number)
                key.append(frame.f_lasti)
                if len(key) == 3 + 2 * MOST_LINES:
                    break
            elif number and len(key) == 3:
                key[2] = number
                leaf = leaf or number
            if before and number in self._begins:  # what is further in began since
                del key[3:]
                key[2] = leaf = 0
            elif (
                fetched is not None
                and key[3:5] != [self._look_at(fetched), END]
                and (number in self._fetches or number in self._begins)
            ):
                item = self._look_at(fetched)
                if item > 0:
                    key[1:] = [WITHIN, 0, item, END]
                    leaf = 0
            frame = frame.f_back
            depth += 1
        if collated is not None and len(key) > 3 and key[3] == self._look_at(collated):
            key[1] = WITHIN
        return Sample(tuple(key), leaf, weight_ns, late, yielded)

    def count(self, sample: Sample) -> None:
        """Adds what was seen to the table."""
        with self._lock:
            count = self._counts.get(sample.key)
            if count is None:
                if len(self._counts) >= MOST_STACKS:
                    other = self._other.setdefault(sample.key[0], [0, 0])
                    other[0] += 1
                    other[1] += sample.weight_ns
                    return
                count = self._counts[sample.key] = _Count()
            count.add(sample)

    def _look_at(self, code: CodeType) -> int:
        """Numbers a code that is seen for the first time, negative if it is of a library."""
        if len(self._known) >= MOST_CODES:
            self._known.clear()  # it only saves time
        file = code.co_filename
        of_library = is_library(file) and not (self._program and file.startswith(self._program))
        # Two lambdas in one line differ in their instructions.
        same = (file, code.co_firstlineno, code.co_name, code.co_code)
        number = self._numbers.get(same, 0)
        if not number and len(self._codes) < MOST_CODES:
            self._codes.append(code)
            number = len(self._codes) * (-1 if of_library else 1)
            if of_library and library_name(code).startswith("traceml_agent/"):
                number = 0
            if of_library and library_name(code).startswith(_PHASES_BEGIN):
                self._begins.add(number)
            if of_library and library_name(code).startswith(_FETCH):
                self._fetches.add(number)
            self._numbers[same] = number
        self._known[id(code)] = (code, number)
        return number

    def take(self, source: SourceText, most_rows: int = MOST_ROWS) -> Table:
        """All counts so far, the largest one by one; the text of their lines is read now."""
        with self._lock:
            counts = [(key, count.copied()) for key, count in self._counts.items()]
            other = {phase: list(pair) for phase, pair in self._other.items()}
        counts.sort(key=lambda item: -item[1].weight_ns)
        samples = sum(c.samples for _, c in counts) + sum(n for n, _ in other.values())
        weight_ns = sum(c.weight_ns for _, c in counts) + sum(w for _, w in other.values())
        for key, count in counts[most_rows:]:
            pair = other.setdefault(key[0], [0, 0])
            pair[0] += count.samples
            pair[1] += count.weight_ns
        numbers: dict[CodeLine, int] = {}
        seen = self._priors.seen(counts[:most_rows])
        rows = _merged(
            self._row(key, count, source, numbers, seen) for key, count in counts[:most_rows]
        )
        return Table(
            samples=samples,
            weight_ns=weight_ns,
            lines=list(numbers),
            rows=rows,
            other={phase: weight for phase, (_, weight) in other.items()},
            other_samples={phase: number for phase, (number, _) in other.items()},
        )

    def to_json(self, source: SourceText, limit_bytes: int) -> bytes:
        """The table as JSON of no more than so many bytes; `table_of` reads it."""
        most_rows = MOST_ROWS
        while True:
            data = orjson.dumps(self.take(source, most_rows)._asdict())
            if len(data) <= limit_bytes or not most_rows:
                return data
            most_rows //= 2

    def _row(
        self,
        key: _Key,
        count: _Count,
        source: SourceText,
        numbers: dict[CodeLine, int],
        seen: Seen,
    ) -> StackRow:
        phase, before, callee, *rest = key
        prior = self._priors.line(key, count, source, seen)
        pairs = zip(rest[::2], rest[1::2], strict=True)
        lines = [self._line(number, instruction, source) for number, instruction in pairs]
        return StackRow(
            phase=phase,
            lines=[numbers.setdefault(line, len(numbers)) for line in lines],
            samples=count.samples,
            weight_ns=count.weight_ns,
            late=count.late,
            before=before == BEFORE,
            callee=self._library_name(callee),
            leaf=None if count.leaf == callee else self._library_name(count.leaf),
            yielded=count.yielded,
            yielded_ns=count.yielded_ns,
            prior=None if prior is None else numbers.setdefault(prior, len(numbers)),
        )

    def _library_name(self, number: int) -> str | None:
        return library_name(self._codes[-number - 1])[-NAME_LIMIT:] if number else None

    def _line(self, number: int, instruction: int, source: SourceText) -> CodeLine:
        found = self._lines.get((number, instruction))
        if found is None:
            if len(self._lines) >= MOST_CODES:
                self._lines.clear()
            code = self._codes[number - 1]
            at = last_instruction(code) if instruction == END else instruction
            found = code_line(code, at, source)
            self._lines[number, instruction] = found
        return found


def _merged(rows: Iterable[StackRow]) -> list[StackRow]:
    """One row a place: two instructions may be of one expression."""
    found: dict[_Key, StackRow] = {}
    for row in rows:
        key = (row.phase, row.before, row.callee, row.prior, *row.lines)
        same = found.get(key)
        found[key] = (
            row
            if same is None
            else replace(
                same,
                samples=same.samples + row.samples,
                weight_ns=same.weight_ns + row.weight_ns,
                late=same.late + row.late,
                yielded=same.yielded + row.yielded,
                yielded_ns=same.yielded_ns + row.yielded_ns,
            )
        )
    return list(found.values())


def table_of(data: bytes) -> Table:
    """What `to_json` wrote. Raises ValueError, TypeError or KeyError for anything else."""
    read = orjson.loads(data)
    return Table(
        read["samples"],
        read["weight_ns"],
        [CodeLine(**line) for line in read["lines"]],
        [StackRow(**row) for row in read["rows"]],
        read["other"],
        read["other_samples"],
    )
