"""The records of a spool, one JSON object a line.

Units stand in the names: `_ns` nanoseconds, `_bytes` bytes, `_percent` 0 to 100, `_w` watts,
`_c` degrees Celsius, `_mhz` megahertz. `*_ns` times without another word are readings of the
monotonic clock (`time.perf_counter_ns`) of the process; `Header` carries the one anchor that
turns them into wall time. None is "not measured" and is left out of the line; 0 is a measured 0.
"""

from dataclasses import dataclass, field
from typing import ClassVar, get_args

from traceml_agent.schema.causes import GcTotals, Sched
from traceml_agent.schema.collectives import Arrivals, Collectives, DdpTimes
from traceml_agent.schema.digests import Covered, Samples, Sketch
from traceml_agent.schema.loaders import Loader, WorkerBatches, WorkerStacks
from traceml_agent.schema.retained import Retained
from traceml_agent.schema.snapshots import Snapshot
from traceml_agent.schema.spans import Marks, Passes, Scopes, Spans
from traceml_agent.schema.stacks import Stacks
from traceml_agent.schema.stalls import ProcessGroups, Stall

SPOOL_SCHEMA = "traceml-spool/1"
"""Schema of a spool. The number rises when an older reader would misread a newer file."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this process is in the job. Ranks are global."""

    rank: int
    local_rank: int
    node_rank: int
    world_size: int
    local_world_size: int
    attempt: int
    launcher: str  # "none", "torchrun", "slurm", "mpi", "ray", "environment", ...
    job_id: str | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """First line of each spool."""

    kind: ClassVar[str] = "header"
    schema: str
    agent_version: str
    run_id: str
    run_name: str | None
    identity: Identity
    pid: int
    parent_pid: int
    hostname: str
    boot_id: str | None  # tells two boots, and so two meanings of the monotonic clock, apart
    wall_ns: int  # the anchor: time.time_ns() and
    monotonic_ns: int  # time.perf_counter_ns() read together
    process_start_ns: int  # monotonic; before the interpreter started, so before any hook
    torch_imported_ns: int | None
    python_version: str
    torch_version: str | None
    argv: tuple[str, ...]
    script: str | None
    ring_path: str | None
    cuda_version: str | None = None
    other_agents: tuple[str, ...] | None = None  # names, when recording began; see docs
    tracers: tuple[str, ...] | None = None  # those that cost time at each call or line of Python
    spool_path: str | None = None  # where the spool lies if this file is the digest of it,
    run_dir: str | None = None  # and the run directory that it belongs to
    cost_per_hour: float | None = None  # price of this rank, in the currency of the user


@dataclass(frozen=True, slots=True)
class Patches:
    """Status of every patch and sampler: "active", or why it is not. A later one wins."""

    kind: ClassVar[str] = "patches"
    monotonic_ns: int
    statuses: dict[str, str]


@dataclass(frozen=True, slots=True)
class Steps:
    """A columnar batch of consecutive, contiguous steps: step i starts where i-1 ends.

    `phase_ns[name]` holds one integer a step; a phase with no time in the whole batch is left out.
    `micro_batches`, `samples`, `updates`: one integer for all steps of the batch if they are
    equal, else one a step. samples None: the batch size was not seen.
    """

    kind: ClassVar[str] = "steps"
    first_step: int  # steps are numbered from 1
    count: int
    start_ns: int
    duration_ns: list[int]
    phase_ns: dict[str, list[int]]
    micro_batches: int | list[int]
    samples: int | list[int] | None
    updates: int | list[int]  # optimizer updates seen; 0 for a skipped or an unseen one
    d2h_ns: list[int] | None = None  # part of the residual: blocking copies to the host


@dataclass(frozen=True, slots=True)
class DeviceSteps:
    """Device times of steps already written by `Steps`; null where an event did not resolve."""

    kind: ClassVar[str] = "device_steps"
    first_step: int
    count: int
    duration_ns: list[int | None]
    phase_ns: dict[str, list[int | None]]


@dataclass(frozen=True, slots=True)
class StepSums:
    """Exact sums of a batch of steps whose single values were thinned out to keep the size cap.

    Or of steps at which the patches rested, for some of the time at least: `shared_ns` of it is to
    be shared out as in the steps that were looked into, besides what `phase_ns` holds.
    """

    kind: ClassVar[str] = "step_sums"
    first_step: int
    count: int
    start_ns: int
    duration_ns: int
    phase_ns: dict[str, int]
    micro_batches: int
    samples: int | None
    updates: int
    d2h_ns: int = 0
    shared_ns: int | None = None  # None: the phases are known


