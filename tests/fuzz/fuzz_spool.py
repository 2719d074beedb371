"""Coverage-guided fuzzing of the reader, the fold and the text: see docs/reliability.md.

`python tests/fuzz/fuzz_spool.py -max_total_time=300 CORPUS`
"""

import sys
import tempfile
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["traceml_agent"]):
    from tests.fuzz import coverage_guided
    from tests.fuzz.spools import check_again, check_run, damage, pack, seeds, unpack, write

MEMORY = Path("/dev/shm")
SCRATCH = Path(tempfile.mkdtemp(prefix="traceml-fuzz-", dir=MEMORY if MEMORY.is_dir() else None))
RUN_DIR = SCRATCH / "run"
AGAIN_EVERY = 8
"""Of these inputs, one is folded twice: it costs as much as another input."""


def check(data: bytes) -> None:
    """Any files: only errors made on purpose, and figures that can be true."""
    write(RUN_DIR, unpack(data))
    summary = check_run(RUN_DIR)
    if len(data) % AGAIN_EVERY == 0:
        check_again(RUN_DIR, summary)


if __name__ == "__main__":
    coverage_guided.run(
        check,
        lambda: {name: pack(files) for name, files in seeds(SCRATCH / "seeds").items()},
        lambda data, random_: pack(damage(unpack(data), random_)),
    )
