"""What two processes of tests must not use at one time: ports, and networks."""

import fcntl
import tempfile
from pathlib import Path
from typing import IO

_HELD: list[IO[str]] = []


def claim(name: str) -> bool:
    """Whether nobody else had that name; it is ours until this process ends.

    By flock: a second claim of the same process is refused too.
    """
    file = (Path(tempfile.gettempdir()) / f"traceml-tests-{name}.lock").open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return False
    _HELD.append(file)
    return True
