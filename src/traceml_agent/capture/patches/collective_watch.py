"""Turns the call of a collective into a row of the log: its group, its number there, its bytes."""

import threading
import zlib
from _thread import get_ident
from time import perf_counter_ns as clock
from typing import TYPE_CHECKING, Any
from weakref import ref

from traceml_agent.capture.collective_log import ASYNC_CALL, CALL, WAIT, CollectiveLog
from traceml_agent.capture.patches.disguise import compiling_test, skipped
from traceml_agent.capture.session import SESSION
from traceml_agent.guard import INTERNAL, Gate, fault, is_off
from traceml_agent.schema.phases import BACKWARD

if TYPE_CHECKING:
    from traceml_agent.capture.collective_records import CallKeeper
    from traceml_agent.schema.collectives import Collectives

PATCH = "collectives"
POINT_TO_POINT = frozenset(
    ("send", "recv", "isend", "irecv", "batch_isend_irecv", "send_object_list", "recv_object_list")
)
"""Called by some members of a group only: these have no number in it."""
BLOCKING_BACKENDS = frozenset(("gloo", "mpi"))
"""The host waits in a call until it is done, on any device. On others it only enqueues, unless the
tensors lie in its own memory."""
GROUPS_LIMIT = 1024
"""Groups that are watched: a program that makes one in each step must not grow."""


def group_id(name: str, ranks: list[int]) -> str:
    """The same on all ranks of a group. Groups that their members made for themselves may share a
    name."""
    return f"{name}-{zlib.crc32(repr(ranks).encode()):08x}"


class Group:
    """A process group as its ranks know it in common."""

    __slots__ = (
        "backend",
        "blocks_anywhere",
        "blocks_device",
        "id",
        "key_of",
        "object_id",
        "seq",
        "size",
    )

    def __init__(self, c10d: Any, group: Any) -> None:
        ranks = c10d.get_process_group_ranks(group)
        config = str(c10d.get_backend_config(group))  # cpu:gloo,cuda:nccl
        backends = [part.partition(":")[2] or part for part in config.split(",")]
        devices = [part for part in config.split(",") if not part.startswith("cpu:")]
        self.object_id = id(group)
        self.size = len(ranks)
        self.id = group_id(group.group_name, sorted(ranks))
        self.backend = ",".join(sorted(set(backends)))
        self.blocks_anywhere = BLOCKING_BACKENDS.issuperset(backends)
        self.blocks_device = BLOCKING_BACKENDS.issuperset(
            part.partition(":")[2] or part for part in devices
        )
        self.key_of: dict[tuple[str, bool], int] = {}
        self.seq = 0


