"""The line of the program that an instruction belongs to, and what of it was at work."""

from collections.abc import Iterable
from itertools import islice
from opcode import opmap
from types import CodeType
from typing import Any

from traceml_agent.capture.source_text import SourceText
from traceml_agent.capture.user_code import cell, function_name
from traceml_agent.schema.stacks import CodeLine

NAME_LIMIT = 200
_FOR_ITER = opmap["FOR_ITER"]


def code_line(code: CodeType, instruction: int, source: SourceText) -> CodeLine:
    """The line, with its text where that can be read."""
    file = code.co_filename
    line, last, begin, end = position(code, instruction)
    call = None
    loop = 0 <= instruction < len(code.co_code) and code.co_code[instruction] == _FOR_ITER
    if not loop and last is not None and begin is not None and end is not None:
        call = source.part(file, line, last, begin, end)
    return CodeLine(
        file=source.file_name(cell(file) or file),
        line=line,
        function=source.file_name(function_name(code))[:NAME_LIMIT],
        call=call,
        text=source.line(file, line),
        loop=loop,
    )


def position(code: CodeType, instruction: int) -> tuple[int, int | None, int | None, int | None]:
    """Line, last line, and the columns in bytes; only the line before Python 3.11."""
    positions: Any = getattr(code, "co_positions", None)
    if positions is not None and instruction >= 0:
        found = next(islice(positions(), instruction // 2, None), None)
        if found is not None and found[0] is not None:
            line, last, begin, end = found
            return line, last, begin, end
    return _line_at(code.co_lines(), instruction) or code.co_firstlineno, None, None, None


def _line_at(lines: Iterable[tuple[int, int, int | None]], instruction: int) -> int | None:
    for start, stop, line in lines:
        if start <= instruction < stop:
            return line
    return None
