"""Mean, deviation, extremes, norm, histogram and non-finite elements of a tensor in main memory.

In pieces that torch works off in the calling thread alone: a second thread of OpenMP's would take
the cores from the training. `torch.histc` and `torch.dot` share any work out, so neither is used.
"""

import math
from collections.abc import Iterator
from typing import Any

from traceml_agent.schema.snapshots import BINS, Figures

PIECE = 32_704
"""Elements at a time. Source: at::internal::GRAIN_SIZE is 32,768, from which on torch shares the
work out; a piece in doubles lies in the cache."""


def figures_of(torch: Any, values: Any) -> Figures:
    """The figures of a flat tensor of floating-point numbers in main memory.

    Computed in float64, about the finite elements. Takes no random number and no gradient.
    """
    nan = inf = count = 0
    total, least, most = 0.0, math.inf, -math.inf
    for piece, lost in _pieces(torch, values):
        if lost is not None:
            nan, inf = nan + lost[0], inf + lost[1]
        if piece.numel():
            low, high = torch.aminmax(piece)
            least, most = min(least, low.item()), max(most, high.item())
            total += piece.sum().item()
            count += piece.numel()
    if not count:
        return Figures(None, None, None, None, None, [0] * BINS, nan, inf)
    mean = min(max(total / count, least), most)
    squares, histogram = 0.0, [0] * BINS
    scale = BINS / (most - least) if most > least else math.inf
    for piece, _ in _pieces(torch, values):
        if math.isfinite(scale) and piece.numel():
            places = (piece - least).mul_(scale).clamp_(max=BINS - 1).to(torch.uint8)
            for place, found in enumerate(torch.bincount(places, minlength=BINS).tolist()):
                histogram[place] += found
        else:
            histogram[0] += piece.numel()
        squares += (piece - mean).square_().sum().item()
    return Figures(
        mean=_finite(mean),
        std=_finite(math.sqrt(squares / count)),
        min=least,
        max=most,
        l2=_finite(math.sqrt(squares + count * mean * mean)),
        histogram=histogram,
        nan=nan,
        inf=inf,
    )


def _pieces(torch: Any, values: Any) -> Iterator[tuple[Any, tuple[int, int] | None]]:
    """The finite elements in doubles, and how many NaN and Inf were among a piece, if any."""
    for start in range(0, values.numel(), PIECE):
        piece = values[start : start + PIECE].to(torch.float64)
        # One sum tells: doubles hold the sum of any numbers of a smaller type.
        if math.isfinite(piece.sum().item()):
            yield piece, None
            continue
        kept = piece[torch.isfinite(piece)]
        nan = int(torch.isnan(piece).sum().item())
        yield kept, (nan, piece.numel() - kept.numel() - nan)


def _finite(value: float) -> float | None:
    """None for what no JSON holds: squares of the largest doubles."""
    return value if math.isfinite(value) else None
