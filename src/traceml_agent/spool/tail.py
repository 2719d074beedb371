"""Reads the end of a spool that is being written: some kinds of records, in bounded time."""

import os
from pathlib import Path

from traceml_agent.spool.reader import Spool, header_in, keep_lines

MOST_BYTES = 1 << 25
"""Chosen: 300,000 steps, read in a second."""


def read_tail(path: Path, kinds: tuple[str, ...], most_bytes: int = MOST_BYTES) -> Spool:
    """The records of these kinds in the last bytes of a spool.

    Nothing of a digest or a ring. Raises NotASpool, NewerSchema and OSError.
    """
    with path.open("rb") as file:
        first = file.readline()
        spool = Spool(path, header_in(path, first.removesuffix(b"\n")))
        spool.size = os.fstat(file.fileno()).st_size
        is_cut = spool.size - file.tell() > most_bytes
        if is_cut:
            file.seek(spool.size - most_bytes)
            file.readline()
        lines = file.read().split(b"\n")[:-1]
    prefixes = tuple(f'{{"kind":"{kind}"'.encode() for kind in kinds)
    keep_lines(spool, [line for line in lines if line.startswith(prefixes)], 2)
    return spool
