"""What `epochs` and `batches` give: the iterable itself, with each item in a scope of its own."""

from collections.abc import Iterator
from typing import Any

from traceml_agent.capture.scopes import Tree
from traceml_agent.capture.stand_in import StandIn


class ScopedIterable(StandIn):
    """May be gone through as often as before."""

    def __init__(self, tree: Tree, name: str, items: Any) -> None:
        super().__init__(items)
        self._self_tree, self._self_name = tree, name

    def __iter__(self) -> Iterator[Any]:
        # The iterator at once, as without the agent: it may draw random numbers.
        return self._self_tree.loop(self._self_name, iter(self.__wrapped__))


class ScopedIterator(StandIn):
    """An iterator. The scope of its last item is closed with it."""

    def __init__(self, tree: Tree, name: str, items: Any) -> None:
        super().__init__(items)
        self._self_items = tree.loop(name, items)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._self_items)


def scoped(tree: Tree, name: str, items: Any) -> Any:
    """The items, each inside a scope of its own."""
    kind = ScopedIterator if hasattr(type(items), "__next__") else ScopedIterable
    return kind(tree, name, items)
