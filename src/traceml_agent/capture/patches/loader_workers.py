"""Looks into the workers of DataLoaders: when each batch was made, and who waited for it.

In the worker the loop of torch is given queues that tell the time, and a `collate_fn` that is
timed; nothing of ours stands in a traceback. In the training process the making of an iterator is
timed, and the workers get the memory that they write to.
"""

import inspect
import multiprocessing
import sys
import time
from _thread import get_ident
from types import CodeType
from typing import Any

from traceml_agent.capture.board import Board, find_slot, new_board
from traceml_agent.capture.frames import switch_faster
from traceml_agent.capture.loaders import Facts, Iteration, LoaderWatch
from traceml_agent.capture.patches.disguise import hide_frame, like
from traceml_agent.capture.session import SESSION
from traceml_agent.capture.shadow import hidden_module
from traceml_agent.capture.worker import WorkerClock, parent_pid
from traceml_agent.guard import guard, is_off, or_none

_NEEDED = ("index_queue", "data_queue", "collate_fn", "worker_id")
_PLACE = "loader workers"
_NESTED = 8
"""Subsets of subsets. Chosen: nobody makes more, and a cycle ends."""
START_SLACK_NS = 20_000_000
"""The kernel tells when a process began, and when a file was written, to 10 ms."""
_INHERITED: dict[int, Board] = {}
"""The board of the iterator that a thread is making. A forked worker is a copy of that thread."""

clock = time.perf_counter_ns


def install(torch: Any) -> str:
    """Patches the loop of the workers, and the iterators of DataLoaders."""
    watch = SESSION.loaders
    if watch is None:
        return "not in: it needs the dataloader patch"
    module = torch.utils.data.dataloader
    worker = torch.utils.data._utils.worker
    _patch_worker_loop(worker)
    _patch_iterator(module._SingleProcessDataLoaderIter, watch)
    _patch_iterator(module._MultiProcessingDataLoaderIter, watch)
    _patch_reset(module._MultiProcessingDataLoaderIter, watch)
    return "active"


# In the worker


def _patch_worker_loop(module: Any) -> None:
    original = module._worker_loop
    names = list(inspect.signature(original).parameters)
    places = [names.index(name) for name in _NEEDED if name in names]
    if len(places) != len(_NEEDED):
        raise AttributeError("_worker_loop has other arguments")

    def _worker_loop(*args: Any) -> Any:
        parts, worker = list(args), None
        with guard(_PLACE):
            worker = _watched(parts, places)
        try:
            return original(*parts)
        except BaseException as error:
            hide_frame(error)
            raise
        finally:
            if worker is not None:
                with guard(_PLACE):
                    worker.close()

    module._worker_loop = like(_worker_loop, original)


def _watched(parts: list[Any], places: list[int]) -> WorkerClock | None:
    """Puts a clock into the arguments of the loop of a worker."""
    if SESSION.gates["dataloader"].shut or len(parts) <= max(places):
        return None
    index_queue, data_queue, collate, worker_id = (parts[place] for place in places)
    board = _INHERITED.get(get_ident())
    parent, hz = parent_pid(), SESSION.config.stack_hz
    if board is not None:
        worker = WorkerClock(lambda: board.slots[worker_id], hz)
    elif parent is not None:
        worker = WorkerClock(lambda: find_slot(parent), hz)
    else:
        return None
    if SESSION.config.exact_lines and hz:
        switch_faster()
    worker.sender = lambda: getattr(getattr(data_queue, "_thread", None), "native_id", None)
    _time_queues(worker, index_queue, data_queue)
    if sys.version_info >= (3, 11):  # before, the frame of the wrapper shows in tracebacks
        parts[places[2]] = worker.timed(collate)
    return worker


