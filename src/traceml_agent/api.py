"""What a program may ask the agent about its own run. Nothing here is ever needed.

Importing this imports neither torch nor the rest of the agent. Where nothing is recorded (the agent
is off, or no training has begun) every call returns None or does nothing, so that a program may
keep them.
"""

import _thread
import os
import sys
from collections.abc import Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from traceml_agent.capture.scopes import Span, Tree
    from traceml_agent.capture.session import Session

Item = TypeVar("Item")

_SESSION = "traceml_agent.capture.session"
_STARTUP = "traceml_agent.startup"
"""Imported in every process in which the agent is on."""
PREFIX = "traceml/"

TRACE_FORMATS = ("tree", "dict", "json", "df")

Scalar = str | int | float


def final_summary() -> dict[str, Any] | None:
    """The summary of the run so far, of all its ranks, with the content of `final_summary.json`.

    Reads what the ranks have written: as long as `traceml-agent view` takes (0.1 s for a rank,
    seconds for a thousand), so once an epoch rather than once a step. Other ranks write every half
    second; a step that is still open is not in it.

    Returns None where nothing is recorded. Raises TracemlError if the run directory is gone.
    """
    session = _recording()
    if session is None or session.recorder is None:
        return None
    flush()
    from traceml_agent.report.fold import fold

    recorder = session.recorder
    own = recorder.path if recorder.descriptors else None  # else its spool is closed
    return fold(recorder.run_dir, own_spool=own).payload


def summary(print_text: bool = False) -> dict[str, Scalar] | None:
    """The same in one flat dict for a tracker: `{"traceml/step_time_ms": 12.4, ...}`.

    Times are in milliseconds a step, shares from 0 to 1, memory in bytes. What was not measured has
    no key. With `print_text` the text of the summary is printed to stdout too.

    Returns None where nothing is recorded. Raises TracemlError if the run directory is gone.
    """
    payload = final_summary()
    if payload is None:
        return None
    if print_text:
        from traceml_agent.terminal import printable

        print(printable(payload["text"]))
    from traceml_agent.report.scalars import scalars_of

    return {PREFIX + name: value for name, value in scalars_of(payload).items()}


def flush() -> None:
    """Writes what is known of closed steps, scopes and marks to the spool now, not within half a
    second."""
    session = _recording()
    if session is not None and session.recorder is not None:
        from traceml_agent.guard import guard

        with guard("flush"):
            session.flush()


def scope(name: str, index: int | None = None, **attrs: Any) -> "Span | Nothing":
    """A stretch of the program, as a context manager: `with scope("load", shard): ...`.

    Scopes nest, in each thread and asyncio task on its own, to a depth of 64; deeper ones are left
    out and counted. A scope is closed when its block is left, also by an exception, and with it
    whatever was left open inside. What a task opens or marks after that belongs to the next scope
    around it. The newest 100,000 closed ones are kept (TRACEML_TRACE_MAX_SPANS). Of `attrs`
    numbers, texts, and lists, tuples and dicts of such (up to 64 items, three within one another)
    are kept, paths, devices and dtypes as text; of anything else the name of its type, so that no
    batch lives on.

    In a process that trains, closed ones go to its spool within half a second, and those of one
    name are summed up in the summary; in any other process they stay in memory. TRACEML_OUTPUT
    streams a line for each to the logger `traceml` (at level INFO, which a program shows that calls
    `logging.basicConfig(level="INFO")`) or to stdout, or keeps all of it in memory.
    """
    tree = _HERE.tree or _tree()
    return NOTHING if tree is None else tree.make(tree, name, index, attrs)


def mark(name: str, value: Any, *, kind: str = "point", **attrs: Any) -> None:
    """Notes a value in the innermost open scope, or in the run where none is open.

    One number or text: of Python, numpy or torch. The last value of each name of kind "summary" is
    in the summary of the run. A tensor on a device is copied there and fetched
    when `trace` is called, so that nothing waits here. Text is cut to 256 bytes. A scope keeps its
    newest 1,024 marks of kind "point" and all of kind "summary".

    Raises ValueError for another kind, and TypeError for a value that is neither one number nor
    text; with the agent off too, where nothing is kept.
    """
    if kind not in ("point", "summary"):
        raise ValueError(f"mark {name!r}: kind is 'point' or 'summary', not {kind!r}")
    tree = _HERE.tree or _tree()
    if tree is not None:
        tree.mark(name, value, kind, attrs)
    elif type(value) not in (int, float, str):
        from traceml_agent.capture.marks import check

        check(name, value)


def epochs(iterable: Iterable[Item]) -> Iterable[Item]:
    """The items, each inside a scope `epoch[i]`: `for epoch in epochs(range(10)): ...`.

    It stands for the iterable in all but its exact type."""
    return _loop("epoch", iterable)


