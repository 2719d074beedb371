"""What one process of a job says when it leaves: one summary a job, and else at most one line.

The summary is printed by the last process out. Rank 0 waits for the others; where it must leave
before them it says so in one line. Where a node has a directory of its own, only the node of rank 0
prints its summary. The first rank that fails while others live says where to look: its launcher is
about to end the others, and with them the summary.
"""

import os
from pathlib import Path
from typing import Any

from traceml_agent.schema.records import Identity

RANKS_SHOWN = 8
WHAT_LIMIT = 200


def reason_for_one_line(payload: dict[str, Any], run_dir: Path, others_live: bool) -> str | None:
    """The line in place of the summary; None if this process is to print the summary."""
    exits = payload["run_context"]["exit"]
    running = [int(rank) for rank, how in exits.items() if how["status"] == "running"]
    if others_live and running:
        return (
            f"rank 0 has ended before {_ranks(running)}: the last one to end prints the summary; "
            f"`traceml-agent view {run_dir}` shows it at any time"
        )
    if "0" not in exits and payload["meta"]["world_size"] > 1:
        return (
            f"{_ranks([int(rank) for rank in exits])} ended; rank 0 is not in {run_dir}: "
            "`traceml-agent view` takes the directories of all nodes at once"
        )
    return None


def failure_line(run_dir: Path, identity: Identity, step: int, what: str | None) -> list[str]:
    """What the first rank that fails says; nothing for those after it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        os.close(os.open(run_dir / f"attempt{identity.attempt}.failure", flags, 0o600))
    except OSError:
        return []
    why = f" ({what[:WHAT_LIMIT]})" if what else ""
    return [
        f"rank {identity.rank} failed after step {step}{why}, others still run; "
        f"`traceml-agent view {run_dir}` shows the run"
    ]


def _ranks(ranks: list[int]) -> str:
    shown = ", ".join(map(str, sorted(ranks)[:RANKS_SHOWN]))
    more = f" and {len(ranks) - RANKS_SHOWN} more" if len(ranks) > RANKS_SHOWN else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}{more}"
