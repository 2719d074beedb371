"""The thread of the agent: drains closed steps, samples, and notices that no step closes.

When the process leaves, the thread also does what a disk may never answer, so that the process need
not wait for it: a new thread cannot be started any more then (Python 3.12).
"""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from traceml_agent.capture.device import device_memory
from traceml_agent.capture.frames import why_unsafe
from traceml_agent.capture.recorder import Recorder
from traceml_agent.capture.samplers.causes import CauseWatch
from traceml_agent.capture.samplers.gpu import GpuSampler
from traceml_agent.capture.samplers.host import HostSampler
from traceml_agent.capture.samplers.process import ProcessSampler
from traceml_agent.capture.samplers.retained import RetainedWatch
from traceml_agent.capture.samplers.stacks import StackSampler
from traceml_agent.capture.samplers.stall import PAUSE_NS, StallWatch
from traceml_agent.guard import FAULT_LIMIT, guard, guarded, is_off
from traceml_agent.schema.records import GpuSample, Record

if TYPE_CHECKING:
    from traceml_agent.capture.session import Session

JOIN_S = 1.0
"""How long the exit waits for the thread: it may sit in a slow NVML call."""


def _native_id(ident: int) -> int:
    """The kernel's name for a thread of Python."""
    thread = getattr(threading, "_active", {}).get(ident)  # without the lock of `enumerate`
    return getattr(thread, "native_id", None) or threading.get_native_id()


@dataclass(frozen=True, slots=True)
class _Sampler:
    """One source of samples. It has its own guard: what fails in it does not stop the others."""

    name: str
    sample: Callable[[int], Sequence[Record]]
    close: Callable[[], None]