def batches(iterable: Iterable[Item]) -> Iterable[Item]:
    """The items, each inside a scope `batch[i]`: what is done with a batch, not the wait for it.

    It stands for the loader in all but its exact type: `len`, attributes and `isinstance` are its
    own."""
    return _loop("batch", iterable)


def trace(format: str = "tree", name: str | None = None, last: int | None = None) -> Any:
    """The scopes of this process so far, those that are open too, within the epochs, evaluations,
    steps and phases of its training.

    Those are made from what was recorded. Going through a DataLoader while steps close is an
    epoch, anything else an evaluation within it; a program that opens scopes named `epoch` has no
    others. A phase of a step is the sum of its parts, and phases stand one after another: when
    their parts began is not recorded. A scope that was opened in a phase lies below it. The first
    step of an epoch is shown without what came between the epochs. Automatic spans have negative
    ids, and there are none where nothing is recorded; with the scopes there are at most
    TRACEML_TRACE_MAX_SPANS, the newest. `traceml-agent trace RUN` shows the same from the spools.

    `format`: "tree" prints one line a scope and returns None (in a Jupyter notebook it returns an
    object that shows itself instead); "dict" returns the `roots`, their `span_count`, and the
    `marks` outside any scope; a node with id, parent_id, name, index, start_ns and end_ns
    (monotonic clock), wall_us, cpu_ns (of its thread, within 10 us; None below 100 us), gpu_ns (of
    steps, their phases, and of what holds steps, where a CUDA device is timed), memory_peak_bytes
    (always None: torch keeps one peak a process, and asking for that of a scope would reset what
    the program reads), attrs, marks, children; "json"
    the same as text; "df" a pandas data frame with a row a scope. `name` keeps the scopes of that
    name and all below them, `last` the N of these that were closed most recently.

    Raises ValueError for another format or a negative `last`, and TracemlError for "df" without
    pandas.
    """
    if format not in TRACE_FORMATS:
        raise ValueError(f"format is one of {', '.join(TRACE_FORMATS)}, not {format!r}")
    from traceml_agent.tracing import show

    tree = _tree()
    flush()
    found = show(tree, _recording(), format, name, last)
    return _show(found) if format == "tree" else found


class Nothing:
    """A scope where the agent is off: it keeps nothing, and may be entered again and again."""

    __slots__ = ()

    def __enter__(self) -> "Nothing":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        return None


NOTHING = Nothing()


class _Here:
    """What this process has; a forked child begins anew."""

    tree: "Tree | None" = None
    is_refused = False  # by a setting, which was said
    forgets = False  # after a fork
    lock = _thread.allocate_lock()

    def forget(self) -> None:
        self.lock = _thread.allocate_lock()
        if self.tree is not None:
            self.tree = None
            sys.modules["traceml_agent.capture.scopes"].HERE.begin(None)


_HERE = _Here()


def _tree() -> "Tree | None":
    """The tree of this process; None where the agent is off."""
    if _HERE.tree is None and _STARTUP in sys.modules and not _HERE.is_refused:
        from traceml_agent.tracing import new_tree

        if not _HERE.forgets:
            _HERE.forgets = True
            os.register_at_fork(after_in_child=_HERE.forget)
        with _HERE.lock:  # several threads may open their first scopes at once
            if _HERE.tree is None:
                _HERE.tree = new_tree()
                _HERE.is_refused = _HERE.tree is None
    return _HERE.tree


def settings_changed() -> None:
    """The program called `init` after its first scope."""
    if _HERE.tree is not None:
        from traceml_agent.tracing import set_up

        set_up(_HERE.tree)


def left_out() -> dict[str, int]:
    """How many spans and marks were not kept, by reason."""
    return {} if _HERE.tree is None else dict(_HERE.tree.dropped)


def _loop(name: str, items: Iterable[Item]) -> Iterable[Item]:
    tree = _tree()
    if tree is None:
        return items
    from traceml_agent.capture.scope_loops import scoped

    found: Iterable[Item] = scoped(tree, name, items)
    return found


class Shown:
    """Text that a notebook shows as it is."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _show(text: str) -> Shown | None:
    module = sys.modules.get("IPython")
    shell = None if module is None else module.get_ipython()
    if type(shell).__name__ == "ZMQInteractiveShell":
        return Shown(text)
    from traceml_agent.terminal import printable

    print(printable(text))
    return None


def _armed() -> "Session | None":
    """The session of this process; None where the agent is off or torch is not imported."""
    module = sys.modules.get(_SESSION)
    session = None if module is None else module.SESSION
    return session if session is not None and session.torch is not None else None


def _recording() -> "Session | None":
    session = _armed()
    is_own = session is not None and session.pid == os.getpid()
    return session if is_own and session is not None and session.recorder is not None else None
