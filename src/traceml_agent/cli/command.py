"""What a subcommand is. Each file of this package but a few holds one."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand: its word, its sentence for `--help`, its arguments, and what it does."""

    name: str
    sentence: str
    configure: Callable[[argparse.ArgumentParser], None]
    execute: Callable[[argparse.Namespace], int]
