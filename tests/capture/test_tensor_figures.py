"""The figures of a tensor, against torch's own."""

import math

import pytest
import torch

from traceml_agent.capture.tensor_figures import PIECE, figures_of
from traceml_agent.schema.snapshots import BINS, Figures


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("count", [2, PIECE, 3 * PIECE + 17])
def test_they_are_those_of_torch_in_doubles(dtype, count):
    values = (torch.randn(count, generator=torch.Generator().manual_seed(1)) * 3 + 1).to(dtype)
    found, exact = figures_of(torch, values), values.double()
    assert (found.min, found.max) == (exact.min().item(), exact.max().item())
    assert found.mean == pytest.approx(exact.mean().item(), rel=1e-12)
    assert found.std == pytest.approx(exact.std(correction=0).item(), rel=1e-12)
    assert found.l2 == pytest.approx(exact.norm().item(), rel=1e-12)
    expected = torch.histc(exact, BINS).tolist()
    moved = sum(abs(a - b) for a, b in zip(found.histogram, expected, strict=True))
    assert (sum(found.histogram), found.nan, found.inf) == (count, 0, 0)
    assert moved <= count / 1000  # elements at the border of a bin


def test_elements_that_are_not_finite_are_counted_and_left_out():
    values = torch.randn(PIECE + 5)
    exact = values[2:].double()
    values[0], values[1] = math.nan, -math.inf
    found = figures_of(torch, values)
    assert (found.nan, found.inf) == (1, 1)
    assert found.mean == pytest.approx(exact.mean().item(), rel=1e-12)
    assert sum(found.histogram) == PIECE + 3
    nothing = figures_of(torch, torch.full((3,), math.nan))
    assert nothing == Figures(None, None, None, None, None, [0] * BINS, 3, 0)


def test_equal_and_huge_elements_have_figures_too():
    alike = figures_of(torch, torch.full((5,), 0.1))
    assert (alike.std, alike.min, alike.histogram[0]) == (0.0, alike.max, 5)
    # The square of a double may be none.
    huge = figures_of(torch, torch.tensor([1.7e308, -1.7e308], dtype=torch.float64))
    assert (huge.min, huge.max, huge.l2, huge.nan, huge.inf) == (-1.7e308, 1.7e308, None, 0, 0)
    halves = figures_of(torch, torch.full((100,), 60000.0, dtype=torch.float16))
    assert halves.l2 == 600_000.0
