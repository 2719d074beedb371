"""How near a training comes to the peak of its GPUs, and which of those sampled are its own."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from traceml_agent.report.view import RankView
from traceml_agent.schema.records import FLOPS_EVENT, GpuSample

RECOMPUTES = 2.05
"""A backward pass has twice the operations of its forward pass; one that has more computes
activations again, which is no progress of the model."""

# TFLOP/s without sparsity: 16-bit (accumulating in 32), TF32, 32-bit. Source: the data sheets of
# NVIDIA for each product. The longest name that fits counts.
_PEAKS: dict[str, tuple[float, float | None, float | None]] = {
    "H200": (989.0, 494.0, 67.0),
    "H100": (989.0, 494.0, 67.0),
    "H100 PCIe": (756.0, 378.0, 51.0),
    "A100": (312.0, 156.0, 19.5),
    "V100": (125.0, None, 15.7),
    "L40S": (362.0, 183.0, 91.6),
    "L4": (121.0, 60.0, 30.3),
    "A10": (125.0, 62.5, 31.2),
    "T4": (65.0, None, 8.1),
}


@dataclass(frozen=True, slots=True)
class StepFlops:
    """Operations of one step of one rank: those of the model, and all that were computed."""

    model: float
    computed: float
    dtype: str
    tf32: bool


def flops_of(rank: RankView) -> StepFlops | None:
    """What was counted in one step; None without TRACEML_FLOPS."""
    for event in rank.spool.events:
        total, forward = event.detail.get("flops"), event.detail.get("forward_flops")
        if event.name != FLOPS_EVENT or not isinstance(total, int) or not total:
            continue
        model = float(total)
        if isinstance(forward, int) and total - forward > RECOMPUTES * forward > 0:
            model = 3.0 * forward
        dtype = str(event.detail.get("dtype"))
        return StepFlops(model, float(total), dtype, event.detail.get("tf32") == 1)
    return None


def peak_flops(name: str | None, dtype: str, tf32: bool) -> float | None:
    """Peak FLOP/s of a GPU for this data type, dense; None where it is not known."""
    known = [key for key in _PEAKS if name is not None and _fits(key, name)]
    if not known:
        return None
    half, with_tf32, single = _PEAKS[max(known, key=len)]
    if dtype in ("float16", "bfloat16"):
        return half * 1e12
    if dtype != "float32":
        return None
    found = with_tf32 if tf32 and with_tf32 is not None else single
    return None if found is None else found * 1e12


def _fits(key: str, name: str) -> bool:
    """Whether all words of the key are words of the name: `NVIDIA H100 80GB HBM3`, `Tesla T4`."""
    words = name.replace("-", " ").split()
    return all(word in words for word in key.split())


def gpus_of_job(ranks: Sequence[RankView]) -> dict[tuple[str, int], list[GpuSample]] | None:
    """The samples of the GPUs that the job used, by machine and index.

    NVML tells of all GPUs of a machine. None where other jobs may use some of them (there are more
    than ranks on it), or where a machine with ranks told of none.
    """
    found: dict[tuple[str, int], list[GpuSample]] = {}
    of_machine: Counter[str] = Counter()
    for rank in ranks:
        machine = rank.spool.header.hostname
        of_machine[machine] += 1
        own: dict[tuple[str, int], list[GpuSample]] = {}
        for sample in rank.spool.gpu_samples:
            own.setdefault((machine, sample.index), []).append(sample)
        for key, samples in own.items():
            found.setdefault(key, samples)  # of two that sampled one machine, the first
    seen = Counter(machine for machine, _ in found)
    is_own = bool(found) and all(seen[name] == count for name, count in of_machine.items())
    return found if is_own else None
