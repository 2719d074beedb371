"""How many examples a test draws: its own number in CI, one number for all in a long run."""

import os


def examples(in_ci: int) -> int:
    """`in_ci`, or FUZZ_EXAMPLES where that is set."""
    return int(os.environ.get("FUZZ_EXAMPLES", in_ci))
