"""Lists runs, and finds the one that a person means by an id, its beginning, a path or a name."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from traceml_agent.errors import NoRun, NoSpools, TracemlError
from traceml_agent.report.fold import fold, fold_and_write, is_folded, read_summary
from traceml_agent.report.parts import one_line
from traceml_agent.schema.records import Header
from traceml_agent.schema.summary import SUMMARY_JSON
from traceml_agent.spool.format import SPOOL_SUFFIX, BadRecord, decode

LATEST = "latest"
_HEADER_LIMIT_BYTES = 1 << 20
_NAMES_SHOWN = 5
LAST_WALL_S = 1e11
"""Later times are damage: no calendar function takes the year 5138."""


@dataclass(frozen=True, slots=True)
class RunEntry:
    """A line of the list of runs. None: not known."""

    run_id: str
    name: str | None
    path: Path
    status: str
    started_wall_s: float | None
    duration_s: float | None
    steps: int | None
    ranks: int | None
    verdict: str | None
    severity: str | None


def list_runs(roots: Sequence[Path]) -> list[RunEntry]:
    """All runs below these directories, newest first. What is no run is passed over."""
    entries = [_entry(run_dir) for run_dir in run_dirs(roots)]
    return sorted(entries, key=lambda entry: (-(entry.started_wall_s or 0.0), entry.run_id))


def run_dirs(roots: Sequence[Path]) -> list[Path]:
    """The run directories in these directories, in no order that means something."""
    found: list[Path] = []
    for root in roots:
        with contextlib.suppress(OSError):
            found.extend(path for path in sorted(root.iterdir()) if is_run_dir(path))
    return found


def is_run_dir(path: Path) -> bool:
    """Whether a directory holds a spool or a summary."""
    if path.name.startswith("."):
        return False
    with contextlib.suppress(OSError):
        return any(
            name.name == SUMMARY_JSON or name.suffix == SPOOL_SUFFIX for name in path.iterdir()
        )
    return False


def find_run(wanted: str | None, roots: Sequence[Path]) -> Path:
    """The run directory, or the summary file, that a person means; None: the latest run.

    In this order: an exact id, a path, the beginning of one id only, a name. Raises NoRun.
    """
    if wanted is None or wanted == LATEST:
        return _latest(roots)
    known = run_dirs(roots)
    for run_dir in known:
        if run_dir.name == wanted:
            return run_dir
    path = Path(wanted).expanduser()
    if path.exists():
        return _at_path(path)
    for matches in (
        [run_dir for run_dir in known if run_dir.name.startswith(wanted)],
        [run_dir for run_dir in known if _name_of(run_dir) == wanted],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise NoRun(f"{wanted!r} fits {len(matches)} runs: {_names(matches)}; name one")
    where = ", ".join(str(root) for root in roots[:1])
    raise NoRun(
        f"no run, file or directory is called {wanted!r} (runs are looked for in {where}; "
        "`traceml-agent runs` lists them)"
    )


def summary_payload(run_dir: Path) -> dict[str, Any]:
    """The summary of a run: the written one where it is up to date, else folded now and written.

    Raises TracemlError and OSError.
    """
    if is_folded(run_dir):
        return read_summary(run_dir / SUMMARY_JSON)
    try:
        return fold_and_write(run_dir).payload
    except OSError:  # a run of somebody else, or on a medium that is read only
        return fold(run_dir).payload


def headers(run_dir: Path) -> Iterator[Header]:
    """The first record of each spool of a run; files that are no spools are passed over."""
    for path in sorted(run_dir.glob(f"*{SPOOL_SUFFIX}")):
        with contextlib.suppress(OSError, BadRecord), path.open("rb") as file:
            record = decode(file.readline(_HEADER_LIMIT_BYTES))
            if isinstance(record, Header):
                yield record


def _latest(roots: Sequence[Path]) -> Path:
    known = run_dirs(roots)
    if not known:
        raise NoRun(
            f"there is no run in {roots[0]}; record one with `TRACEML_ENABLE=1 python train.py`"
        )
    return max(known, key=lambda run_dir: (_started_wall_s(run_dir) or 0.0, run_dir.name))


def _at_path(path: Path) -> Path:
    if path.is_file():
        return path
    if is_run_dir(path):
        return path
    inside = run_dirs([path])
    if inside:
        raise NoRun(f"{path} is no run but holds {len(inside)}: {_names(inside)}; name one")
    raise NoSpools(f"no spool files in {path}; was TRACEML_ENABLE set for the training command?")


def _names(dirs: Sequence[Path]) -> str:
    newest = sorted(dirs, key=lambda run_dir: -(_started_wall_s(run_dir) or 0.0))
    shown = ", ".join(run_dir.name for run_dir in newest[:_NAMES_SHOWN])
    return shown + (", ..." if len(newest) > _NAMES_SHOWN else "")


def _name_of(run_dir: Path) -> str | None:
    return next((header.run_name for header in headers(run_dir)), None)


def _started_wall_s(run_dir: Path) -> float | None:
    """When the first process of a run started; the summary or the files say it without spools."""
    starts_ns = [
        header.wall_ns - (header.monotonic_ns - header.process_start_ns)
        for header in headers(run_dir)
    ]
    if starts_ns and 0 <= min(starts_ns) <= LAST_WALL_S * 1e9:
        return min(starts_ns) / 1e9
    with contextlib.suppress(TracemlError, OSError):
        start = _section(read_summary(run_dir / SUMMARY_JSON), "analysis_window").get("start_ts_s")
        if isinstance(start, (int, float)) and 0 <= start <= LAST_WALL_S:
            return float(start)
    with contextlib.suppress(OSError):
        return run_dir.stat().st_mtime
    return None


def _entry(run_dir: Path) -> RunEntry:
    """What a list says about a run. A run that cannot be read is listed as such."""
    try:
        payload = read_summary(run_dir / SUMMARY_JSON) if is_folded(run_dir) else _folded(run_dir)
    except (TracemlError, OSError):
        return RunEntry(
            run_dir.name,
            _shown(_name_of(run_dir)),
            run_dir,
            "unreadable",
            _started_wall_s(run_dir),
            *(None,) * 5,
        )
    meta = _section(payload, "meta")
    diagnosis = _section(payload, "primary_diagnosis")
    step_time = _section(_section(payload, "step_time"), "metadata")
    return RunEntry(
        run_id=run_dir.name,
        # A summary calls a run without a name by its id.
        name=None if meta.get("run_name") == run_dir.name else _text(meta, "run_name"),
        path=run_dir,
        status=_text(_run_of(payload), "status") or "unknown",
        started_wall_s=_started_wall_s(run_dir),
        duration_s=_number(payload, "duration_s"),
        steps=_number(step_time, "training_total_steps"),
        ranks=_number(meta, "world_size"),
        verdict=_text(diagnosis, "kind"),
        severity=_text(diagnosis, "severity"),
    )


def _folded(run_dir: Path) -> dict[str, Any]:
    return fold(run_dir).payload


def _run_of(payload: dict[str, Any]) -> dict[str, Any]:
    return _section(_section(payload, "run_context"), "run")


def _section(payload: dict[str, Any], name: str) -> dict[str, Any]:
    value = payload.get(name)
    return value if isinstance(value, dict) else {}


def _number(section: dict[str, Any], name: str) -> Any:
    """A number of a summary; None where something else stands: the file may be damaged."""
    value = section.get(name)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _text(section: dict[str, Any], name: str) -> str | None:
    value = section.get(name)
    return _shown(value) if isinstance(value, str) else None


def _shown(text: str | None) -> str | None:
    return None if text is None else one_line(text)
