"""Segment: what was measured between two possible step boundaries."""


class Segment:
    """A stretch of the training loop. Plain slots: it is written on the hot path.

    A step is one segment, or several joined: each update may have been the last of its step, and
    only what follows tells.
    """

    __slots__ = (
        "acc",
        "backwards",
        "batches",
        "d2h_ns",
        "forwards",
        "in_update",
        "keys",
        "loader",
        "samples",
        "start",
        "updates",
    )

    def __init__(self, start: int) -> None:
        self.start = start  # 0: not begun
        self.acc = [0, 0, 0, 0, 0, 0, 0, 0, 0]  # nanoseconds, in the order of PHASES
        self.d2h_ns = 0
        self.batches = 0  # of the loader that was asked first
        self.loader = 0  # key of that loader
        self.samples: int | None = 0  # None: a batch whose size cannot be seen
        self.backwards = 0
        self.forwards = 0
        self.in_update = False  # a backward pass ran inside an optimizer's step
        self.updates = 0
        self.keys: list[int] = []  # loaders asked in this segment

    def join(self, other: "Segment") -> None:
        """Adds a later segment of the same step."""
        acc = self.acc
        for phase, elapsed in enumerate(other.acc):
            acc[phase] += elapsed
        self.d2h_ns += other.d2h_ns
        self.backwards += other.backwards
        self.forwards += other.forwards
        self.updates += other.updates
        self.in_update = self.in_update or other.in_update
        if other.batches and self.loader in (0, other.loader):
            self.loader = other.loader
            self.batches += other.batches
            if self.samples is None or other.samples is None:
                self.samples = None
            else:
                self.samples += other.samples

    def count_batch(self, loader: int, samples: int | None) -> None:
        """Counts a batch that training used; batches of further loaders ride along uncounted."""
        if self.loader == 0:
            self.loader = loader
        if self.loader == loader:
            self.batches += 1
            if samples is None or self.samples is None:
                self.samples = None
            else:
                self.samples += samples
