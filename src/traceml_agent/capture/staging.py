"""Buffers into which the training thread copies tensors, for another thread to read.

Main memory is copied by `memmove`, past torch: no operation shows in a mode or profiler of the
program, and nothing is shared out among threads. From a CUDA device the copy is queued on the
stream of the training into pinned memory, and an event tells the other thread when it is there;
nobody waits for the device in the training thread.
"""

import ctypes
from collections import deque
from typing import Any

from traceml_agent.capture.snapshot_targets import ALIGNED, BLOCKS

BUFFERS = 3
"""Chosen: one that is filled while another is read; and an epoch may end at any step."""

# Not `ctypes.memmove`, which lets the interpreter lock go: on a busy machine each of a hundred
# calls would wait for another thread to give it back, 5 ms and more.
_copy_bytes = ctypes.PyDLL(None).memmove
_copy_bytes.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_copy_bytes.restype = ctypes.c_void_p


class Buffer:
    """Some bytes of main memory."""

    __slots__ = ("_bytes", "_pinned", "address", "size")

    def __init__(self, torch: Any, size: int, is_pinned: bool) -> None:
        self.size = size
        self._pinned: Any = None
        if is_pinned:
            self._pinned = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True)
            self.address = self._pinned.data_ptr()
        else:
            self._bytes = bytearray(size)  # its pages come when they are written
            self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._bytes))

    def tensor(self, torch: Any, offset: int, count: int, dtype: Any) -> Any:
        """Some elements of it, flat."""
        if self._pinned is None:
            return torch.frombuffer(self._bytes, dtype=dtype, count=count, offset=offset)
        return self._pinned[offset : offset + count * dtype.itemsize].view(dtype)


class Staging:
    """The buffers of a process, all of one size."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._free: deque[Buffer] = deque()
        self._made = 0
        self._size = 0
        self._is_pinned = False

    def fit(self, size: int, is_pinned: bool) -> None:
        """From now on, buffers of at least that size; pinned ones are made by `make`."""
        if size > self._size or is_pinned > self._is_pinned:
            self._size, self._is_pinned = max(size, self._size), is_pinned or self._is_pinned
            self._free.clear()
            self._made = 0

    def take(self) -> Buffer | None:
        """A free buffer; None if there is none now."""
        if self._free:
            return self._free.popleft()
        if self._is_pinned or self._made >= BUFFERS:
            return None
        self._made += 1
        return Buffer(self._torch, self._size, is_pinned=False)

    def give_back(self, buffer: Buffer) -> None:
        """What was in it has been read."""
        if buffer.size == self._size:
            self._free.append(buffer)

    def make(self) -> None:
        """Makes the pinned buffers that are missing: the driver takes milliseconds for each."""
        while self._is_pinned and self._made < BUFFERS:
            self._made += 1
            self._free.append(Buffer(self._torch, self._size, is_pinned=True))


class Parcel:
    """A buffer that is being filled, and how much of it is."""

    __slots__ = ("buffer", "devices", "events", "filled")

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer
        self.filled = 0
        self.devices: set[Any] = set()
        self.events: list[Any] = []

    def add(self, torch: Any, tensor: Any, looked: int) -> int:
        """Copies a dense tensor, or BLOCKS evenly spread blocks of it; returns where it lies."""
        offset, elements, size = self.filled, tensor.numel(), tensor.element_size()
        block = looked if looked == elements else looked // BLOCKS
        count = looked // block
        apart = 0 if count == 1 else (elements - block) // (count - 1)
        if tensor.device.type == "cpu":
            source, goal = tensor.data_ptr(), self.buffer.address + offset
            for number in range(count):
                begin = source + number * apart * size
                _copy_bytes(goal + number * block * size, begin, block * size)
        else:
            goal = self.buffer.tensor(torch, offset, looked, tensor.dtype)
            flat = torch.as_strided(tensor.detach(), (elements,), (1,), tensor.storage_offset())
            for number in range(count):
                begin = number * apart
                part = goal[number * block : (number + 1) * block]
                part.copy_(flat[begin : begin + block], non_blocking=True)
            self.devices.add(tensor.device)
        self.filled = -(-(offset + looked * size) // ALIGNED) * ALIGNED
        return offset

    def close(self, torch: Any) -> None:
        """Everything is queued: notes how to see that it is there."""
        for device in self.devices:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(device))
            self.events.append(event)

    def has_come(self) -> bool:
        """Whether the copies are done."""
        return all(event.query() for event in self.events)
