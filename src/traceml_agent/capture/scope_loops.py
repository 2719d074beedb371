"""What `epochs` and `batches` give: the iterable itself, with each item in a scope of its own."""

from collections.abc import Iterator
from typing import Any

from traceml_agent.capture.patches.disguise import hide_frame
from traceml_agent.capture.scopes import Span, Tree
from traceml_agent.capture.stand_in import StandIn


class ScopedIterable(StandIn):
    """May be gone through as often as before."""

    def __init__(self, tree: Tree, name: str, items: Any) -> None:
        super().__init__(items)
        self._self_tree, self._self_name = tree, name

    def __iter__(self) -> Iterator[Any]:
        try:
            items = iter(self.__wrapped__)  # at once, as without the agent: it may draw numbers
        except BaseException as error:
            hide_frame(error)
            raise
        return ScopedIterator(self._self_tree, self._self_name, items)


class ScopedIterator(StandIn):
    """An iterator. The scope of an item is closed when the next one is asked for, or with it."""

    _self_span: Span | None = None

    def __init__(self, tree: Tree, name: str, items: Any) -> None:
        super().__init__(items)
        self._self_tree, self._self_name = tree, name
        self._self_index = 0

    def __iter__(self) -> Iterator[Any]:
        try:
            items = iter(self.__wrapped__)  # which may begin anew
        except BaseException as error:
            hide_frame(error)
            raise
        if items is self.__wrapped__:
            return self
        return ScopedIterator(self._self_tree, self._self_name, items)

    def __next__(self) -> Any:
        self._self_close()
        try:
            item = next(self.__wrapped__)
        except BaseException as error:
            if isinstance(error, StopIteration):
                self._self_index = 0
            hide_frame(error)
            raise
        span = Span(self._self_tree, self._self_name, self._self_index, {})
        self._self_index += 1
        self._self_span = span.__enter__()
        return item

    def __del__(self) -> None:
        self._self_close()

    def _self_close(self) -> None:
        span, self._self_span = self._self_span, None
        if span is not None:
            span.__exit__()


def scoped(tree: Tree, name: str, items: Any) -> Any:
    """The items, each inside a scope of its own; what is only gone through by `async for` as it
    is."""
    kind = type(items)
    if hasattr(kind, "__next__"):
        return ScopedIterator(tree, name, items)
    if hasattr(kind, "__iter__") or hasattr(kind, "__getitem__"):
        return ScopedIterable(tree, name, items)
    return items
