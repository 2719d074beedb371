"""Coverage-guided fuzzing of the step tracker and its patches: see docs/reliability.md.

`python tests/fuzz/fuzz_steps.py -max_total_time=300 CORPUS`
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["traceml_agent"]):
    from tests.fuzz import coverage_guided
    from tests.fuzz.programs import decode, encode, mutate, play
    from tests.fuzz.recipes import loop_of, samples


def check(data: bytes) -> None:
    """Any program: steps that add up. The first byte says with what beside it."""
    beside = data[0] if data else 0
    play(decode(data[1:]), with_device=bool(beside & 1), with_audit=bool(beside & 2))


def seeds() -> dict[str, bytes]:
    """Loops that people write."""
    return {name: b"\3" + encode(loop_of(recipe)[0]) for name, recipe in samples().items()}


if __name__ == "__main__":
    coverage_guided.run(
        check,
        seeds,
        lambda data, random_: data[:1] + encode(mutate(decode(data[1:]), random_)),
    )
