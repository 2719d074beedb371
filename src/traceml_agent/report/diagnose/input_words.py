"""The causes of section input_pipeline in words, and the advice computed for them."""

import os
from collections.abc import Callable

from traceml_agent.report.diagnose.issue import Place
from traceml_agent.report.loader_figures import Hotspot, LoaderFigures
from traceml_agent.report.loader_replay import Change, ReplayInputs, change, enough_workers

STARVED = 0.15
"""Share of a worker's time for batches in which it waits for a core. Source: signals.md."""
BLOCKED = 0.5
"""Share in which it neither runs nor waits for a core. Source: signals.md."""
NAMED = 0.2
"""A line is named when it has so much of the samples, LEAST_SAMPLES of them at least."""
LEAST_SAMPLES = 5


def named_hotspot(found: LoaderFigures) -> Hotspot | None:
    """The line of the program that most of the workers' time goes to, if it stands out."""
    lines = [spot for spot in found.hotspots if spot.line is not None]
    if lines and lines[0].share >= NAMED and lines[0].samples >= LEAST_SAMPLES:
        return lines[0]
    return None


def place_of(spot: Hotspot) -> Place | None:
    """Where that is."""
    line = spot.line
    return None if line is None else Place(line.file, line.line, line.function, line.call)


def _where(found: LoaderFigures) -> str:
    """`71 % of it in dataset.py:42 `decode`, 18 % collate`; empty where nothing is known."""
    parts = []
    hot = named_hotspot(found)
    if hot is not None and hot.line is not None:
        name = f"{os.path.basename(hot.line.file)}:{hot.line.line} `{hot.line.function}`"
        parts.append(f"{hot.share:.0%} of it in {name}")
    if found.shares.collate is not None and found.shares.collate >= NAMED:
        parts.append(f"{found.shares.collate:.0%} collate")
    return f"; {', '.join(parts)}" if parts else ""


def _ms(value_ns: float | None) -> str:
    value = (value_ns or 0.0) / 1e6
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"


def _workers(found: LoaderFigures) -> str:
    workers = found.loader.workers
    busy = found.shares.busy
    name = "1 worker is" if workers == 1 else f"{workers} workers are"
    text = f"The {name} {busy:.0%} busy" if busy is not None else f"{workers} workers make batches"
    return f"{text} ({_ms(found.fetch_p50_ns)} a batch)"


def _more_workers(found: LoaderFigures, inputs: ReplayInputs | None) -> str:
    """The advice on num_workers, from a replay; a bound where cores are short."""
    if inputs is None:
        return "raise num_workers"
    best = enough_workers(inputs, found.usable_cpus, found.shares.cpu)
    if best is None:
        cores = f" on {found.usable_cpus:g} usable cores" if found.usable_cpus else ""
        return f"more workers would not help{cores}: make the work per batch cheaper"
    needs_core = (found.shares.cpu or 0.0) >= BLOCKED
    most = "at most " if needs_core else "about "
    return f"set num_workers={best.workers} (saves {most}{_ms(best.saved_ns)} a batch, by a replay)"


def _words_worker_bound(found: LoaderFigures, inputs: ReplayInputs | None) -> tuple[str, str]:
    advice = _more_workers(found, inputs)
    cheaper = "" if "cheaper" in advice else "; make the work per item cheaper"
    return f"{_workers(found)}{_where(found)}.", f"{advice[0].upper()}{advice[1:]}{cheaper}."


def _words_storage(found: LoaderFigures, inputs: ReplayInputs | None) -> tuple[str, str]:
    blocked = found.shares.blocked or 0.0
    read = (found.read_bytes or 0) / 1e6
    return (
        f"{_workers(found)}, for {blocked:.0%} of that blocked while {read:,.0f} MB were read from "
        f"storage{_where(found)}.",
        f"Read less or nearer: cache or copy the data set to a local disk, read large files in "
        f"order; to wait in parallel, {_more_workers(found, inputs)}.",
    )


_STARVED_ACTION = (
    "More runs than there are cores: give the job more CPUs, lower num_workers or the threads of "
    "each process (OMP_NUM_THREADS), or make the work per item cheaper."
)


def _words_starved(found: LoaderFigures, inputs: ReplayInputs | None) -> tuple[str, str]:
    cores = "" if found.usable_cpus is None else f" ({found.usable_cpus:g} usable)"
    if (found.shares.delay or 0.0) < STARVED:
        return (
            f"Batches are there, but the training thread waits for a core{cores} in "
            f"{found.delay_share or 0.0:.0%} of its time.",
            _STARVED_ACTION,
        )
    return (
        f"{_workers(found)}, for {found.shares.delay or 0.0:.0%} of that waiting for a core"
        f"{cores}{_where(found)}.",
        _STARVED_ACTION,
    )


