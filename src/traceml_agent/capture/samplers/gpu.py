"""Samples every GPU of the node by NVML: one call a value, and a reason for each that is absent."""

import contextlib
from collections.abc import Callable
from typing import Any

from traceml_agent.schema.records import GpuSample

PCIE_EVERY = 10
"""Each PCIe throughput call lets the driver measure for 20 ms, so only every tenth sample asks.
Source: nvmlDeviceGetPcieThroughput in the NVML reference."""

_START_REASONS = {
    "LIBRARY_NOT_FOUND": "no NVML library (libnvidia-ml.so.1) on this machine",
    "DRIVER_NOT_LOADED": "the NVIDIA driver is not loaded",
    "LIB_RM_VERSION_MISMATCH": "NVIDIA driver and library differ in version",
    "NO_PERMISSION": "no permission to use NVML",
}


class GpuSampler:
    """NVML of this process. A device that is lost does not disturb the others."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._devices: list[_Device] = []
        self._tick = 0

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
            return _START_REASONS.get(name, f"NVML says {_words(error)}")
        self._nvml = pynvml
        if not count:
            return "NVML lists no GPU"
        self._devices = [_Device(pynvml, index) for index in range(count)]
        return "active"

    def sample(self, monotonic_ns: int) -> list[GpuSample]:
        """One sample a device."""
        with_pcie = self._tick % PCIE_EVERY == 0
        self._tick += 1
        return [device.sample(monotonic_ns, with_pcie) for device in self._devices]

    def close(self) -> None:
        """Closes NVML."""
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
        self._unsupported: dict[str, str] = {}
        self._reasons: dict[str, str] = {}
        self._told: dict[str, str] | None = None
        self._static: dict[str, Any] = {}

    def _ask(self, field: str, call: Callable[[Any], Any]) -> Any:
        """The value, or None and a reason. What is not supported is not asked again."""
        if field in self._unsupported:
            self._reasons[field] = self._unsupported[field]
            return None
        nvml = self._nvml
        try:
            if self._handle is None:
                self._handle = nvml.nvmlDeviceGetHandleByIndex(self._index)
            return call(self._handle)
        except nvml.NVMLError as error:
            self._reasons[field] = _words(error)
            if _error_name(nvml, error) in ("NOT_SUPPORTED", "FUNCTION_NOT_FOUND"):
                self._unsupported[field] = self._reasons[field]
            return None

    def _first(self, field: str, *calls: Callable[[Any], Any]) -> Any:
        """The first call that gives a value: newer functions before older ones."""
        for number, call in enumerate(calls):
            value = self._ask(f"{field}#{number}", call)
            reason = self._reasons.pop(f"{field}#{number}", None)
            if value is not None:
                self._reasons.pop(field, None)
                return value
            if reason is not None:
                self._reasons[field] = reason
        return None

    def _fixed(self, field: str, call: Callable[[Any], Any]) -> Any:
        if field not in self._static:
            value = self._ask(field, call)
            if value is None:
                return None
            self._static[field] = value
        return self._static[field]

    def sample(self, monotonic_ns: int, with_pcie: bool) -> GpuSample:
        """All values of this device now."""
        nvml = self._nvml
        self._reasons = {}
        util = self._ask("util_percent", nvml.nvmlDeviceGetUtilizationRates)
        memory = self._first(
            "memory_used_bytes",
            # Version 1 counts what the driver reserves as used.
            lambda h: nvml.nvmlDeviceGetMemoryInfo(h, version=nvml.nvmlMemory_v2),
            nvml.nvmlDeviceGetMemoryInfo,
        )
        power = self._ask("power_w", nvml.nvmlDeviceGetPowerUsage)
        limit = self._fixed("power_limit_w", nvml.nvmlDeviceGetEnforcedPowerLimit)
        processes = self._ask("processes", nvml.nvmlDeviceGetComputeRunningProcesses)
        sample = GpuSample(
            monotonic_ns=monotonic_ns,
            index=self._index,
            uuid=_text(self._fixed("uuid", nvml.nvmlDeviceGetUUID)),
            name=_text(self._fixed("name", nvml.nvmlDeviceGetName)),
            util_percent=None if util is None else float(util.gpu),
            memory_util_percent=None if util is None else float(util.memory),
            memory_used_bytes=None if memory is None else int(memory.used),
            memory_total_bytes=None if memory is None else int(memory.total),
            power_w=None if power is None else power / 1000,
            power_limit_w=None if limit is None else limit / 1000,
            temperature_c=self._temperature(),
            sm_clock_mhz=self._ask("sm_clock_mhz", self._clock(nvml.NVML_CLOCK_SM)),
            memory_clock_mhz=self._ask("memory_clock_mhz", self._clock(nvml.NVML_CLOCK_MEM)),
            max_sm_clock_mhz=self._fixed(
                "max_sm_clock_mhz", lambda h: nvml.nvmlDeviceGetMaxClockInfo(h, nvml.NVML_CLOCK_SM)
            ),
            throttle_reasons=self._first(
                "throttle_reasons",
                nvml.nvmlDeviceGetCurrentClocksEventReasons,
                nvml.nvmlDeviceGetCurrentClocksThrottleReasons,
            ),
            ecc_corrected=self._ecc("ecc_corrected", nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            ecc_uncorrected=self._ecc("ecc_uncorrected", nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
            pcie_gen=self._ask("pcie_gen", nvml.nvmlDeviceGetCurrPcieLinkGeneration),
            pcie_gen_max=self._fixed("pcie_gen_max", nvml.nvmlDeviceGetMaxPcieLinkGeneration),
            pcie_width=self._ask("pcie_width", nvml.nvmlDeviceGetCurrPcieLinkWidth),
            pcie_width_max=self._fixed("pcie_width_max", nvml.nvmlDeviceGetMaxPcieLinkWidth),
            pcie_rx_bytes_per_s=self._pcie(with_pcie, "rx", nvml.NVML_PCIE_UTIL_RX_BYTES),
            pcie_tx_bytes_per_s=self._pcie(with_pcie, "tx", nvml.NVML_PCIE_UTIL_TX_BYTES),
            energy_mj=self._ask("energy_mj", nvml.nvmlDeviceGetTotalEnergyConsumption),
            processes=None if processes is None else [int(p.pid) for p in processes],
            reasons=self._fresh_reasons(),
        )
        return sample

    def _fresh_reasons(self) -> dict[str, str]:
        """The reasons, where they differ from those of the previous sample."""
        if self._reasons == self._told:
            return {}
        self._told = dict(self._reasons)
        return self._told

    def _temperature(self) -> float | None:
        nvml = self._nvml
        value = self._ask(
            "temperature_c", lambda h: nvml.nvmlDeviceGetTemperature(h, nvml.NVML_TEMPERATURE_GPU)
        )
        return None if value is None else float(value)

    def _clock(self, kind: int) -> Callable[[Any], Any]:
        return lambda handle: self._nvml.nvmlDeviceGetClockInfo(handle, kind)

    def _ecc(self, field: str, kind: int) -> int | None:
        nvml = self._nvml
        value = self._ask(
            field, lambda h: nvml.nvmlDeviceGetTotalEccErrors(h, kind, nvml.NVML_AGGREGATE_ECC)
        )
        return None if value is None else int(value)

    def _pcie(self, with_pcie: bool, direction: str, counter: int) -> int | None:
        if not with_pcie:
            return None
        field = f"pcie_{direction}_bytes_per_s"
        value = self._ask(field, lambda h: self._nvml.nvmlDeviceGetPcieThroughput(h, counter))
        return None if value is None else int(value) * 1024


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


def _words(error: Any) -> str:
    return str(error)[:80]


def _text(value: Any) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
