"""Where the threads of this process stand: Python stacks as places, and what the kernel says.

Read by the agent's thread from outside: no signal, no trace function, no lock of the program.
"""

import os
import threading
from pathlib import Path
from types import CodeType, FrameType

from traceml_agent.capture.frames import current_frames
from traceml_agent.capture.user_code import OWN, STANDARD, cell, is_library
from traceml_agent.redact import own_secrets, printable, redact
from traceml_agent.schema.stalls import ThreadStack

MOST_THREADS = 32
INNERMOST, OUTERMOST = 48, 16
"""Frames of a thread that are kept. Chosen: a training loop under three frameworks has 40; where a
compiler adds a hundred, the line of the user is among the outer ones."""
DEEPEST = 2_000
MOST_CHARACTERS = 64_000
"""Of all stacks together; the training thread comes first."""
NAME_LIMIT = 200

_DEBUGGERS = frozenset(("pdb.py", "bdb.py", "code.py"))
_DEBUGGER_PARTS = ("pydevd", "debugpy", f"IPython{os.sep}core{os.sep}debugger")
_PROMPT_PARTS = ("ipykernel", f"IPython{os.sep}terminal", "prompt_toolkit", "_pyrepl")

# Number of the system call: how many arguments say that it is descriptor 0 alone.
_READ = {"x86_64": "0", "aarch64": "63"}
_SELECT = {"x86_64": ("23", "270"), "aarch64": ("72",)}


def stacks_of_all_threads(training: int) -> tuple[list[ThreadStack], int]:
    """The stacks of all threads but the agent's, the training one first; how many are left out."""
    frames = current_frames()
    frames.pop(threading.get_ident(), None)
    names = _threads()
    main = threading.main_thread().ident
    order = sorted(frames, key=lambda ident: (ident != training, ident != main, ident))
    places = _Places()
    stacks: list[ThreadStack] = []
    for ident in order[:MOST_THREADS]:
        if places.characters > MOST_CHARACTERS:
            break
        name, native_id = names.get(ident, ("not of threading", None))
        state, waits_in = _kernel_view(native_id)
        name = printable(redact(name, places.secrets))[:NAME_LIMIT]
        stack = places.of(frames[ident])
        stacks.append(ThreadStack(name, ident == training, stack, state, waits_in))
    return stacks, len(frames) - len(stacks)


def input_awaited(training: int) -> str | None:
    """What the training thread waits for if that is a person: "stdin", "debugger", "prompt"."""
    frame = current_frames().get(training)
    library: list[str] = []
    while frame is not None and is_library(frame.f_code.co_filename):
        library.append(frame.f_code.co_filename)
        frame = frame.f_back
    if any(_is_debugger(file) for file in library):
        return "debugger"
    if frame is None and _is_prompt(library):
        return "prompt"
    native_id = _threads().get(training, ("", None))[1]
    return "stdin" if native_id is not None and _reads_stdin(native_id) else None


def _threads() -> dict[int, tuple[str, int | None]]:
    """Name and kernel id of each thread, without the lock that `threading.enumerate` takes."""
    known = dict(getattr(threading, "_active", {}))
    return {ident: (thread.name, thread.native_id) for ident, thread in known.items()}


class _Places:
    """Turns frames into text; each file name is redacted once."""

    def __init__(self) -> None:
        self.secrets = own_secrets()
        self.characters = 0
        self._files: dict[str, str] = {}

    def of(self, frame: FrameType | None) -> str:
        frames: list[tuple[CodeType, int]] = []
        while frame is not None and len(frames) < DEEPEST:
            if not frame.f_code.co_filename.startswith(OWN):
                frames.append((frame.f_code, frame.f_lineno or 0))
            frame = frame.f_back
        lines = [self._line(code, line) for code, line in frames[:INNERMOST]]
        if len(frames) > INNERMOST + OUTERMOST:
            lines.append(f"  ... {len(frames) - INNERMOST - OUTERMOST} frames")
        outer = frames[max(INNERMOST, len(frames) - OUTERMOST) :]
        lines += [self._line(code, line) for code, line in outer]
        text = "\n".join(reversed(lines))
        self.characters += len(text)
        return text

    def _line(self, code: CodeType, line: int) -> str:
        function = getattr(code, "co_qualname", code.co_name)[:NAME_LIMIT]
        return printable(f'  File "{self._file(code.co_filename)}", line {line}, in {function}')

    def _file(self, name: str) -> str:
        if name not in self._files:
            self._files[name] = redact(cell(name) or name, self.secrets)
        return self._files[name]


def _is_debugger(file: str) -> bool:
    in_standard = file.startswith(STANDARD) and os.path.basename(file) in _DEBUGGERS
    return in_standard or any(part in file for part in _DEBUGGER_PARTS)


def _is_prompt(library: list[str]) -> bool:
    """No code of the program runs: Python's own prompt has no frame, a kernel has its loop."""
    return not library or any(part in file for file in library for part in _PROMPT_PARTS)


def _kernel_view(native_id: int | None) -> tuple[str | None, str | None]:
    """State of a thread and the kernel function it sleeps in; None where /proc does not say."""
    if native_id is None:
        return None, None
    task = Path(f"/proc/self/task/{native_id}")
    state = waits_in = None
    try:
        state = (task / "stat").read_text().rpartition(")")[2].split()[0]
        waits_in = (task / "wchan").read_text().strip()
    except (OSError, IndexError):
        pass
    return state, waits_in if waits_in and waits_in != "0" else None


def _reads_stdin(native_id: int) -> bool:
    """Whether a thread sits in `read(0)`, or in a `select` on descriptor 0 alone (readline)."""
    try:
        call = Path(f"/proc/self/task/{native_id}/syscall").read_text().split()
    except OSError:
        return False
    machine = os.uname().machine
    if len(call) < 2:
        return False
    if call[0] == _READ.get(machine):
        return call[1] == "0x0"
    return call[0] in _SELECT.get(machine, ()) and call[1] == "0x1"
