"""A quantile sketch: counts of values in buckets that grow by 2 %. Sketches add up exactly.

Source: Masson, Rim and Lee 2019, "DDSketch: a fast and fully-mergeable quantile sketch with
relative-error guarantees", with a ratio of 1.02 for an error of 1 %.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping

RATIO = 1.02
_SCALE = 1 / math.log(RATIO)


def bucket_of(value: int) -> int:
    """The bucket of a value of at least 0: (RATIO^(i-1), RATIO^i], and 0 for 0 and 1."""
    return math.ceil(math.log(value) * _SCALE) if value > 1 else 0


def counted(values: Iterable[int]) -> dict[str, int]:
    """The values by bucket."""
    return {str(bucket): count for bucket, count in Counter(map(bucket_of, values)).items()}


def added(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    """Two sketches as one."""
    return {name: first.get(name, 0) + second.get(name, 0) for name in {**first, **second}}


def quantile_of(buckets: Mapping[str, int], q: float) -> float | None:
    """The value below which a share `q` of the values lies, within 1 %; None without values."""
    ordered = sorted((int(name), count) for name, count in buckets.items())
    wanted = q * (sum(count for _, count in ordered) - 1)
    seen = 0
    for bucket, count in ordered:
        seen += count
        if seen > wanted:
            # The middle of a bucket in the sense of the relative error.
            return 2 * RATIO**bucket / (1 + RATIO) if bucket else 0.0
    return None
