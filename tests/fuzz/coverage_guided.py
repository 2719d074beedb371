"""Starts atheris, libFuzzer for Python, on a property that the hypothesis tests check too."""

import os
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import atheris

INPUT_LIMIT = 1 << 14
DEFAULTS = {"-timeout": "20", "-rss_limit_mb": "3072", "-max_len": str(INPUT_LIMIT)}
"""Seconds and megabytes that one input may take: promises about hanging are checked by them."""

Damage = Callable[[bytes, random.Random], bytes]


def run(
    check: Callable[[bytes], Any], seeds: Callable[[], Mapping[str, bytes]], damage: Damage
) -> None:
    """`python HARNESS.py -runs=N CORPUS`: never returns. An empty corpus gets the seeds."""
    corpora = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    if corpora:
        corpora[0].mkdir(parents=True, exist_ok=True)
        if not any(corpora[0].iterdir()):
            for name, data in seeds().items():
                (corpora[0] / name).write_bytes(data)
    given = {argument.partition("=")[0] for argument in sys.argv[1:]}
    options = [f"{name}={value}" for name, value in DEFAULTS.items() if name not in given]

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        # Bytes at random find new ways through a parser; whole accidents get behind it.
        if seed % 2:
            return atheris.Mutate(data, most)
        return damage(data, random.Random(seed))[:most]

    os.environ["TRACEML_TEST_RAISE"] = "1"
    atheris.Setup([*sys.argv, *options], check, custom_mutator=mutate)
    atheris.Fuzz()
