"""Folds the spools of a run into its summary: a pure function from files to a payload."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from traceml_agent.errors import NewerSchema, NoRun, TracemlError
from traceml_agent.report.parts import one_line, spool_paths
from traceml_agent.report.payload import payload_of
from traceml_agent.report.render.text import render_text
from traceml_agent.report.view import is_alive, load_run
from traceml_agent.schema.summary import SUMMARY_JSON, SUMMARY_SCHEMA, SUMMARY_TEXT
from traceml_agent.spool.digest import bring_home
from traceml_agent.spool.digested import read_spool
from traceml_agent.spool.format import SPOOL_SUFFIX
from traceml_agent.spool.reader import header_of, version_of

FOLDS_MOST = 3
"""How often a run is folded whose digests grow meanwhile. Chosen: nodes end together, and once."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The content of final_summary.json and of final_summary.txt."""

    payload: dict[str, Any]
    text: str


def fold(run_dir: Path, *, parts: Sequence[Path] = (), own_spool: Path | None = None) -> Summary:
    """The summary of a run, whatever state it is in; of all its `parts`, where they are several.

    Raises NoRun, NoSpools, NewerSchema and, with parts, PartsOfSeveralRuns.
    """
    view = load_run(run_dir, parts=parts, own_spool=own_spool)
    payload = payload_of(view)
    payload["text"] = render_text(payload)
    return Summary(payload, payload["text"])


def fold_and_write(
    run_dir: Path, *, parts: Sequence[Path] = (), own_spool: Path | None = None
) -> Summary:
    """The same, written into the run directory. Raises OSError too."""
    for part in parts or [run_dir]:
        _bring_home(part, own_spool)
    for _ in range(FOLDS_MOST):
        summary = fold(run_dir, parts=parts, own_spool=own_spool)
        data = orjson.dumps(summary.payload, option=orjson.OPT_INDENT_2)
        write_whole(run_dir / SUMMARY_JSON, data)
        write_whole(run_dir / SUMMARY_TEXT, f"{summary.text}\n".encode())
        if not _came_home(parts or [run_dir], summary.payload["traceml_agent"]["spools"]):
            break
    return summary


def _came_home(directories: Sequence[Path], folded: dict[str, int]) -> bool:
    """Whether another node completed its digests meanwhile: its summary may lie below this one."""
    with contextlib.suppress(OSError, TracemlError):
        return any(
            header_of(path).spool_path is not None
            and path.stat().st_size != folded.get(one_line(path.name))
            for path in spool_paths(directories)
        )
    return False


def _bring_home(run_dir: Path, own_spool: Path | None) -> None:
    """Completes the digests of processes of this node that were killed (TRACEML_SPOOL_LOCAL)."""
    for path in run_dir.glob(f"*{SPOOL_SUFFIX}"):
        with contextlib.suppress(OSError, TracemlError):
            if path == own_spool or header_of(path).spool_path is None:
                continue
            spool = read_spool(path)
            if not spool.is_elsewhere and not is_alive(spool):
                bring_home(path)


def read_summary(path: Path) -> dict[str, Any]:
    """The payload of an existing final_summary.json. Raises TracemlError and NewerSchema."""
    try:
        payload: dict[str, Any] = orjson.loads(path.read_bytes())
    except OSError as error:
        raise NoRun(f"cannot read {path}: {error.strerror or error}") from None
    except orjson.JSONDecodeError as error:
        raise TracemlError(f"{path} is not JSON ({error}); is it a final_summary.json?") from None
    own = payload.get("traceml_agent") if isinstance(payload, dict) else None
    if not isinstance(own, dict) or not isinstance(own.get("schema"), str):
        raise TracemlError(f"{path} is no summary of this agent: it has no `traceml_agent.schema`")
    version = version_of(own["schema"], SUMMARY_SCHEMA)
    if version is not None and version > int(SUMMARY_SCHEMA.partition("/")[2]):
        raise NewerSchema(f"{path} has schema {own['schema']}; update traceml-agent to read it")
    if version is None or not isinstance(payload.get("primary_diagnosis"), dict):
        raise TracemlError(f"{path} is no summary of this agent (schema {own['schema'][:80]!r})")
    return payload


def is_folded(run_dir: Path) -> bool:
    """Whether the summary of a run is there, final, and made of all that its spools hold.

    By the content of the spools, never by time stamps: clocks jump, and a time stamp is as coarse
    as 10 ms, in which several ranks leave.
    """
    try:
        payload = read_summary(run_dir / SUMMARY_JSON)
        spools = run_dir.glob(f"*{SPOOL_SUFFIX}")
        found = {one_line(path.name): path.stat().st_size for path in spools}
    except (TracemlError, OSError):
        return False
    folded, context = payload["traceml_agent"].get("spools"), payload.get("run_context")
    ranks = context.get("exit") if isinstance(context, dict) else None
    return (
        isinstance(folded, dict)
        and isinstance(ranks, dict)
        and all(folded.get(name) == size for name, size in found.items())
        and all(isinstance(r, dict) and r.get("status") != "running" for r in ranks.values())
    )


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file (0600) so that a reader finds the old content or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
