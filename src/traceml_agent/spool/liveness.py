"""Whether the writer of a spool still lives: an advisory lock that the kernel drops at any death.

`lockf` and not `flock`: forked DataLoader workers inherit a `flock` and keep it after the owner
died. A `lockf` lock goes as soon as *any* descriptor of its file is closed in the owning process,
so the file is opened once here, and a fold inside the owner must never probe it.
"""

import errno
import fcntl
import os
import threading
from pathlib import Path

ANSWER_S = 1.0
"""How long to wait for the answer of a lock server. Chosen: on a busy machine a local lock takes
some milliseconds."""
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def hold(path: Path) -> int:
    """Creates and locks the file; returns the descriptor that must stay open. Raises OSError.

    Where the lock server does not answer, the training does not wait for it: the lock comes later,
    or never.
    """
    fd = os.open(path, _FLAGS, 0o600)
    refused: list[OSError] = []

    def lock() -> None:
        try:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            refused.append(error)

    # The lock belongs to the process, whichever of its threads asked for it.
    thread = threading.Thread(target=lock, name="traceml-lock", daemon=True)
    try:
        thread.start()
        thread.join(ANSWER_S)
    except RuntimeError:  # no thread to be had
        lock()
    if refused:
        os.close(fd)
        raise refused[0]
    return fd


def is_held(path: Path) -> bool | None:
    """True: the writer lives. False: it is gone. None: this file system or host cannot say."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError as error:
        return True if error.errno in (errno.EACCES, errno.EAGAIN) else None
    finally:
        os.close(fd)


def boot_id() -> str | None:
    """The name of this boot of this machine; process ids and locks of another one say nothing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