class Watch:
    """What turns a call into a row of the log."""

    def __init__(self, torch: Any) -> None:
        self.log = CollectiveLog()
        self.keeper: CallKeeper | None = None
        self.c10d = torch.distributed.distributed_c10d
        self.gate = Gate()  # not among those of the session: without it steps are closed as before
        self.is_compiling = compiling_test(torch)
        self.work_type = self.c10d.Work
        self.plain_types = (torch.Tensor, torch.nn.Parameter)
        self._modes = getattr(torch._C, "_len_torch_function_stack", None)
        frames = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)
        self._set_dynamo = getattr(frames, "set_eval_frame", None)
        self.groups: dict[str, Group] = {}
        self._seen: dict[int, tuple[ref[Any], Group]] = {}
        # Groups whose calls are collected, and made when the context that collects them ends.
        state = getattr(getattr(self.c10d, "_world", None), "pg_coalesce_state", None)
        self.coalescing: dict[Any, Any] = {} if state is None else state

    def forget(self) -> None:
        """In a forked child: its groups and calls are its own."""
        self.groups = {}
        self._seen = {}
        self.keeper = None
        self.log.forget()

    def take(self, step: int, limit_percent: float) -> "list[Collectives]":
        """The records of what was noted; in the sampler thread, once training is proven."""
        if self.keeper is None:
            from traceml_agent.capture.collective_records import CallKeeper

            recorder = SESSION.recorder
            world_size = 1 if recorder is None else recorder.identity.world_size
            self.keeper = CallKeeper(self.log, world_size)
        records = self.keeper.records()
        if records:
            self.keeper.judge(step, limit_percent, self.shut)
        return records

    def shut(self, reason: str) -> None:
        """Lets every call pass from now on."""
        self.gate.shut = True
        SESSION.set_status(PATCH, reason)

    def passes(self) -> bool:
        """Whether a call is not counted: it is part of one, or of another thread's work."""
        if self.gate.shut or self.log.busy:
            return True
        tracker = SESSION.tracker
        if get_ident() == tracker.owner:
            return False
        # On a CUDA device the hooks of backward run in a thread that torch started, while the
        # training thread waits for it. No Python thread made it, so `threading` does not know it.
        thread = threading._active.get(get_ident())  # type: ignore[attr-defined]
        return tracker.phase != BACKWARD or not (
            thread is None or isinstance(thread, threading._DummyThread)
        )

    def note(
        self, name: str, group: Any, payload: Any, result: Any, begun: tuple[int, int, int],
        ended: int
    ) -> None:  # fmt: skip
        """Keeps a call that returned."""
        try:
            start, step, phase = begun
            if group is None:
                group = self.c10d._get_default_group()
            if self.coalescing and group in self.coalescing:
                return  # only collected: torch makes it later, in a call that is not watched
            known = self._group(group)
            if known is None:
                return  # this process is no member and torch did nothing, or a group too many
            size, on_cpu = self._measure(payload)
            blocks = known.blocks_anywhere if on_cpu is None else on_cpu or known.blocks_device
            key = known.key_of.get((name, blocks))
            if key is None:
                key = self.log.number((name, known.id, known.size, known.backend, int(blocks)))
                known.key_of[name, blocks] = key
            seq, part = 0, CALL
            if name not in POINT_TO_POINT:
                seq = known.seq = known.seq + 1
            if result is not None and not isinstance(result, int):  # recv returns a rank
                part = ASYNC_CALL
                for work in result if isinstance(result, list) else (result,):
                    if isinstance(work, self.work_type):  # else a future: its wait is not seen
                        self.log.expect(work, key, seq)
            self.log.rows.append((key, step, seq, start, ended - start, size, phase, part))
            self.log.noted += 1
            self.log.charge(clock() - ended)
        except INTERNAL as error:
            self.fail(error)

    def note_wait(self, handle: Any, begun: tuple[int, int, int], ended: int) -> None:
        """Keeps the wait for the handle of an async call."""
        try:
            start, step, phase = begun
            expected = self.log.expected(handle)
            if expected is not None:
                key, seq = expected
                row = (key, step, seq, start, ended - start, None, phase, WAIT)
                self.log.rows.append(row)
                self.log.noted += 1
                self.log.charge(clock() - ended)
        except INTERNAL as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """An error of ours stops here; after some of them the patch passes through."""
        fault(PATCH, error)
        if is_off(PATCH):
            self.shut("switched off after errors of its own")

    def _group(self, group: Any) -> Group | None:
        # To ask a group for its name takes 15 us after a collective. An id alone is not enough: a
        # group that was made after another one was destroyed may have the same.
        seen = self._seen.get(id(group))
        if seen is not None and seen[0]() is group:
            return seen[1]
        known = self._group_by_name(group)
        if known is not None:
            if len(self._seen) >= GROUPS_LIMIT:
                self._seen.clear()
            self._seen[id(group)] = (ref(group), known)
        return known

    def _group_by_name(self, group: Any) -> Group | None:
        name = getattr(group, "group_name", None)
        if name is None:
            return None
        known = self.groups.get(name)
        if known is None and len(self.groups) >= GROUPS_LIMIT:
            return None
        if known is None or known.object_id != id(group):
            # Also after a group was destroyed and one of the same name was made.
            fresh = self._look_at(group)
            if known is not None and known.id == fresh.id:
                fresh.seq = known.seq
            known = self.groups[name] = fresh
        return known

    def _look_at(self, group: Any) -> Group:
        """Asks torch, by functions that Dynamo would compile after a graph break."""
        if self._set_dynamo is None:
            return Group(self.c10d, group)
        before = self._set_dynamo(None)
        try:
            return Group(self.c10d, group)
        finally:
            self._set_dynamo(before)

    def _measure(self, payload: Any) -> tuple[int | None, bool | None]:
        """Bytes, and whether they lie in the memory of the host; None: not looked at.

        Only plain tensors are looked at, and only where no mode of the user listens: reading an
        attribute of any other calls its code.
        """
        if payload is None or (self._modes is not None and self._modes()):
            return None, None
        tensors = payload if isinstance(payload, list) else (payload,)
        size = 0
        for tensor in tensors:
            if type(tensor) not in self.plain_types:
                return None, None
            size += tensor.nbytes
        return size, bool(tensors) and bool(tensors[0].is_cpu)


for _class in (CollectiveLog, Group, Watch):
    skipped(_class)
skipped(group_id)
