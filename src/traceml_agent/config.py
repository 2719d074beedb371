"""Every setting of the agent: one frozen dataclass, read once.

Order: a `TRACEML_*` variable, then an argument of `init`, then `traceml.toml` or `[tool.traceml]`
of `pyproject.toml` in the working directory, then the default. A value that cannot be used is
reported and the next source counts, so that a typing error never stops a training.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

from traceml_agent.settings_file import settings_in_file

PREFIX = "TRACEML_"
SWITCHES = {
    "TRACEML_ENABLE": "Turns recording on: 1, true, yes, on; `force` also under `python -I` and "
    "`-E`. 0, false, no, off or nothing: off.",
    "TRACEML_DISABLE": "Turns recording off whatever TRACEML_ENABLE says: 1, true, yes, on.",
    "TRACEML_DISABLED": "The same as TRACEML_DISABLE.",
}
"""Read by the boot module before any setting is; they cannot stand in a file."""

INIT = "init()"
"""The origin of a value that the program gave."""

TRUE_WORDS = ("1", "true", "yes", "on")
FALSE_WORDS = ("0", "false", "no", "off")
RUN_ID_LIMIT = 128
RUN_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def setting(default: Any, parse: Callable[[Any], Any], accepts: str, sentence: str) -> Any:
    """A field of Config: its default, its parser, and the words for documentation and errors."""
    return field(
        default=default, metadata={"parse": parse, "accepts": accepts, "sentence": sentence}
    )


def _number(low: float, high: float, kind: type[int] | type[float]) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError
        number = kind(value)
        if not low <= number <= high:
            raise ValueError
        return number

    return parse


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word not in TRUE_WORDS + FALSE_WORDS:
        raise ValueError
    return word in TRUE_WORDS


def _one_of(*words: str) -> Callable[[Any], Any]:
    def parse(value: Any) -> str:
        word = str(value).strip().lower()
        if word not in words:
            raise ValueError
        return word

    return parse


def _directory(value: Any) -> Path:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError
    try:
        return Path(value).expanduser().absolute()
    except (RuntimeError, OSError):  # no such user, or the working directory was removed
        raise ValueError from None


def _name(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= RUN_ID_LIMIT or not value.isprintable():
        raise ValueError
    return value


def _run_id(value: Any) -> str:
    name = _name(value)
    if not set(name) <= RUN_ID_CHARACTERS or name[0] in ".-":
        raise ValueError
    return name


def _words(value: Any) -> tuple[str, ...]:
    words = value.split(",") if isinstance(value, str) else list(value)
    if not all(isinstance(word, str) for word in words):
        raise ValueError
    names = tuple(word.strip() for word in words if word.strip())
    if not all(set(name) <= RUN_ID_CHARACTERS for name in names):
        raise ValueError
    return names


def _outputs(value: Any) -> tuple[str, ...]:
    words = _words(value)
    if not words or not (words == ("none",) or set(words) <= {"spool", "log", "stdout"}):
        raise ValueError
    return words


@dataclass(frozen=True, slots=True)
class Config:
    """The resolved settings. The variable of a field is TRACEML_ and its name in capitals."""

    dir: Path | None = setting(  # noqa: RUF009  # `setting` is `field`
        None,
        _directory,
        "a directory",
        "Where runs are kept, one directory a run. Default: the state directory of the user "
        "(on Linux ~/.local/state/traceml-agent/runs).",
    )
    run_id: str | None = setting(
        None,
        _run_id,
        f"1 to {RUN_ID_LIMIT} letters, digits, '.', '_', '-', not starting with '.' or '-'",
        "Identity of the run and name of its directory. Default: the Slurm job, the torchelastic "
        "run, or a new one from time and process.",
    )
    run_name: str | None = setting(
        None,
        _name,
        f"1 to {RUN_ID_LIMIT} printable characters",
        "A name for people, shown in the summary.",
    )
    summary: bool = setting(
        True,
        _flag,
        "1 or 0",
        "Print the summary on stderr at the end. The files are written in any case.",
    )
    sample_interval_s: float = setting(
        1.0,
        _number(0.05, 3600, float),
        "seconds from 0.05 to 3600",
        "Time between two samples of process, host and GPUs.",
    )
    flush_interval_s: float = setting(
        0.5,
        _number(0.05, 60, float),
        "seconds from 0.05 to 60",
        "Time between two writes of closed steps to the spool. A killed process loses no closed "
        "step in any case: they lie in a memory-mapped ring until then.",
    )
    spool_local: bool = setting(
        False,
        _flag,
        "1 or 0",
        "Keep the spool on the node, in the directory for temporary files, and only its digest in "
        "the run directory: for jobs of many nodes on one parallel file system.",
    )
    digest_interval_s: float = setting(
        30.0,
        _number(1, 30, float),
        "seconds from 1 to 30",
        "Time between two parts of the digest, which the fold of a job reads instead of spools.",
    )
    spool_max_mb: float = setting(
        256.0,
        _number(0.1, 1_000_000, float),
        "megabytes from 0.1 to 1000000",
        "Size cap of one spool. Beyond it old steps are thinned to exact sums, and the summary "
        "says so.",
    )
    max_overhead: float = setting(
        1.0,
        _number(0, 100, float),
        "percent from 0 to 100",
        "A patch that costs more than this share of a step passes through from then on, and the "
        "summary says so. Measured over 50 steps, now and then, for steps of 1 ms and longer; less "
        "than 150 us is never too much. Where all patches together cost half of this of steps "
        "shorter than 5 ms, most steps are only counted and timed; the phases of a sample stand "
        "for all. 0: no limit.",
    )
    hang_s: float = setting(
        60.0,
        _number(0, 86_400, float),
        "seconds from 0 to 86400",
        "A training that closes no step for so long, and for 10 times its median step, is looked "
        "at once: where each thread of Python stands is written down. So is one of several ranks "
        "whose first step does not come. Nothing is done to it. "
        "0: never.",
    )
    cost_per_hour: float | None = setting(
        None,
        _number(0, 1_000_000, float),
        "a number from 0 to 1000000",
        "Price of one rank for an hour (of its GPU, or of its machine), in any currency: the "
        "summary then also says in money what fixing a finding would save.",
    )
    stack_hz: float = setting(
        20.0,
        _number(0, 200, float),
        "times a second, from 0 to 200",
        "How often is looked in which line of the program the training thread stands. It is less "
        "where that would take more than 0.5 % of a core. 0: never.",
    )
    exact_lines: bool = setting(
        False,
        _flag,
        "1 or 0",
        "Sample lines of plain Python of less than 5 ms where they run: the interpreter's switch "
        "interval is 0.5 ms meanwhile, so that threads of the program take turns more often too.",
    )
    flops: bool = setting(
        False,
        _flag,
        "1 or 0",
        "Count the floating-point operations of step 21 (it takes about twice as long), for FLOP/s "
        "and, on GPUs with a known peak, the model FLOPs utilisation.",
    )
    retained: bool = setting(
        False,
        _flag,
        "1 or 0",
        "Name the lines that make tensors which outlive their steps: Python's tracemalloc runs for "
        "some 40 steps every two minutes, which are slower meanwhile.",
    )
    snapshots: str = setting(
        "watched",
        _one_of("watched", "stats", "off"),
        "watched, stats or off",
        "Figures of weights and gradients, a tensor and an epoch: of the models that the program "
        "gives to `watch`, of all that optimizers update (stats), or of none (off).",
    )
    trace_max_spans: int = setting(
        100_000,
        _number(1, 10_000_000, int),
        "a whole number from 1 to 10000000",
        "How many closed scopes of the program are kept in memory, some 400 bytes each; the oldest "
        "ones are lost.",
    )
    output: tuple[str, ...] = setting(
        ("spool",),
        _outputs,
        "spool, log, stdout with commas between them, or none",
        "Where recording goes: the spool of the run; a line a closed scope to the logger `traceml` "
        "or to stdout; or nowhere, for `trace()` alone. A wrong one turns the agent off.",
    )
    skip: tuple[str, ...] = setting(
        (),
        _words,
        "names with commas between them",
        "Patches and samplers to leave out: dataloader, transfer, forward, backward, optimizer, "
        "checkpoint, collectives, compile, logging, process_group, loader_workers, ray_train, "
        "threads, process, host, gpu, stacks, gc, sched, ring, faulthandler, exit.",
    )
    test_raise: bool = setting(
        False, _flag, "1 or 0", "For tests of the agent itself: let its internal errors through."
    )

    @property
    def runs_dir(self) -> Path:
        """The directory that holds one directory a run."""
        return self.dir or platformdirs.user_state_path("traceml-agent") / "runs"


@dataclass(frozen=True, slots=True)
class Resolved:
    """A Config, where each value came from, and what was wrong with the sources."""

    config: Config
    origins: dict[str, str]  # field -> "default", "TRACEML_DIR", "/path/pyproject.toml"
    problems: tuple[str, ...]
    refusal: str | None = None  # why nothing may be recorded at all


def resolve(
    environ: Mapping[str, str],
    directory: Path | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Resolved:
    """Reads the environment and the settings file of `directory` (the working one by default).

    `arguments` are those of `init`, parsed; they count where no variable does.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    refusal: str | None = None
    asked = arguments or {}
    names = {item.name for item in dataclasses.fields(Config)}
    file_values, file_name = settings_in_file(directory, names, problems)
    for item in dataclasses.fields(Config):
        name, variable = item.name, PREFIX + item.name.upper()
        sources = [(variable, environ.get(variable)), (file_name, file_values.get(name))]
        if name in asked:
            sources.insert(1, (INIT, asked[name]))
        origins[name] = "default"
        for origin, raw in sources:
            if raw is None or raw == "":
                continue
            if origin == INIT:
                values[name], origins[name] = raw, origin
                break
            try:
                values[name] = item.metadata["parse"](raw)
            except (ValueError, TypeError, OverflowError):
                from traceml_agent.redact import redact  # its patterns cost 15 ms

                shown = redact(repr(raw))
                shown = shown if len(shown) <= 60 else shown[:57] + "..."
                where = variable if origin == variable else f"{name} in {origin}"
                problems.append(f"{where}={shown} is not {item.metadata['accepts']}; not used")
                if name == "output":  # whoever says where data goes must not be misunderstood
                    refusal = f"{_one_line(problems.pop())[:-10]}; nothing is recorded"
                continue
            origins[name] = origin
            break
    problems.extend(_unknown_variables(environ))
    return Resolved(Config(**values), origins, tuple(map(_one_line, problems)), refusal)


def _one_line(problem: str) -> str:
    """A problem as it can be printed: names of variables and files hold any bytes."""
    return "".join(c if c.isprintable() else "?" for c in problem)


def to_env(config: Config) -> dict[str, str]:
    """The variables that give a child process this Config; defaults are left out."""
    variables = {}
    for item in dataclasses.fields(Config):
        value = getattr(config, item.name)
        if value == item.default:
            continue
        if isinstance(value, bool):
            text = "1" if value else "0"
        else:
            text = ",".join(value) if isinstance(value, tuple) else str(value)
        variables[PREFIX + item.name.upper()] = text
    return variables


def _unknown_variables(environ: Mapping[str, str]) -> list[str]:
    known = {PREFIX + item.name.upper() for item in dataclasses.fields(Config)} | set(SWITCHES)
    strangers = sorted(n for n in environ if n.startswith(PREFIX) and n not in known)
    if not strangers:
        return []
    return [f"{', '.join(strangers)}: no such setting; `traceml-agent config` lists them"]
