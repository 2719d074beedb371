"""Where in an epoch a loop is: real loaders, and the steps that the loop makes."""

import pytest
from torch.utils.data import DataLoader, IterableDataset

from traceml_agent.capture.epochs import Epochs

LOADER = 7  # how the watch of the loaders knows it


def epoch(epochs, loader, every: int = 1, stop: int | None = None, name: int = LOADER):
    """Steps left at each step of an epoch, and whether it ended with the loader."""
    left, iterator = [], iter(loader)
    for number, _ in enumerate(iterator, 1):
        epochs.fetched(iterator, name)
        if number % every == 0:
            epochs.stepped()
            left.append(epochs.loop.steps_left())
        if number == stop:
            return left, False
    return left, epochs.exhausted(iterator)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(5))


@pytest.mark.parametrize(
    ("every", "expected"), [(1, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]), (4, [1, 0]), (2, [4, 3, 2, 1, 0])]
)
def test_the_length_of_a_loader_tells_the_steps_that_are_left(every, expected):
    epochs = Epochs()
    assert epoch(epochs, DataLoader(range(10)), every) == (expected, True)
    assert epochs.ended == 1
    assert epoch(epochs, DataLoader(range(10)), every) == (expected, True)


def test_the_epoch_before_tells_them_where_there_is_no_length():
    epochs = Epochs()
    assert epoch(epochs, DataLoader(Stream())) == ([None] * 5, True)
    assert epoch(epochs, DataLoader(Stream()), name=LOADER + 1) == ([4, 3, 2, 1, 0], True)


def test_an_epoch_that_is_left_ends_when_the_loader_begins_again():
    epochs = Epochs()
    assert epoch(epochs, DataLoader(range(10)), stop=3) == ([9, 8, 7], False)
    assert epochs.ended == 0
    assert epoch(epochs, DataLoader(range(10)), stop=3) == ([2, 1, 0], False)
    assert epochs.ended == 1


def test_a_loader_without_steps_is_no_epoch_and_two_at_once_are_one():
    epochs = Epochs()
    assert epoch(epochs, DataLoader(range(3)), every=9) == ([], False)
    first, second = DataLoader(range(4)), DataLoader(range(4))
    one, two = iter(first), iter(second)
    for _ in zip(one, two, strict=True):
        epochs.fetched(one, 1)
        epochs.fetched(two, 2)
        epochs.stepped()
    assert [epochs.exhausted(one), epochs.exhausted(two)] == [False, True]
    assert epochs.ended == 1


def test_a_watch_that_begins_within_an_epoch_counts_from_there():
    epochs, loader = Epochs(), DataLoader(range(10))
    iterator = iter(loader)
    left = []
    for number, _ in enumerate(iterator, 1):
        if number > 6:
            epochs.fetched(iterator, LOADER)
            epochs.stepped()
            left.append(epochs.loop.steps_left())
    assert left == [3, 2, 1, 0]
    assert epochs.exhausted(iterator)
    assert epoch(epochs, loader)[0][0] == 9
