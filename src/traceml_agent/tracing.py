"""The tree of the spans of this process: made at the first scope, shown by `trace`."""

import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traceml_agent.capture.marks import Later
from traceml_agent.capture.mode import asked
from traceml_agent.capture.say import say_once
from traceml_agent.capture.scopes import HERE, OTHER_THREAD, Span, Tree
from traceml_agent.config import resolve
from traceml_agent.errors import TracemlError
from traceml_agent.guard import guard
from traceml_agent.terminal import printable

if TYPE_CHECKING:
    from traceml_agent.capture.session import Session

LOGGER = "traceml"
_KINDS = ("steps", "step_sums", "device_steps", "passes", "loader", "end")
"""Of records that automatic spans are made of."""


def new_tree() -> Tree | None:
    """A tree as the settings want it; None where they are wrong, which is said."""
    resolved = resolve(os.environ, arguments=asked().settings)
    if resolved.refusal is not None:
        say_once(resolved.refusal)
        return None
    tree = Tree(resolved.config.trace_max_spans)
    set_up(tree)
    HERE.begin(tree)
    return tree


def set_up(tree: Tree) -> None:
    """As the settings want it by now."""
    config = resolve(os.environ, arguments=asked().settings).config
    tree.bound(config.trace_max_spans)
    streams: list[Callable[[str], None]] = []
    if "log" in config.output:
        streams.append(logging.getLogger(LOGGER).info)
    if "stdout" in config.output:
        streams.append(_print)
    tree.on_close = _Streams(streams) if streams else None


class _Streams:
    """A line for each closed scope, in the thread that closes it."""

    def __init__(self, streams: list[Callable[[str], None]]) -> None:
        self._streams = streams

    def __call__(self, span: Span) -> None:
        with guard("output"):
            line = _line(span)
            for stream in self._streams:
                stream(line)


def _line(span: Span) -> str:
    """The span as in a tree, behind the names of those around it."""
    from traceml_agent.report.spans import label, title

    around = []
    outer = span.parent
    while outer is not None:
        around.append(title(outer.name, outer.index))
        outer = outer.parent
    return "/".join([*reversed(around), label(row_of(span, wait=False))])


def _print(line: str) -> None:
    # A reader that left, or a closed stream: the program finds out by itself.
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.write(f"{printable(line)}\n")


def show(
    tree: Tree | None, session: "Session | None", wanted: str, name: str | None, last: int | None
) -> Any:
    """What `api.trace` returns; for "tree" the text."""
    from traceml_agent.report import spans

    rows = [] if tree is None else [row_of(span) for span in tree.spans()]
    if session is not None and session.recorder is not None:
        most = tree.most_spans if tree is not None else session.config.trace_max_spans
        with guard("automatic spans"):
            rows = with_steps_of(session.recorder.writer.path, rows, most)
    roots = spans.forest(rows, name, last)
    if wanted == "tree":
        return spans.text_of(roots)
    if wanted == "df":
        return spans.frame_of(roots)
    marks = [] if tree is None else marks_of(tree.run)
    return spans.json_of(roots, marks) if wanted == "json" else spans.dict_of(roots, marks)


def with_steps_of(path: Path, rows: list[Any], most: int) -> list[Any]:
    """The scopes with the automatic spans of a spool that is being written."""
    from traceml_agent.report.automatic import with_automatic
    from traceml_agent.spool.tail import read_tail

    try:
        spool = read_tail(path, _KINDS)
    except (OSError, TracemlError):  # the run was removed
        return rows
    return with_automatic(rows, spool, most)


def row_of(span: Span, *, wait: bool = True) -> Any:
    """A span as a `Row`; without `wait` a scalar that is still on its device is `pending`."""
    from traceml_agent.report.spans import Row

    return Row(
        id=span.id,
        parent_id=None if span.parent is None else span.parent.id,
        name=span.name,
        index=span.index,
        start_ns=span.start_ns,
        end_ns=span.end_ns,
        cpu_ns=span.cpu_ns,
        attrs=dict(span.attrs),
        marks=marks_of(span, wait=wait),
        phase=None if span.phase == OTHER_THREAD else max(0, span.phase + 1),
    )


def marks_of(span: Span, *, wait: bool = True) -> list[tuple[str, Any, str]]:
    """Name, value and kind of each mark."""
    return [
        (mark.name, mark.plain_value() if wait or _is_known(mark.value) else "pending", mark.kind)
        for mark in span.marks()
    ]


def _is_known(value: Any) -> bool:
    return not isinstance(value, Later) or value.is_known