def _words_transfer(found: LoaderFigures, inputs: ReplayInputs | None) -> tuple[str, str]:
    loader = found.steady
    mean = loader.transfer_ns / max(1, loader.known)
    ready = loader.ready / max(1, loader.known)
    pinned = ", pinning" if loader.pinned else ""
    return (
        f"Batches are made in time ({ready:.0%} were ready), but sending and unpickling{pinned} "
        f"takes {_ms(mean)} a batch.",
        "Send less: return tensors or arrays and not lists of Python objects, smaller types "
        "(uint8, converted on the device), fewer and larger tensors; more workers do not help.",
    )


def _words_main(found: LoaderFigures, inputs: ReplayInputs | None) -> tuple[str, str]:
    collate = found.shares.collate
    part = f", {collate:.0%} of it in collate" if collate is not None and collate >= NAMED else ""
    saved = ""
    if inputs is not None:
        best = enough_workers(inputs, found.usable_cpus, None)
        if best is not None:
            saved = f" num_workers={best.workers} saves at most {_ms(best.saved_ns)} a batch."
    return (
        f"The training process makes its batches itself (num_workers=0): "
        f"{_ms(found.fetch_p50_ns)} a batch{part}.",
        f"Load in workers: set num_workers, and persistent_workers=True.{saved}",
    )


def _words_head_of_line(found: LoaderFigures, inputs: ReplayInputs | None) -> tuple[str, str]:
    loader = found.steady
    share = loader.behind_ns / max(1, loader.made_wait_ns)
    text = ""
    if inputs is not None and loader.in_order:
        options = [change(inputs, in_order=False), change(inputs, prefetch=2 * inputs.prefetch)]
        best = max(options, key=lambda option: option.saved_ns)
        text = f" {_setting(best)} saves about {_ms(best.saved_ns)} a batch, by a replay."
    return (
        f"Few batches are slow ({_ms(found.fetch_p99_ns)} at p99, {_ms(found.fetch_p50_ns)} at "
        f"p50) and the others wait behind them: in {share:.0%} of the wait a later batch was "
        f"ready{_where(found)}.",
        f"Make the slow items cheaper, or let others pass: in_order=False (torch 2.6 and later) "
        f"where the order does not matter, or a larger prefetch_factor.{text}",
    )


def _setting(option: Change) -> str:
    return f"prefetch_factor={option.prefetch}" if option.in_order else "in_order=False"


def _words_prefetch(found: LoaderFigures, inputs: ReplayInputs | None) -> tuple[str, str]:
    loader = found.loader
    prefetch = loader.prefetch or 2
    saved = None if inputs is None else change(inputs, prefetch=2 * prefetch)
    text = "" if saved is None else f" (saves about {_ms(saved.saved_ns)} a batch, by a replay)"
    return (
        f"The workers are {found.shares.busy or 0.0:.0%} busy, but with prefetch_factor={prefetch} "
        f"they may not work ahead far enough for a loop of uneven steps.",
        f"Let them work ahead: prefetch_factor={2 * prefetch}{text}.",
    )


def _words_restart(found: LoaderFigures, inputs: ReplayInputs | None) -> tuple[str, str]:
    loader = found.loader
    each = loader.restart_ns / max(1, loader.epochs - 1)
    if loader.persistent:
        action = "Make epochs longer, or the first batch of each cheaper."
    else:
        action = "Keep the workers over the epochs: persistent_workers=True; or make epochs longer."
    return (
        f"Each of {loader.epochs} epochs begins with {_ms(each)} of starting workers and waiting "
        f"for the first batch.",
        action,
    )


WORDS: dict[str, Callable[[LoaderFigures, ReplayInputs | None], tuple[str, str]]] = {
    "WORKER_BOUND": _words_worker_bound,
    "STORAGE_BOUND": _words_storage,
    "WORKERS_OVERSUBSCRIBED": _words_starved,
    "TRANSFER_BOUND": _words_transfer,
    "MAIN_PROCESS_LOADING": _words_main,
    "HEAD_OF_LINE": _words_head_of_line,
    "PREFETCH_LOW": _words_prefetch,
    "EPOCH_RESTART": _words_restart,
}
