"""Whose turn it is to fold: the last process of a run to leave, or rank 0 when it has waited.

Each has closed its spool and dropped its liveness before it asks, so that of two that leave at the
same moment at least one sees no other.
"""

import contextlib
import fcntl
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import orjson

from traceml_agent.spool.format import ALIVE_SUFFIX, SPOOL_SUFFIX
from traceml_agent.spool.liveness import is_held

POLL_S = 0.02
SILENT_S = 60.0
"""Where locks say nothing, a process that wrote nothing for this long is gone. Chosen: 60 times
the interval between two samples."""
_TAIL_BYTES = 64 * 1024  # an `end` with its stack is shorter


@dataclass(frozen=True, slots=True)
class Turn:
    """The right to fold. To be ended after that."""

    lock_fd: int | None  # None: this file system has no locks
    others_live: bool = False  # rank 0 has waited in vain


def take_turn(own_spool: Path, patience_s: float, leave_by: float) -> Turn | None:
    """The turn, if it is ours before `leave_by` (of the monotonic clock).

    While others live it is nobody's, unless they still do after `patience_s` (0: leave it to them).
    """
    run_dir = own_spool.parent
    lock_fd = None
    with contextlib.suppress(OSError):
        lock_fd = _lock(run_dir / "fold.lock", leave_by)
        if lock_fd is None:
            return None  # whoever holds it for so long folds, or a reader will
    deadline = min(time.monotonic() + patience_s, leave_by)
    while True:
        others = _other_spools(run_dir, own_spool)
        if not any(lives(spool) for spool in others):
            if lock_fd is None and not _wrote_last(own_spool, others):
                return None  # all see that all have ended: without a lock the last of them folds
            return Turn(lock_fd)
        if time.monotonic() >= deadline:
            break
        time.sleep(POLL_S)
    if patience_s:
        return Turn(lock_fd, others_live=True)
    end_turn(Turn(lock_fd))
    return None


def end_turn(turn: Turn) -> None:
    """Lets the next one look."""
    if turn.lock_fd is not None:
        os.close(turn.lock_fd)


def _lock(path: Path, leave_by: float) -> int | None:
    """The descriptor that holds the lock; None if nobody let go. Raises OSError without locks."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path, flags, 0o600)
    while True:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except (BlockingIOError, PermissionError):
            if time.monotonic() > leave_by:
                os.close(fd)
                return None
            time.sleep(POLL_S)
        except OSError:
            os.close(fd)
            raise


def _other_spools(run_dir: Path, own_spool: Path) -> list[Path]:
    return [spool for spool in run_dir.glob(f"*{SPOOL_SUFFIX}") if spool != own_spool]


def lives(spool: Path) -> bool:
    """Whether a process will still come and fold. The lock counts where it can be trusted."""
    held = is_held(spool.with_suffix(ALIVE_SUFFIX))
    if held or _has_ended(spool):
        return bool(held)
    if held is False and _is_of_this_host(spool):
        return False
    # No locks here, or those of another node do not show: the last sign of life counts.
    try:
        return time.time() - spool.stat().st_mtime < SILENT_S
    except OSError:
        return False


def _has_ended(spool: Path) -> bool:
    with contextlib.suppress(OSError), spool.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        return b'\n{"kind":"end"' in file.read()
    return False


def _wrote_last(own_spool: Path, others: list[Path]) -> bool:
    def written(spool: Path) -> tuple[int, str]:
        return spool.stat().st_mtime_ns, spool.name

    try:
        return all(written(own_spool) > written(spool) for spool in others)
    except OSError:
        return True


def _is_of_this_host(spool: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, AttributeError), spool.open("rb") as file:
        return bool(orjson.loads(file.readline()).get("hostname") == socket.gethostname())
    return True
