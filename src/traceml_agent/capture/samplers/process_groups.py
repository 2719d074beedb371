"""How far this rank got in the collectives of each process group, asked for at a stall only.

Two sources, both safe from another thread while the training thread hangs inside a collective
(docs/decisions/0006-stall-evidence.md): torch's generic Flight Recorder (gloo), which holds a lock
of its own for the copy of its entries and nothing else; and for NCCL its sequence number, which
c10d reads from memory. The recorder of NCCL is left alone: its dump asks CUDA about events.
"""

import sys
from typing import Any

import orjson

from traceml_agent.guard import or_none
from traceml_agent.schema.stalls import Operation, ProcessGroup

MOST_GROUPS = 32
MOST_RANKS = 16_384
"""Of a group. A larger one is written without its ranks: they are not known then."""
LAST_OPERATIONS = 4
SIZES_LIMIT = 80
NCCL_RECORDER = "_dump_nccl_trace_json"


def process_groups() -> list[ProcessGroup]:
    """The process groups that this rank is a member of; empty without torch.distributed."""
    distributed = sys.modules.get("torch.distributed.distributed_c10d")
    world: Any = getattr(distributed, "_world", None)
    members = getattr(world, "pg_map", None)
    if not members:
        return []
    operations = _operations() or {}
    groups = []
    for group, backend in list(members.items())[:MOST_GROUPS]:
        name = str(world.pg_names.get(group, ""))
        ranks = sorted(world.pg_group_ranks.get(group, ()))
        groups.append(
            ProcessGroup(
                name=name,
                description=str(getattr(group, "group_desc", "")),
                backend=str(backend[0]),
                ranks=ranks if len(ranks) <= MOST_RANKS else [],
                entered=_entered(group, str(backend[0]), operations.get(name, [])),
                operations=operations.get(name, []),
            )
        )
    return groups


@or_none
def _entered(group: Any, backend: str, operations: list[Operation]) -> int | None:
    """Sequence number of the last collective; None where it cannot be told.

    The number that a group itself gives also counts sends and receives under gloo, so that ranks
    differ in it which are in step. NCCL counts them apart since it has a recorder for JSON.
    """
    if operations:
        return operations[-1].sequence
    if "nccl" in backend and hasattr(sys.modules["torch._C._distributed_c10d"], NCCL_RECORDER):
        return int(group._get_sequence_number_for_group())
    return None


@or_none
def _operations() -> dict[str, list[Operation]]:
    """The last collectives of each group by its name; None where this torch has no recorder."""
    module: Any = sys.modules["torch._C._distributed_c10d"]
    found: dict[str, list[Operation]] = {}
    for entry in orjson.loads(module._dump_fr_trace_json(True, False)).get("entries", ()):
        if not entry["is_p2p"]:
            done = bool(entry["retired"]) or entry["state"] == "completed"
            sizes = ", ".join("x".join(map(str, size)) for size in entry["input_sizes"])
            name = str(entry["profiling_name"]).rpartition(":")[2]
            operation = Operation(int(entry["collective_seq_id"]), name, sizes[:SIZES_LIMIT], done)
            found.setdefault(str(entry["process_group"][0]), []).append(operation)
    return {name: entries[-LAST_OPERATIONS:] for name, entries in found.items()}
