"""How much a training gets done: steps, samples and tokens a second, energy a step."""

from traceml_agent.report.efficiency import flops_of, gpus_of_job, peak_flops
from traceml_agent.report.loader_replay import training_loader
from traceml_agent.report.sections.shape import Window
from traceml_agent.report.series import steps_within
from traceml_agent.report.stats import total
from traceml_agent.report.view import RankView

LEAST_ENERGY_S = 1.0
"""Between two readings of the energy counter. Chosen: NVML updates it every 20 to 100 ms."""
_NAMES = (
    "steps_per_s",
    "samples_per_s",
    "tokens_per_s",
    "micro_batches_per_step",
    "flops_per_step",
    "flops_per_s",
    "mfu_percent",
    "joules_per_step",
    "joules_per_sample",
)

Throughput = dict[str, float | None]


def throughput(ranks: list[RankView], window: Window) -> Throughput:
    """Over the window and all ranks; None for what was not seen.

    Samples by the batches of the training loaders. Tokens by one batch of sixteen, padding
    included. Energy by the counters of the GPUs that were sampled.
    """
    nothing: Throughput = dict.fromkeys(_NAMES)
    if not ranks or not window.steps_analyzed:
        return nothing
    seconds, samples, batches = 0.0, 0, 0
    tokens: float | None = 0.0
    has_samples = True
    for rank in ranks:
        series = rank.series
        chosen = steps_within(series, window.start_step or 0, window.end_step or 0)
        part = slice(chosen.start, chosen.stop)
        seconds = max(seconds, total(series.duration_ns[part]) / 1e9)
        micro_batches = total(series.micro_batches[part])
        batches += micro_batches
        each = _tokens_per_batch(rank)
        tokens = None if each is None or tokens is None else tokens + each * micro_batches
        if series.samples is None:
            has_samples = False
        else:
            samples += total(series.samples[part])
    if not seconds:
        return nothing
    steps = window.steps_analyzed
    watts = _watts(ranks, window)
    per_step = samples / steps if has_samples and samples else None
    joules = None if watts is None else watts * seconds / steps
    flops = _flops(ranks)
    peak = _peak(ranks)
    return {
        "steps_per_s": steps / seconds,
        "samples_per_s": None if per_step is None else samples / seconds,
        "tokens_per_s": None if not tokens else tokens / seconds,
        "micro_batches_per_step": batches / steps / len(ranks),
        "flops_per_step": flops,
        "flops_per_s": None if flops is None else flops * steps / seconds,
        "mfu_percent": None if flops is None or not peak else 100 * flops * steps / seconds / peak,
        "joules_per_step": joules,
        "joules_per_sample": None if joules is None or per_step is None else joules / per_step,
    }


def _tokens_per_batch(rank: RankView) -> float | None:
    loader = training_loader(rank.spool)
    if loader is None or not loader.token_batches:
        return None
    return loader.tokens / loader.token_batches


def _flops(ranks: list[RankView]) -> float | None:
    """Operations of the model in one step, of all ranks; None where some rank did not count."""
    found = [counted.model for rank in ranks if (counted := flops_of(rank)) is not None]
    return sum(found) if len(found) == len(ranks) else None


def _peak(ranks: list[RankView]) -> float | None:
    """Peak FLOP/s of the devices of all ranks, which use one each; None where it is not known."""
    names = {s.name for rank in ranks for s in rank.spool.gpu_samples if s.name is not None}
    used = [rank for rank in ranks if any(s.devices for s in rank.spool.process_samples)]
    counted = flops_of(ranks[0])
    if len(names) != 1 or len(used) != len(ranks) or counted is None:
        return None  # GPUs of several kinds, or none that was used
    peak = peak_flops(names.pop(), counted.dtype, counted.tf32)
    return None if peak is None else peak * len(ranks)


def _watts(ranks: list[RankView], window: Window) -> float | None:
    """Mean power of all GPUs of the job while the steps of the window ran; None where it was not
    counted on all of them, or too short, or where others may use them."""
    gpus = gpus_of_job(ranks)
    spans: dict[str, tuple[int, int]] = {}
    for rank in ranks:
        series = rank.series
        chosen = steps_within(series, window.start_step or 0, window.end_step or 0)
        if rank.spool.gpu_samples and chosen:
            end = series.start_ns[chosen.stop - 1] + series.duration_ns[chosen.stop - 1]
            spans.setdefault(rank.spool.header.hostname, (series.start_ns[chosen.start], end))
    if not gpus:
        return None
    watts = 0.0
    for (machine, _), samples in gpus.items():
        begin, end = spans.get(machine, (0, 0))
        known = [
            (sample.monotonic_ns, sample.energy_mj)
            for sample in samples
            if sample.energy_mj is not None and begin <= sample.monotonic_ns <= end
        ]
        if not known or known[-1][0] - known[0][0] < LEAST_ENERGY_S * 1e9:
            return None
        used = known[-1][1] - known[0][1]
        if used < 0:
            return None  # the counter began anew
        watts += used * 1e6 / (known[-1][0] - known[0][0])
    return watts