class SamplerLoop:
    """Started when the first step closes; stopped at exit. Daemon: it holds nobody up."""

    def __init__(self, session: "Session", recorder: Recorder, local_rank: int) -> None:
        self._session = session
        self._recorder = recorder
        self._is_node_speaker = local_rank == 0  # host and GPUs are sampled once a node
        self._stop = threading.Event()
        self._idle = threading.Event()
        self._called = threading.Event()
        self._errand: tuple[Callable[[], None], threading.Event] | None = None
        self._thread = threading.Thread(target=self._run, name="traceml", daemon=True)
        self._trainer_id = _native_id(session.tracker.owner)
        self._samplers: list[_Sampler] = []
        self._stacks: StackSampler | None = None
        self._retained: RetainedWatch | None = None
        self._watch = StallWatch(session, recorder)
        self._causes = CauseWatch(session, recorder)

    def start(self) -> None:
        """Starts the thread; called in the training thread."""
        with contextlib.suppress(RuntimeError):  # it began to wait for this step a moment ago
            self._thread.start()
        guarded("start causes", self._causes.start)

    def start_waiting(self, since_ns: int) -> None:
        """The same before any step, called in another thread; at once if the first one came."""
        self._watch.wait_for_first(since_ns)
        with contextlib.suppress(RuntimeError):  # the training thread was first
            self._thread.start()
        guarded("start causes", self._causes.start)

    def stop(self) -> None:
        """Ends sampling with a last sample; the thread stays for errands."""
        guarded("stop causes", self._causes.stop)
        self._stop.set()
        if self._thread.is_alive():
            self._idle.wait(JOIN_S)

    def run_within(self, timeout_s: float, errand: Callable[[], None]) -> bool:
        """Lets the thread do something, after `stop`; False if it is not back in time.

        Once it did not come back it is left where it hangs, and every further errand is refused.
        """
        if not self._thread.is_alive():
            errand()
            return True
        if not self._idle.is_set():
            return False
        self._idle.clear()
        done = threading.Event()
        self._errand = (errand, done)
        self._called.set()
        return done.wait(timeout_s)

    def _run(self) -> None:
        self._open()
        self._sample_until_stopped()
        guarded("last sample", self._sample)
        guarded("last stacks", self._close_stacks)
        guarded("close retained", self._close_retained)
        for sampler in self._samplers:
            guarded(f"close {sampler.name}", sampler.close)
        self._idle.set()
        while self._called.wait() and self._errand is not None:
            self._called.clear()
            errand, done = self._errand
            guarded("errand", errand)
            self._idle.set()  # before `done`: the next errand may follow at once
            done.set()

    def _sample_until_stopped(self) -> None:
        config = self._session.config
        next_sample = time.perf_counter()
        while True:
            now = time.perf_counter()
            if now >= next_sample:
                guarded("sample", self._sample)
                next_sample = max(next_sample + config.sample_interval_s, now)
            guarded("flush", self._recorder.drain)
            guarded("stall watch", lambda: self._watch.tick(time.perf_counter_ns()))
            guarded("digest", lambda: self._recorder.update_digest(config.digest_interval_s))
            guarded("write stacks", self._write_stacks)
            guarded("retained", self._watch_retained)
            self._note_cpu_time()
            timeout_s = min(config.flush_interval_s, max(0.01, next_sample - now))
            wake_at = time.perf_counter_ns() + int(timeout_s * 1e9)
            if self._stop.wait(timeout_s):
                return
            late_ns = time.perf_counter_ns() - wake_at
            if late_ns >= PAUSE_NS:
                guarded("stall watch", lambda late=late_ns: self._watch.overslept(late))  # type: ignore[misc]

    def _open(self) -> None:
        opens = [("process", self._open_process), ("stacks", self._open_stacks)]
        guarded("start retained", self._open_retained)
        if self._is_node_speaker:
            opens += [("host", self._open_host), ("gpu", self._open_gpu)]
        for name, open_sampler in opens:
            if name not in self._session.config.skip:
                self._session.set_status(name, "failed to start")  # stays if it raises
                guarded(f"start {name}", open_sampler)

    def _open_process(self) -> None:
        torch = self._session.torch
        process = ProcessSampler(
            self._trainer_id, lambda: device_memory(torch), self._memory_of_workers
        )
        self._add("process", lambda now: [process.sample(now, self._recorder.last_step)], process)

    def _memory_of_workers(self) -> int | None:
        loaders = self._session.loaders
        with guard("loader workers"):
            return None if loaders is None else loaders.workers_grown_bytes()
        return None

    def _open_stacks(self) -> None:
        hz = self._session.config.stack_hz
        if not hz:
            self._session.set_status("stacks", "TRACEML_STACK_HZ is 0")
            return
        if (reason := why_unsafe()) is not None:
            self._session.set_status("stacks", reason)
            return
        guest = self._causes if self._causes.is_guest else None
        self._stacks = StackSampler(self._session, hz, guest)
        self._stacks.start()
        self._session.set_status("stacks", "active")

    def _open_retained(self) -> None:
        if self._session.config.retained:
            self._retained = RetainedWatch(self._session)
            self._session.set_status("retained", "active")

    def _watch_retained(self) -> None:
        if self._retained is None:
            return
        found = self._retained.tick(time.perf_counter_ns(), self._recorder.last_step)
        self._recorder.write([] if found is None else [found])
        if self._retained.is_off is not None:
            self._session.set_status("retained", self._retained.is_off)
            self._retained = None

    def _close_retained(self) -> None:
        if self._retained is not None:
            found = self._retained.close(time.perf_counter_ns(), self._recorder.last_step)
            self._recorder.write([] if found is None else [found])

    def _write_stacks(self) -> None:
        if self._stacks is not None and (due := self._stacks.due()):
            self._recorder.write([*due])

    def _close_stacks(self) -> None:
        if self._stacks is not None:
            self._stacks.stop()
            self._recorder.write([self._stacks.table()])
            self._note_cpu_time()

    def _note_cpu_time(self) -> None:
        of_stacks = 0 if self._stacks is None else self._stacks.cpu_ns
        self._recorder.thread_cpu_ns = time.thread_time_ns() + of_stacks

    def _open_host(self) -> None:
        host = HostSampler()
        self._add("host", lambda now: [host.sample(now)], host)

    def _open_gpu(self) -> None:
        gpu = GpuSampler()
        status = gpu.start()
        if status != "active":
            self._session.set_status("gpu", status)
            return

        def sample(monotonic_ns: int) -> list[GpuSample]:
            samples = gpu.sample(monotonic_ns)
            silence = gpu.silence()
            if silence is not None:
                self._drop("gpu", silence)
            return samples

        self._add("gpu", sample, gpu)

    def _add(
        self,
        name: str,
        sample: Callable[[int], Sequence[Record]],
        sampler: ProcessSampler | HostSampler | GpuSampler,
    ) -> None:
        self._samplers.append(_Sampler(name, sample, sampler.close))
        self._session.set_status(name, "active")

    def _drop(self, name: str, reason: str) -> None:
        for sampler in [sampler for sampler in self._samplers if sampler.name == name]:
            self._samplers.remove(sampler)
            self._session.set_status(name, reason)
            guarded(f"close {name}", sampler.close)

    def _sample(self) -> None:
        now = time.perf_counter_ns()
        records: list[Record] = []
        for sampler in tuple(self._samplers):
            self._take(sampler, now, records)
        records.append(self._recorder.overhead(self._session.hot_path_ns()))
        self._recorder.write(records)

    def _take(self, sampler: _Sampler, monotonic_ns: int, records: list[Record]) -> None:
        place = f"sample {sampler.name}"
        guarded(place, lambda: records.extend(sampler.sample(monotonic_ns)))
        if is_off(place):
            self._drop(sampler.name, f"switched off after {FAULT_LIMIT} faults")
