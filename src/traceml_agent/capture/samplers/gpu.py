"""Samples every GPU of the node by NVML: one call a value, and a reason for each that is absent.

The installed bindings may be older or newer than the driver, and come from either of two packages,
so that no function or constant of them is taken for granted.
"""

import contextlib
from typing import Any

from traceml_agent.schema.records import GpuSample

PCIE_EVERY = 10
"""Each PCIe throughput call lets the driver measure for 20 ms, so only every tenth sample asks.
Source: nvmlDeviceGetPcieThroughput in the NVML reference."""

SILENT_LIMIT = 10
"""Samples in a row in which no GPU gave any value, after which NVML is closed. Chosen: a hiccup of
the driver is over by then; what is silent for longer stays so until the process ends."""

MOST_XIDS = 32
"""Taken with one sample. Chosen: a device in trouble repeats itself."""

_WAYS = {
    "uuid": ("nvmlDeviceGetUUID",),
    "name": ("nvmlDeviceGetName",),
    "util_percent": ("nvmlDeviceGetUtilizationRates",),
    # Version 1 counts what the driver reserves as used.
    "memory_used_bytes": ("nvmlDeviceGetMemoryInfo nvmlMemory_v2", "nvmlDeviceGetMemoryInfo"),
    "power_w": ("nvmlDeviceGetPowerUsage",),
    "power_limit_w": ("nvmlDeviceGetEnforcedPowerLimit",),
    "temperature_c": ("nvmlDeviceGetTemperature NVML_TEMPERATURE_GPU",),
    "sm_clock_mhz": ("nvmlDeviceGetClockInfo NVML_CLOCK_SM",),
    "memory_clock_mhz": ("nvmlDeviceGetClockInfo NVML_CLOCK_MEM",),
    "max_sm_clock_mhz": ("nvmlDeviceGetMaxClockInfo NVML_CLOCK_SM",),
    "throttle_reasons": (
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
    ),
    "ecc_corrected": (
        "nvmlDeviceGetTotalEccErrors NVML_MEMORY_ERROR_TYPE_CORRECTED NVML_AGGREGATE_ECC",
    ),
    "ecc_uncorrected": (
        "nvmlDeviceGetTotalEccErrors NVML_MEMORY_ERROR_TYPE_UNCORRECTED NVML_AGGREGATE_ECC",
    ),
    "pcie_gen": ("nvmlDeviceGetCurrPcieLinkGeneration",),
    "pcie_gen_max": ("nvmlDeviceGetMaxPcieLinkGeneration",),
    "pcie_width": ("nvmlDeviceGetCurrPcieLinkWidth",),
    "pcie_width_max": ("nvmlDeviceGetMaxPcieLinkWidth",),
    "pcie_rx_bytes_per_s": ("nvmlDeviceGetPcieThroughput NVML_PCIE_UTIL_RX_BYTES",),
    "pcie_tx_bytes_per_s": ("nvmlDeviceGetPcieThroughput NVML_PCIE_UTIL_TX_BYTES",),
    "energy_mj": ("nvmlDeviceGetTotalEnergyConsumption",),
    "processes": (
        "nvmlDeviceGetComputeRunningProcesses",
        "nvmlDeviceGetComputeRunningProcesses_v2",
    ),
}
"""Field -> the functions that give it, newer ones first, each with the constants it takes."""

_START_REASONS = {
    "LIBRARY_NOT_FOUND": "no NVML library (libnvidia-ml.so.1) on this machine",
    "DRIVER_NOT_LOADED": "the NVIDIA driver is not loaded",
    "LIB_RM_VERSION_MISMATCH": "NVIDIA driver and library differ in version",
    "NO_PERMISSION": "no permission to use NVML",
}
_BINDINGS = "not supported by the installed pynvml"
_REASON_LENGTH = 100


