"""Times `next()` on a DataLoader, in all worker modes: the phase input_wait."""

from _thread import get_ident
from collections.abc import Mapping
from typing import Any

from traceml_agent.capture.loaders import LoaderWatch
from traceml_agent.capture.open_step import CLOSURE, NONE, clock
from traceml_agent.capture.patches.disguise import hide_frame, like
from traceml_agent.capture.patches.running import running_updates
from traceml_agent.capture.session import SESSION
from traceml_agent.guard import INTERNAL, or_none
from traceml_agent.schema.phases import EVAL, INPUT_WAIT, OPTIMIZER

ASKING = (OPTIMIZER, EVAL)
"""Open phases in which a loader may be asked by the loop itself."""
TOKENS_EVERY = 16
"""Batches of which one is looked at for tokens. Chosen: it takes 1 us, and batches are alike."""
LEAST_LENGTH = 8
"""Of a sequence. Chosen: shorter rows of integers are more often columns of a table."""
NESTING_LIMIT = 4
"""Chosen: a batch of pairs of dictionaries of lists is still seen; a cycle ends here."""


def install(torch: Any) -> str:
    """Patches the base of all DataLoader iterators, and the creation of an iterator."""
    module = torch.utils.data.dataloader
    SESSION.loaders = LoaderWatch()
    _patch_next(module._BaseDataLoaderIter, torch.Tensor)
    _patch_get_iterator(module.DataLoader)
    return "active"


def _patch_next(iterator_class: Any, tensor_class: Any) -> None:
    tracker, gate, rest = SESSION.tracker, SESSION.gates["dataloader"], SESSION.rest
    original = iterator_class.__next__
    count_running = running_updates()
    live = SESSION.loaders.live

    def __next__(self: Any) -> Any:
        if rest.is_on and (id(self) == rest.iterator or rest.is_asked(self, live)):
            asked = clock()
            try:
                batch = original(self)
            except BaseException as error:
                rest.wake()
                if type(error) is StopIteration and (ended := live.get(id(self))) is not None:
                    ended.ends.append((ended.epoch, clock()))
                hide_frame(error)
                raise
            try:
                came = clock()
                rest.batches += 1
                rest.waited += came - asked
                iteration = rest.iteration
                if iteration is not None:
                    number = self._rcvd_idx if iteration.has_workers else self._num_yielded
                    iteration.asks.append((iteration.epoch, number - 1, asked, came))
                kind = type(batch)
                if (kind is list or kind is tuple) and type(batch[0]) is tensor_class:
                    size = batch[0].size(0) if self._auto_collation else None
                else:
                    size = samples_in(batch, self._index_sampler) if self._auto_collation else None
                if size != rest.size:
                    rest.came(size)
            except INTERNAL:  # a batch of another shape, an iterator unlike torch's
                rest.came(None)
            return batch
        phase = tracker.phase
        # An open optimizer phase: its closure asks, or its step raised and the loop went on. Any
        # other phase is the real caller.
        if gate.shut or (phase >= 0 and phase not in ASKING) or get_ident() != tracker.owner:
            return original(self)
        sampler = self._index_sampler
        if rest.is_on:
            rest.wake()
        if phase == EVAL:
            # A framework told that it evaluates: the wait is evaluation, and the loader is told by.
            tracker.evaluates(id(sampler))
            asked = clock()
            try:
                batch = original(self)
            except BaseException as error:
                if type(error) is StopIteration and (ended := live.get(id(self))) is not None:
                    ended.ends.append((ended.epoch, clock()))
                hide_frame(error)
                raise
            iteration = live.get(id(self))
            if iteration is not None:
                note_ask(self, iteration, asked, clock(), batch)
            return batch
        if phase == CLOSURE or (phase == OPTIMIZER and count_running()):
            # A closure goes through a loader: that is input of this update, and ends no step.
            tracker.enter(INPUT_WAIT)
            try:
                batch = original(self)
            except BaseException as error:
                tracker.leave(phase)
                hide_frame(error)
                raise
            tracker.leave(phase)
            return batch
        tracker.begin_fetch(id(sampler))
        asked = tracker.since
        try:
            batch = original(self)
        except BaseException as error:
            tracker.end_fetch_without_batch()
            if type(error) is StopIteration and (ended := live.get(id(self))) is not None:
                ended.ends.append((ended.epoch, tracker.since))
            if SESSION.snapshots is not None and isinstance(error, StopIteration):
                SESSION.snapshots.exhausted(self)
            hide_frame(error)
            raise
        tracker.end_fetch(samples_in(batch, sampler) if self._auto_collation else None)
        iteration = live.get(id(self))
        if iteration is not None:
            note_ask(self, iteration, asked, tracker.since, batch)
        if SESSION.snapshots is not None:
            SESSION.snapshots.fetched(self, iteration)
        return batch

    iterator_class.__next__ = like(__next__, original)


def _patch_get_iterator(loader_class: Any) -> None:
    """Starting the workers is waiting for input too."""
    tracker, gate, rest = SESSION.tracker, SESSION.gates["dataloader"], SESSION.rest
    original = loader_class._get_iterator

    def _get_iterator(self: Any) -> Any:
        if gate.shut or tracker.phase != NONE or get_ident() != tracker.owner:
            return original(self)
        rest.wake()
        tracker.begin_fetch(id(self._index_sampler))
        try:
            return original(self)
        except BaseException as error:
            hide_frame(error)
            raise
        finally:
            tracker.end_fetch_without_batch()

    loader_class._get_iterator = like(_get_iterator, original)


@or_none
def samples_in(batch: Any, sampler: Any) -> int | None:
    """Number of samples in a collated batch, None if its shape does not tell.

    The leading dimension of the first tensor; where tensors are nested deeper (tuples of inputs,
    lists of images) only if it agrees with the batch size of the sampler.
    """
    item = batch
    for depth in range(NESTING_LIMIT):
        if isinstance(item, (list, tuple)):
            if depth == 1 and len(item) == sampler.batch_size:
                return len(item)
            item = item[0]
        elif (shape := getattr(item, "shape", None)) is not None:
            leading = int(shape[0])
            return leading if depth <= 1 or leading == sampler.batch_size else None
        elif isinstance(item, Mapping):
            item = next(iter(item.values()))
        else:
            return None
    return None


@or_none  # an iterator of another shape than torch's keeps to itself
def note_ask(iterator: Any, iteration: Any, asked: int, came: int, batch: Any) -> None:
    """Keeps when a batch was asked for and came, for the agent's thread."""
    number = iterator._rcvd_idx if iteration.has_workers else iterator._num_yielded
    iteration.asks.append((iteration.epoch, number - 1, asked, came))
    if number % TOKENS_EVERY == 1:
        iteration.tokens.append(tokens_in(batch))


@or_none
def tokens_in(batch: Any) -> int | None:
    """Number of integers in the first tensor of a batch if it holds sequences of them (batch x
    length), padding included; None where it does not."""
    item = batch
    for _ in range(NESTING_LIMIT):
        if isinstance(item, (list, tuple)):
            item = item[0]
        elif (shape := getattr(item, "shape", None)) is not None:
            is_integer = str(item.dtype) in ("torch.int64", "torch.int32")
            is_sequence = is_integer and len(shape) == 2 and int(shape[1]) >= LEAST_LENGTH
            return int(shape[0]) * int(shape[1]) if is_sequence else None
        elif isinstance(item, Mapping):
            item = item["input_ids"] if "input_ids" in item else next(iter(item.values()))
        else:
            return None
    return None
