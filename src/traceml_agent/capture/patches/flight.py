"""Reads when this rank entered the collectives that C++ calls, from torch's Flight Recorder.

The reducer of DistributedDataParallel and functional collectives call no function of Python. The
generic recorder of torch (gloo) has the moment at which a collective was entered, not the one at
which it ended: over the ranks that is who came last, and how long before the others were there.

Read in the training thread while it is at rest, like what DDP measured: seldom, and at the end.
"""

import time
from typing import TYPE_CHECKING, Any

from traceml_agent.capture.patches.collective_watch import Watch, group_id
from traceml_agent.capture.session import SESSION

if TYPE_CHECKING:
    from traceml_agent.schema.collectives import Arrivals

MOST = 512
"""Entries that are kept of one look, the last ones. Chosen: 12 KiB of the spool."""


def install(torch: Any, watch: Watch) -> None:
    """Looks now and then, where this torch has the recorder."""
    dump = getattr(torch._C._distributed_c10d, "_dump_fr_trace_json", None)
    if dump is not None:
        SESSION.looks["flight recorder"] = _Looks(dump, watch).look


class _Looks:
    """What one look leaves to the next one."""

    def __init__(self, dump: Any, watch: Watch) -> None:
        self._dump = dump
        self._watch = watch
        self._groups: dict[str, tuple[str, int]] = {}  # name: id and size
        self._cost_ns = 0
        self._next = 0  # first entry that was not seen

    def look(self, at_end: bool) -> "list[Arrivals]":
        """What was entered since the last look; nothing where Python called it all itself."""
        tracker = SESSION.tracker
        self._see_groups()
        called_by_python = self._watch.log.noted >= tracker.step and "ddp" not in SESSION.strategies
        # The recorder gives all or nothing: 2,000 entries take 0.1 s.
        too_slow = self._cost_ns > tracker.last_duration and not at_end
        if not self._groups or called_by_python or too_slow:
            return []
        begun = time.perf_counter_ns()
        found = self._arrivals()
        self._cost_ns = time.perf_counter_ns() - begun
        return found

    def _see_groups(self) -> None:
        """A program destroys its groups before it ends, and what they were is gone."""
        world = self._watch.c10d._world
        for group, name in list(world.pg_names.items()):
            ranks = sorted(world.pg_group_ranks.get(group, ()))
            if len(ranks) > 1:
                self._groups[name] = (group_id(name, ranks), len(ranks))

    def _arrivals(self) -> "list[Arrivals]":
        import orjson

        from traceml_agent.schema.collectives import Arrivals, CollectiveKey

        found = orjson.loads(self._dump(True, False)).get("entries", ())
        now = time.perf_counter_ns()
        to_monotonic = now - time.time_ns()
        entries = [
            (entry["process_group"][0], entry["profiling_name"], entry)
            for entry in found
            if entry["record_id"] >= self._next
            and not entry["is_p2p"]
            and entry["process_group"][0] in self._groups
        ][-MOST:]
        if not entries:
            return []
        self._next = found[-1]["record_id"] + 1
        names = sorted({(group, operation) for group, operation, _ in entries})
        number = {name: index for index, name in enumerate(names)}
        keys = []
        for group, operation in names:
            backend, _, op = operation.rpartition(":")
            keys.append(CollectiveKey(op, *self._groups[group], backend, 0))
        return [
            Arrivals(
                monotonic_ns=now,
                keys=keys,
                key=[number[group, operation] for group, operation, _ in entries],
                seq=[entry["collective_seq_id"] for *_, entry in entries],
                entered_ns=[entry["time_created_ns"] + to_monotonic for *_, entry in entries],
            )
        ]
