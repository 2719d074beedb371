"""A scenario: a script with a fault, and the findings that name its cause."""

from dataclasses import dataclass, field

from tests.truth.programs import line_of

SCRIPT = "train.py"
RESIDUAL = ("RESIDUAL_HEAVY", "SLOW_LINE", "HOST_SYNC")
INPUT = ("INPUT_BOUND", "MAIN_PROCESS_LOADING")


@dataclass(frozen=True, slots=True)
class Scenario:
    """A script with a fault, and what has to be found."""

    name: str
    text: str
    kinds: tuple[str, ...]  # empty: nothing is wrong
    has_share: bool = True  # the script measures what the training thread loses
    has_line: bool = True
    has_clean_twin: bool = True  # the same without the fault trains the same
    held_out: bool = False
    toggles: bool = False  # the fault can come and go while the script runs
    variables: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()  # in front of the script: a launcher, taskset
    workers_only: bool = False  # the fault is in loader workers
    files: dict[str, str] = field(default_factory=dict)  # text by name, written beside the script
    gpus: str = ""  # state of the simulated NVML library
    ranks: int = 1  # by torchrun
    is_small: bool = False  # so small that it is named as "info"


def fault_place(scenario: Scenario) -> tuple[str, int] | None:
    """Name of the file and number of the line with the fault; None where no line has one."""
    for name, text in ({SCRIPT: scenario.text} | scenario.files).items():
        line = line_of(text)
        if line is not None:
            return name, line
    return None