def _time_queues(worker: WorkerClock, index_queue: Any, data_queue: Any) -> None:
    get, put = index_queue.get, data_queue.put

    def timed_get(*args: Any, **kwargs: Any) -> Any:
        try:
            task = get(*args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            raise
        worker.received(task)
        return task

    def timed_put(item: Any, *args: Any, **kwargs: Any) -> None:
        worker.finished(item[1])
        put(item, *args, **kwargs)
        worker.handed_on()

    index_queue.get, data_queue.put = like(timed_get, get), like(timed_put, put)


# In the training process


def _patch_iterator(iterator_class: Any, watch: LoaderWatch) -> None:
    original = iterator_class.__init__

    def __init__(self: Any, loader: Any, *args: Any, **kwargs: Any) -> None:
        if is_off(_PLACE) or SESSION.gates["dataloader"].shut:
            original(self, loader, *args, **kwargs)
            return
        begun = clock()
        iteration = None
        with guard(_PLACE):
            iteration = _begin(loader, watch)
        try:
            original(self, loader, *args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            raise
        finally:
            _INHERITED.pop(get_ident(), None)
        if iteration is not None:
            with guard(_PLACE):
                iteration.starts_ns.append(clock() - begun)
                _finish(self, iteration, watch)

    iterator_class.__init__ = like(__init__, original)


def _patch_reset(iterator_class: Any, watch: LoaderWatch) -> None:
    """A new epoch of workers that stay."""
    original = iterator_class._reset

    def _reset(self: Any, *args: Any, **kwargs: Any) -> Any:
        iteration = watch.live.get(id(self))
        if iteration is None or kwargs.get("first_iter") or len(args) > 1:
            return original(self, *args, **kwargs)
        begun = clock()
        iteration.epoch += 1
        try:
            return original(self, *args, **kwargs)
        except BaseException as error:
            hide_frame(error)
            raise
        finally:
            iteration.starts_ns.append(clock() - begun)

    iterator_class._reset = like(_reset, original)


def _begin(loader: Any, watch: LoaderWatch) -> Iteration | None:
    """Before the workers are started: the memory that they write to."""
    facts = _facts(loader)
    log = None if facts is None else watch.log_of(loader, facts)
    if facts is None or log is None:
        return None
    iteration = Iteration(log, id(loader._index_sampler), facts.workers > 0)
    if facts.workers:
        if SESSION.config.stack_hz and hidden_module() is None:
            import traceml_agent.capture.worker_stacks  # noqa: F401  # once, not in each worker
        try:
            inherited = facts.context == "fork"
            iteration.board = new_board(facts.workers, _started_ns(), inherited=inherited)
            if inherited:
                _INHERITED[get_ident()] = iteration.board
        except OSError as error:
            iteration.status = f"workers not seen: {error}"
    return iteration


def _finish(iterator: Any, iteration: Iteration, watch: LoaderWatch) -> None:
    """After that: who they are."""
    if iteration.board is not None:
        iteration.board.set_pids([worker.pid for worker in iterator._workers])
    fetcher = getattr(iterator, "_dataset_fetcher", None)
    if not iteration.has_workers and fetcher is not None and sys.version_info >= (3, 11):
        iteration.times_collate = True
        fetcher.collate_fn = _timed(fetcher.collate_fn, iteration, _item_code(fetcher))
    watch.add(iterator, iteration)


def _timed(collate: Any, iteration: Iteration, item: CodeType | None) -> Any:
    tracker, key, code = SESSION.tracker, iteration.key, getattr(collate, "__code__", None)

    def call(samples: Any) -> Any:
        begun = clock()
        if get_ident() == tracker.owner:
            tracker.collating = (begun, key, item, code)
        try:
            return collate(samples)
        except BaseException as error:
            hide_frame(error)
            raise
        finally:
            iteration.collate_ns += clock() - begun

    return like(call, collate)


@or_none
def _item_code(fetcher: Any) -> CodeType | None:
    """Of the function of a dataset that makes one item, or the items of a batch."""
    dataset = fetcher.dataset
    for _ in range(_NESTED):
        if type(dataset).__name__ != "Subset":
            break
        dataset = dataset.dataset
    of_batch = getattr(type(dataset), "__getitems__", None)
    found = getattr(of_batch or type(dataset).__getitem__, "__code__", None)
    return found if isinstance(found, CodeType) else None


@or_none
def _facts(loader: Any) -> Facts:
    workers = int(loader.num_workers)
    iterable = type(loader._dataset_kind) is int and loader._dataset_kind == 1
    batch_size = loader.batch_size
    return Facts(
        dataset=str(type(loader.dataset).__qualname__)[:200],
        identity=id(loader.dataset),
        iterable=iterable,
        workers=workers,
        batch_size=batch_size if type(batch_size) is int else None,
        prefetch=loader.prefetch_factor if workers else None,
        persistent=bool(loader.persistent_workers),
        pinned=bool(loader.pin_memory),
        in_order=bool(getattr(loader, "in_order", True)),
        context=_context(loader) if workers else None,
        sampler=type(loader.sampler).__name__,
    )


def _context(loader: Any) -> str:
    """How the workers are started; asked without choosing it for the program."""
    context = loader.multiprocessing_context
    name = None if context is None else context.get_start_method(allow_none=True)
    name = name or multiprocessing.get_start_method(allow_none=True)
    return str(name or multiprocessing.get_all_start_methods()[0])


def _started_ns() -> int:
    """When this process began, on the wall clock."""
    from traceml_agent.capture.opening import process_age_ns

    return time.time_ns() - process_age_ns() + START_SLACK_NS
