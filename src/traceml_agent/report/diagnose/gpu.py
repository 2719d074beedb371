"""What holds a GPU back that nothing in the program does: clocks, its link, others, its memory."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from traceml_agent.report.diagnose.issue import Issue
from traceml_agent.report.stats import mean
from traceml_agent.schema.records import GpuSample

REASONS = {
    0x08: "hardware slowdown",
    0x20: "heat (software limit)",
    0x40: "heat (hardware limit)",
    0x80: "the power brake of the machine",
    0x04: "the power limit",
}
"""Bits of nvmlClocksEventReasons that lower the clocks. Source: nvml.h."""
XIDS = {
    13: "an exception of a kernel",
    31: "an illegal memory access",
    43: "a kernel that was stopped",
    45: "work that was cleaned up",
    48: "an uncorrectable memory error",
    63: "a memory row that was replaced",
    64: "a memory row that could not be replaced",
    74: "an error of NVLink",
    79: "the device fell off the bus",
    92: "many corrected memory errors",
    94: "a contained memory error",
    95: "an uncontained memory error",
    119: "its system processor does not answer",
    120: "an error of its system processor",
}
PROGRAM_XIDS = frozenset((13, 31, 43, 45))
"""Those that a fault of the program explains. Source: Xid errors in the documentation of NVIDIA."""
POWER_LIMIT = 0x04
"""A GPU that works hard may well meet its power limit: that alone is no warning."""
REASON_SHARE = 0.05
CLOCK_DROP = 0.05
"""Of the samples in which the GPU worked, and of its highest clock. Source: signals.md, "Ours"."""
SHARED_SHARE = 0.05
"""Of the samples in which another process had a context on the GPU. Chosen: as above."""


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """What the samples of one GPU say beside its averages; None: NVML could not say."""

    reason_shares: dict[int, float]
    clock_drop: float | None  # of the highest clock, in samples with a reason
    pcie: tuple[int, int, int, int] | None  # generation and its maximum, width and its maximum
    ecc_uncorrected: int | None  # errors during the run
    ecc_corrected: int | None
    other_processes: int | None  # the most at once, if ranks of this run are there too
    shared_share: float | None
    xids: dict[int, int] | None  # errors that the driver reported: how often each

    def to_json(self) -> dict[str, Any]:
        """The fields of this GPU in the summary."""
        names = {REASONS[bit]: share for bit, share in self.reason_shares.items()}
        gen, gen_max, width, width_max = self.pcie or (None, None, None, None)
        return {
            "throttle_shares": names,
            "throttled_clock_drop": self.clock_drop,
            "pcie_gen": gen,
            "pcie_gen_max": gen_max,
            "pcie_width": width,
            "pcie_width_max": width_max,
            "ecc_uncorrected_errors": self.ecc_uncorrected,
            "ecc_corrected_errors": self.ecc_corrected,
            "other_processes": self.other_processes,
            "xids": None if self.xids is None else {str(xid): n for xid, n in self.xids.items()},
        }


def facts_of_gpu(samples: Sequence[GpuSample], own_pids: frozenset[int]) -> GpuFacts:
    """The facts of one GPU; `own_pids` are the ranks of this run on its machine."""
    busy = [s for s in samples if s.util_percent is None or s.util_percent > 0]
    known = [s for s in busy if s.throttle_reasons is not None]
    shares = {
        bit: share
        for bit in REASONS
        if known and (share := _share([bool((s.throttle_reasons or 0) & bit) for s in known]))
    }
    drops = [
        1 - s.sm_clock_mhz / s.max_sm_clock_mhz
        for s in known
        if s.sm_clock_mhz is not None
        and s.max_sm_clock_mhz
        and any((s.throttle_reasons or 0) & bit for bit in REASONS)
    ]
    others = _others(samples, own_pids)
    return GpuFacts(
        reason_shares=shares,
        clock_drop=mean(drops),
        pcie=_pcie(busy),
        ecc_uncorrected=_growth([s.ecc_uncorrected for s in samples]),
        ecc_corrected=_growth([s.ecc_corrected for s in samples]),
        other_processes=None if others is None else max(others),
        shared_share=None if others is None else _share([count > 0 for count in others]),
        xids=_xids(samples),
    )


def gpu_issues(index: int, facts: GpuFacts) -> list[Issue]:
    """The findings about one GPU."""
    rules = (_xid, _clocks, _link, _shared, _ecc)
    return [issue for rule in rules if (issue := rule(index, facts)) is not None]


def _xid(index: int, facts: GpuFacts) -> Issue | None:
    if not facts.xids:
        return None
    listed = ", ".join(
        f"Xid {xid}{f' ({XIDS[xid]})' if xid in XIDS else ''}{f', {n} times' if n > 1 else ''}"
        for xid, n in sorted(facts.xids.items())
    )
    by_program = facts.xids.keys() <= PROGRAM_XIDS
    return _issue(
        "GPU_XID",
        "warn" if by_program else "crit",
        index,
        f"The driver reported errors of GPU {index} during the run: {listed}.",
        "Most often a kernel of a program that uses this device reads or writes where it may not: "
        "run it with CUDA_LAUNCH_BLOCKING=1 or under compute-sanitizer."
        if by_program
        else "Take the device out of use until it was checked: results may be wrong, and the run "
        "may end. The kernel log (dmesg) has the details.",
        None,
        {"xids": {str(xid): n for xid, n in facts.xids.items()}},
    )


def _clocks(index: int, facts: GpuFacts) -> Issue | None:
    shares = {bit: s for bit, s in facts.reason_shares.items() if s >= REASON_SHARE}
    drop = facts.clock_drop
    if not shares or drop is None or drop < CLOCK_DROP:
        return None
    reasons = ", ".join(f"{REASONS[bit]} ({share:.0%})" for bit, share in shares.items())
    only_power = set(shares) == {POWER_LIMIT}
    return _issue(
        "GPU_THROTTLED",
        "info" if only_power else "warn",
        index,
        f"GPU {index} works with clocks {drop:.0%} below their maximum, because of {reasons} of "
        "the samples.",
        "Expected at full load; a higher power limit raises the clocks."
        if only_power
        else "Check cooling, power supply and the neighbours of the device; other GPUs of the job "
        "wait for this one.",
        drop,
        {"reasons": {REASONS[b]: s for b, s in shares.items()}, "clock_drop": drop,
         "threshold_share": REASON_SHARE, "threshold_drop": CLOCK_DROP},
    )  # fmt: skip


def _link(index: int, facts: GpuFacts) -> Issue | None:
    if facts.pcie is None:
        return None
    gen, gen_max, width, width_max = facts.pcie
    if gen >= gen_max and width >= width_max:
        return None
    return _issue(
        "PCIE_DEGRADED",
        "warn" if width < width_max else "info",
        index,
        f"The PCIe link of GPU {index} is generation {gen} with {width} lanes; it could have "
        f"generation {gen_max} with {width_max}.",
        "Copies to this device are slower than they could be: check the slot, the riser and the "
        "BIOS, and whether nvidia-smi shows replays.",
        1 - (width * 2**gen) / (width_max * 2**gen_max),
        {"pcie_gen": gen, "pcie_gen_max": gen_max, "pcie_width": width,
         "pcie_width_max": width_max},
    )  # fmt: skip


def _shared(index: int, facts: GpuFacts) -> Issue | None:
    share = facts.shared_share
    if share is None or share < SHARED_SHARE or facts.other_processes is None:
        return None
    count = facts.other_processes
    return _issue(
        "GPU_SHARED",
        "warn",
        index,
        f"Up to {count} process{'es' if count > 1 else ''} beside this run used GPU {index}, in "
        f"{share:.0%} of the samples.",
        "Kernels of several processes take turns: give the run a GPU of its own, or see what is "
        "left over from an earlier run (nvidia-smi).",
        share,
        {"other_processes": count, "share": share, "threshold": SHARED_SHARE},
    )


def _ecc(index: int, facts: GpuFacts) -> Issue | None:
    uncorrected, corrected = facts.ecc_uncorrected or 0, facts.ecc_corrected or 0
    if not uncorrected and not corrected:
        return None
    return _issue(
        "GPU_ECC_ERRORS",
        "warn" if uncorrected else "info",
        index,
        f"The memory of GPU {index} had {uncorrected} uncorrected and {corrected} corrected errors "
        "during the run.",
        "Results may be wrong and the run may end: have the device checked."
        if uncorrected
        else "They were corrected; a device with many of them wears out.",
        None,
        {"ecc_uncorrected_errors": uncorrected, "ecc_corrected_errors": corrected},
    )


def _issue(
    kind: str,
    severity: str,
    index: int,
    summary: str,
    action: str,
    score: float | None,
    evidence: dict[str, Any],
) -> Issue:
    return Issue(
        kind,
        severity,
        summary,
        action,
        metric="gpu",
        score=score,
        confidence="medium",
        evidence={**evidence, "scope": {"level": "gpu", "gpu_idx": index}},
    )


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0


def _growth(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return max(0, known[-1] - known[0]) if known else None


def _xids(samples: Sequence[GpuSample]) -> dict[int, int] | None:
    known = [s.xids for s in samples if s.xids is not None]
    return dict(Counter(xid for found in known for xid in found)) if known else None


def _pcie(busy: Sequence[GpuSample]) -> tuple[int, int, int, int] | None:
    """The best link that was seen while the GPU worked: at rest the driver slows it down."""
    gens = [s.pcie_gen for s in busy if s.pcie_gen is not None]
    widths = [s.pcie_width for s in busy if s.pcie_width is not None]
    most_gen = [s.pcie_gen_max for s in busy if s.pcie_gen_max is not None]
    most_width = [s.pcie_width_max for s in busy if s.pcie_width_max is not None]
    if not (gens and widths and most_gen and most_width):
        return None
    return max(gens), max(most_gen), max(widths), max(most_width)


def _others(samples: Sequence[GpuSample], own_pids: frozenset[int]) -> list[int] | None:
    """How many processes beside the run each sample shows; None: it is not of this run, or the
    container counts processes otherwise than NVML."""
    known = [set(s.processes) for s in samples if s.processes is not None]
    if not any(pids & own_pids for pids in known):
        return None
    return [len(pids - own_pids) for pids in known]
