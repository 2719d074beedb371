"""The one thread of the agent: drains closed steps, samples process, host and GPUs."""

import threading
import time
from typing import TYPE_CHECKING

from traceml_agent.capture.device import device_memory
from traceml_agent.capture.recorder import Recorder
from traceml_agent.capture.samplers.gpu import GpuSampler
from traceml_agent.capture.samplers.host import HostSampler
from traceml_agent.capture.samplers.process import ProcessSampler
from traceml_agent.guard import guarded
from traceml_agent.schema.records import Record

if TYPE_CHECKING:
    from traceml_agent.capture.session import Session

JOIN_S = 1.0
"""How long the exit waits for the thread: it may sit in a slow NVML call."""


class SamplerLoop:
    """Started when the first step closes; stopped at exit. Daemon: it holds nobody up."""

    def __init__(self, session: "Session", recorder: Recorder, local_rank: int) -> None:
        self._session = session
        self._recorder = recorder
        self._is_node_speaker = local_rank == 0  # host and GPUs are sampled once a node
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traceml", daemon=True)
        self._trainer_id = threading.get_native_id()
        self._process: ProcessSampler | None = None
        self._host: HostSampler | None = None
        self._gpu: GpuSampler | None = None

    def start(self) -> None:
        """Starts the thread; called in the training thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread and takes a last sample."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_S)
        if not self._thread.is_alive():
            guarded("last sample", self._sample)
        for sampler in (self._process, self._host, self._gpu):
            if sampler is not None:
                sampler.close()

    def _run(self) -> None:
        guarded("samplers", self._open)
        config = self._session.config
        next_sample = time.perf_counter()
        while True:
            now = time.perf_counter()
            if now >= next_sample:
                guarded("sample", self._sample)
                next_sample = max(next_sample + config.sample_interval_s, now)
            guarded("flush", self._recorder.drain)
            self._recorder.thread_cpu_ns = time.thread_time_ns()
            if self._stop.wait(min(config.flush_interval_s, max(0.01, next_sample - now))):
                return

    def _open(self) -> None:
        session, skip = self._session, self._session.config.skip
        if "process" not in skip:
            self._process = ProcessSampler(self._trainer_id, lambda: device_memory(session.torch))
            session.set_status("process", "active")
        if not self._is_node_speaker:
            return
        if "host" not in skip:
            self._host = HostSampler()
            session.set_status("host", "active")
        if "gpu" not in skip:
            gpu = GpuSampler()
            status = gpu.start()
            session.set_status("gpu", status)
            if status == "active":
                self._gpu = gpu

    def _sample(self) -> None:
        now = time.perf_counter_ns()
        records: list[Record] = []
        if self._process is not None:
            records.append(self._process.sample(now, self._recorder.last_step))
        if self._host is not None:
            records.append(self._host.sample(now))
        if self._gpu is not None:
            records.extend(self._gpu.sample(now))
        records.append(self._recorder.overhead(self._session.hot_path_ns()))
        self._recorder.write(records)
