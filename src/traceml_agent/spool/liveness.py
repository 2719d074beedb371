"""Whether the writer of a spool still lives: an advisory lock that the kernel drops at any death.

`lockf` and not `flock`: forked DataLoader workers inherit a `flock` and keep it after the owner
died. A `lockf` lock goes as soon as *any* descriptor of its file is closed in the owning process,
so the file is opened once here, and a fold inside the owner must never probe it.
"""

import errno
import fcntl
import os
from pathlib import Path

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def hold(path: Path) -> int:
    """Creates and locks the file; returns the descriptor that must stay open. Raises OSError."""
    fd = os.open(path, _FLAGS, 0o600)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
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