@dataclass(frozen=True, slots=True)
class Outside:
    """Phase time outside any step so far, such as a last evaluation; a later one wins."""

    kind: ClassVar[str] = "outside"
    monotonic_ns: int
    phase_ns: dict[str, int]


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Allocator figures of one CUDA device, from torch."""

    device: int
    allocated_bytes: int
    reserved_bytes: int
    max_allocated_bytes: int
    max_reserved_bytes: int
    total_bytes: int | None
    alloc_retries: int | None = None


@dataclass(slots=True)  # frozen, it takes four times as long to make
class ProcessSample:
    """The training process. Counters are cumulative since the process started."""

    kind: ClassVar[str] = "process"
    monotonic_ns: int
    step: int  # last closed step
    rss_bytes: int | None
    cpu_ns: int | None  # user + system, all threads
    threads: int | None
    read_bytes: int | None = None
    write_bytes: int | None = None
    voluntary_switches: int | None = None
    involuntary_switches: int | None = None
    minor_faults: int | None = None
    major_faults: int | None = None
    run_delay_ns: int | None = None  # training thread waiting for a core
    devices: list[DeviceMemory] | None = None
    kernel_ns: int | None = None  # the part of cpu_ns in the kernel
    workers_grown_bytes: int | None = None  # resident, since they began; of one loader iterator


@dataclass(slots=True)  # frozen, it takes four times as long to make
class HostSample:
    """The machine, or the container the process lives in. One process a node writes these."""

    kind: ClassVar[str] = "host"
    monotonic_ns: int
    cpu_percent: float | None  # of all cores, since the previous sample
    cpu_count: int | None
    usable_cpus: float | None  # affinity and cgroup quota, whichever is smaller
    memory_total_bytes: int | None
    memory_used_bytes: int | None  # total - available
    memory_limit_bytes: int | None = None  # cgroup; None: no limit
    memory_cgroup_bytes: int | None = None
    load_1m: float | None = None
    throttled_periods: int | None = None  # cgroup cpu.stat, cumulative
    throttled_ns: int | None = None
    pressure_cpu_percent: float | None = None  # PSI some avg10
    pressure_memory_percent: float | None = None
    pressure_io_percent: float | None = None


@dataclass(slots=True)  # frozen, it takes four times as long to make
class GpuSample:
    """One GPU, from NVML. Any field is None where NVML could not say; `reasons` says why."""

    kind: ClassVar[str] = "gpu"
    monotonic_ns: int
    index: int  # NVML index, not the CUDA ordinal
    uuid: str | None = None
    name: str | None = None
    util_percent: float | None = None
    memory_util_percent: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    temperature_c: float | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    max_sm_clock_mhz: int | None = None
    throttle_reasons: int | None = None  # nvmlClocksEventReasons bit mask
    ecc_corrected: int | None = None
    ecc_uncorrected: int | None = None
    pcie_gen: int | None = None
    pcie_gen_max: int | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    pcie_rx_bytes_per_s: int | None = None
    pcie_tx_bytes_per_s: int | None = None
    energy_mj: int | None = None
    processes: list[int] | None = None  # pids with a compute context
    reasons: dict[str, str] = field(default_factory=dict)  # field -> why it is None
    xids: list[int] | None = None  # errors that the driver reported since the last sample


STRATEGY_EVENT = "strategy"
"""Name of the event that says how ranks train together; `detail.strategy`: ddp, fsdp, fsdp2."""
THREADS_EVENT = "threads"
"""Of the one that says how many threads torch computes with; `detail.torch`."""
COMPILED_EVENT = "compiled"
"""What Dynamo says of a compilation, by its id: function, place, and why it was made again."""
GRAPH_BREAKS_EVENT = "graph_breaks"
"""How many there were so far; a later one wins."""
FLOPS_EVENT = "flops"
"""Name of the event with the operations of one step: `detail.flops`, `forward_flops`, `dtype`."""
FRAMEWORK_EVENT = "framework"
"""What a framework did so far by its own account; a later one of the same framework wins."""
FACT_EVENTS = frozenset(
    (
        STRATEGY_EVENT, THREADS_EVENT, COMPILED_EVENT, GRAPH_BREAKS_EVENT, FLOPS_EVENT,
        FRAMEWORK_EVENT,
    )
)  # fmt: skip
"""Events that are facts: nothing took time."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened once: a garbage collection, a compilation, a checkpoint."""

    kind: ClassVar[str] = "event"
    name: str  # "compile", "checkpoint", "sampler", "spool", ...
    monotonic_ns: int
    duration_ns: int | None
    step: int
    detail: dict[str, str | int | float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fault:
    """An error inside the agent, stopped at the guard. The user's program never saw it."""

    kind: ClassVar[str] = "fault"
    monotonic_ns: int
    where: str
    error: str
    count: int
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class Overhead:
    """What the agent itself cost so far. A later one wins."""

    kind: ClassVar[str] = "overhead"
    monotonic_ns: int
    steps: int
    hot_path_ns: int | None  # estimated from audited steps
    thread_cpu_ns: int  # CPU time of the sampler threads
    activate_ns: int
    spool_bytes: int


@dataclass(frozen=True, slots=True)
class End:
    """Last line of a spool that was closed in order. No `End`: the process was killed or lives."""

    kind: ClassVar[str] = "end"
    monotonic_ns: int
    status: str  # finished, failed, interrupted
    exit_code: int | None
    exception: str | None
    stack: str | None
    steps: int
    duration_ns: int  # sum over all closed steps, exact
    phase_ns: dict[str, int]  # sums over all closed steps, exact
    micro_batches: int
    samples: int | None
    updates: int
    dropped: dict[str, int] = field(default_factory=dict)


Record = (
    Header
    | Patches
    | Steps
    | DeviceSteps
    | StepSums
    | Outside
    | ProcessSample
    | HostSample
    | GpuSample
    | Collectives
    | Arrivals
    | DdpTimes
    | GcTotals
    | Sched
    | Event
    | Stall
    | ProcessGroups
    | Loader
    | WorkerBatches
    | WorkerStacks
    | Stacks
    | Retained
    | Spans
    | Marks
    | Passes
    | Scopes
    | Snapshot
    | Fault
    | Overhead
    | End
    | Samples
    | Sketch
    | Covered
)

RECORD_TYPES: dict[str, type[Record]] = {record.kind: record for record in get_args(Record)}
