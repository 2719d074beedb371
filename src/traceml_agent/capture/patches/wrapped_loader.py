"""A loader whose batches are timed because the program wrapped it: the phase input_wait."""

from _thread import get_ident
from collections.abc import Iterator
from typing import Any

from traceml_agent.capture.open_step import NONE
from traceml_agent.capture.patches.dataloader import samples_in
from traceml_agent.capture.patches.disguise import hide_frame, like
from traceml_agent.capture.session import SESSION
from traceml_agent.capture.stand_in import StandIn
from traceml_agent.guard import or_none


class WrappedLoader(StandIn):
    """Whatever can be iterated over, as often as it could before."""

    def __iter__(self) -> Iterator[Any]:
        loader = self.__wrapped__
        tracker = SESSION.tracker
        if not _is_timed():
            return WrappedIterator(iter(loader), id(loader), loader)
        tracker.begin_fetch(id(loader))  # workers that are started are waited for too
        try:
            iterator = iter(loader)
        except BaseException as error:
            hide_frame(error)
            raise
        finally:
            tracker.end_fetch_without_batch()
        return WrappedIterator(iterator, id(loader), loader)


class WrappedIterator(StandIn):
    """An iterator."""

    def __init__(self, iterator: Any, key: int, loader: Any) -> None:
        super().__init__(iterator)
        self._self_key = key
        self._self_sizes = _size_source(loader)

    def __iter__(self) -> Iterator[Any]:
        try:
            items = iter(self.__wrapped__)  # which may begin anew
        except BaseException as error:
            hide_frame(error)
            raise
        if items is self.__wrapped__:
            return self
        found = WrappedIterator(items, self._self_key, items)
        found._self_sizes = self._self_sizes
        return found

    def __next__(self) -> Any:
        if not _is_timed():
            return next(self.__wrapped__)
        tracker = SESSION.tracker
        tracker.begin_fetch(self._self_key)
        try:
            batch = next(self.__wrapped__)
        except BaseException as error:
            tracker.end_fetch_without_batch()
            hide_frame(error)
            raise
        sizes = self._self_sizes
        tracker.end_fetch(None if sizes is None else samples_in(batch, sizes))
        return batch


# Warnings of the program's own code name the line that they named before.
for _class in (WrappedLoader, WrappedIterator):
    for _name in ("__iter__", "__next__"):
        if _name in vars(_class):
            like(vars(_class)[_name], vars(_class)[_name])


def wrap_loader(loader: Any) -> Any:
    """The loader or iterator, with its batches timed."""
    SESSION.note_wrapped("dataloader")
    if type(loader) in (WrappedLoader, WrappedIterator):
        return loader
    if callable(getattr(type(loader), "__next__", None)):
        return WrappedIterator(loader, id(loader), loader)
    return WrappedLoader(loader)


def _is_timed() -> bool:
    tracker = SESSION.tracker
    is_free = tracker.phase == NONE and not SESSION.by_hand["dataloader"].shut
    return is_free and get_ident() == tracker.owner


@or_none
def _size_source(loader: Any) -> Any:
    """Where the batch size is found; None for an iterable that does not say it makes batches."""
    if getattr(loader, "_auto_collation", True) and type(loader.batch_size) is int:
        return getattr(loader, "batch_sampler", None) or loader
    return None