class GpuSampler:
    """NVML of this process. A device that is lost does not disturb the others."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._devices: list[_Device] = []
        self._xids: _Xids | None = None
        self._tick = 0
        self._silent_samples = 0

    def start(self) -> str:
        """Opens NVML; "active", or in words why no GPU is sampled."""
        try:
            import pynvml
        except ImportError:
            return "nvidia-ml-py is not installed"
        try:
            pynvml.nvmlInit()
            count = pynvml.nvmlDeviceGetCount()
        except pynvml.NVMLError as error:
            name = _error_name(pynvml, error)
            return _START_REASONS.get(name, f"NVML says {_words(pynvml, error)}")
        self._nvml = pynvml
        if not count:
            return "NVML lists no GPU"
        self._devices = [_Device(pynvml, index) for index in range(count)]
        self._xids = _Xids(pynvml, self._devices)
        return "active"

    def sample(self, monotonic_ns: int) -> list[GpuSample]:
        """One sample a device."""
        with_pcie = self._tick % PCIE_EVERY == 0
        self._tick += 1
        samples = [device.sample(monotonic_ns, with_pcie) for device in self._devices]
        if self._xids is not None:
            self._xids.add_to(samples)
        answered = any(device.answered for device in self._devices)
        self._silent_samples = 0 if answered else self._silent_samples + 1
        return samples

    def silence(self) -> str | None:
        """Why it is useless to go on, in words, once no GPU has given a value for long."""
        if self._silent_samples < SILENT_LIMIT:
            return None
        reasons = [reason for device in self._devices for reason in device.told.values()]
        return f"no value in {SILENT_LIMIT} samples: {reasons[0] if reasons else 'no reason'}"

    def close(self) -> None:
        """Closes NVML."""
        if self._xids is not None:
            self._xids.close()
            self._xids = None
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
            self._nvml = None


class _Device:
    """One GPU: its handle, what never changes, and what it does not support."""

    def __init__(self, nvml: Any, index: int) -> None:
        self._nvml = nvml
        self._index = index
        self._handle: Any = None
        self._unsupported: dict[str, str] = {}  # by way: why
        self._static: dict[str, Any] = {}
        self._fresh: dict[str, str] = {}  # reasons that the samples do not hold yet
        self.told: dict[str, str] = {}
        self.answered = False
        self._misfits = _misfits_of(nvml)

    def sample(self, monotonic_ns: int, with_pcie: bool) -> GpuSample:
        """All values of this device now."""
        self._fresh, self.answered = {}, False
        util = self._ask("util_percent")
        memory = self._ask("memory_used_bytes")
        celsius = self._ask("temperature_c")
        processes = self._ask("processes")
        rx, tx = "pcie_rx_bytes_per_s", "pcie_tx_bytes_per_s"
        return GpuSample(
            monotonic_ns=monotonic_ns,
            index=self._index,
            uuid=_text(self._fixed("uuid")),
            name=_text(self._fixed("name")),
            util_percent=None if util is None else float(util.gpu),
            memory_util_percent=None if util is None else float(util.memory),
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            power_w=_watts(self._ask("power_w")),
            power_limit_w=_watts(self._fixed("power_limit_w")),
            temperature_c=None if celsius is None else float(celsius),
            sm_clock_mhz=self._ask("sm_clock_mhz"),
            memory_clock_mhz=self._ask("memory_clock_mhz"),
            max_sm_clock_mhz=self._fixed("max_sm_clock_mhz"),
            throttle_reasons=self._ask("throttle_reasons"),
            ecc_corrected=self._ask("ecc_corrected"),
            ecc_uncorrected=self._ask("ecc_uncorrected"),
            pcie_gen=self._ask("pcie_gen"),
            pcie_gen_max=self._fixed("pcie_gen_max"),
            pcie_width=self._ask("pcie_width"),
            pcie_width_max=self._fixed("pcie_width_max"),
            pcie_rx_bytes_per_s=_bytes(self._ask(rx)) if with_pcie else None,
            pcie_tx_bytes_per_s=_bytes(self._ask(tx)) if with_pcie else None,
            energy_mj=self._ask("energy_mj"),
            processes=None if processes is None else [int(p.pid) for p in processes],
            reasons=self._fresh,
        )

    def _ask(self, field: str) -> Any:
        """The value by the first way that gives one, or None and a reason."""
        reason = ""
        for way in _WAYS[field]:
            if way not in self._unsupported:
                value, problem = self._call(way)
                if not problem:
                    self.answered = True
                    self.told.pop(field, None)
                    return value
                # What fails for now says more than what is never supported.
                if way not in self._unsupported:
                    reason = problem
        reason = reason or self._unsupported[_WAYS[field][-1]]
        if self.told.get(field) != reason:
            self.told[field] = self._fresh[field] = reason
        return None

    def _call(self, way: str) -> tuple[Any, str]:
        """A value, or why there is none. What is not supported is noted, and not asked again."""
        nvml, names = self._nvml, way.split()
        missing = [name for name in names if not hasattr(nvml, name)]
        if missing:
            self._unsupported[way] = f"{_BINDINGS}: no {missing[0]}"
            return None, self._unsupported[way]
        try:
            if self._handle is None:
                self._handle = nvml.nvmlDeviceGetHandleByIndex(self._index)
            function, *constants = (getattr(nvml, name) for name in names)
            return function(self._handle, *constants), ""
        except nvml.NVMLError as error:
            reason = _words(nvml, error)
            if _error_name(nvml, error) in ("NOT_SUPPORTED", "FUNCTION_NOT_FOUND"):
                self._unsupported[way] = reason
            return None, reason
        except self._misfits as error:
            self._unsupported[way] = f"{_BINDINGS}: {error}"[:_REASON_LENGTH]
            return None, self._unsupported[way]

    def _fixed(self, field: str) -> Any:
        if field not in self._static:
            value = self._ask(field)
            if value is None:
                return None
            self._static[field] = value
        return self._static[field]


class _Xids:
    """Errors that the driver reports of the devices: they wait in a queue until they are taken."""

    def __init__(self, nvml: Any, devices: list[_Device]) -> None:
        self._nvml = nvml
        self._queue: Any = None
        self._take: Any = None
        self._watched: set[int] = set()
        self._reasons: dict[int, str] = {}  # by device: why it is not watched; until it is told
        self._errors = (nvml.NVMLError, *_misfits_of(nvml))
        for index in range(len(devices)):
            try:
                self._watch(index)
            except self._errors as error:
                known = isinstance(error, nvml.NVMLError)
                why = _words(nvml, error) if known else f"{_BINDINGS}: {error}"
                self._reasons[index] = why[:_REASON_LENGTH]

    def _watch(self, index: int) -> None:
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        if self._queue is None:
            self._take = nvml.nvmlEventSetWait_v2
            self._queue = nvml.nvmlEventSetCreate()
        nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, self._queue)
        self._watched.add(index)

    def add_to(self, samples: list[GpuSample]) -> None:
        """Gives each sample the errors of its device since the last call."""
        found: dict[int, list[int]] = {index: [] for index in self._watched}
        with contextlib.suppress(*self._errors):  # one of them says that nothing waits
            for _ in range(MOST_XIDS if found else 0):
                event = self._take(self._queue, 0)
                index = self._nvml.nvmlDeviceGetIndex(event.device)
                found.setdefault(index, []).append(int(event.eventData))
        for sample in samples:
            sample.xids = found.get(sample.index)
            if sample.index in self._reasons:
                sample.reasons["xids"] = self._reasons.pop(sample.index)

    def close(self) -> None:
        """Frees the queue."""
        if self._queue is not None:
            with contextlib.suppress(*self._errors):
                self._nvml.nvmlEventSetFree(self._queue)


def _misfits_of(nvml: Any) -> tuple[type[Exception], ...]:
    """What bindings raise, beside NVMLError, where they or the driver lack a function."""
    mismatch = getattr(nvml, "NVMLLibraryMismatchError", AttributeError)
    return AttributeError, TypeError, mismatch


def _error_name(nvml: Any, error: Any) -> str:
    """The name of an NVML return code without its prefix."""
    for name in (
        "LIBRARY_NOT_FOUND",
        "DRIVER_NOT_LOADED",
        "LIB_RM_VERSION_MISMATCH",
        "NO_PERMISSION",
        "NOT_SUPPORTED",
        "FUNCTION_NOT_FOUND",
    ):
        if getattr(nvml, f"NVML_ERROR_{name}", None) == error.value:
            return name
    return ""


def _words(nvml: Any, error: Any) -> str:
    """What NVML says of an error; not by `str`, which shows the bytes of old bindings as b'...'."""
    words = None
    with contextlib.suppress(nvml.NVMLError, AttributeError):
        words = _text(nvml.nvmlErrorString(error.value))
    return (words or f"error {error.value}")[:_REASON_LENGTH]


def _text(value: Any) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _watts(milliwatts: Any) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _bytes(kilobytes: Any) -> int | None:
    return None if kilobytes is None else int(kilobytes) * 1024
