"""The spools of a run: of one directory, or of the parts of nodes that have none in common."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from traceml_agent.errors import NewerSchema, NoRun, NoSpools, PartsOfSeveralRuns
from traceml_agent.report.membership import run_of
from traceml_agent.schema.records import Header
from traceml_agent.spool.compact import compact
from traceml_agent.spool.digested import read_spool
from traceml_agent.spool.format import SPOOL_SUFFIX
from traceml_agent.spool.reader import NotASpool, Spool, last_step

HEADER_LIMIT = 1 << 20
"""Bytes of the first line that are compared. Chosen: a header has some hundred."""
WHOLE_BYTES = 64_000_000
"""Where digests have only sums of older steps, spools are read whole up to this size in all.
Chosen: two million steps, which fold in some seconds."""


def readable_spools(
    directories: Sequence[Path], problems: list[str]
) -> tuple[list[Spool], dict[str, int]]:
    """All spools in the order of their names, as one directory would hold them, and their sizes.

    What cannot be read is added to `problems`. Raises NoRun, NoSpools and NewerSchema.
    """
    for directory in directories:
        if not directory.is_dir():
            raise NoRun(f"{directory} is no run directory; `traceml-agent runs` lists the runs")
    spools: list[Spool] = []
    sizes: dict[str, int] = {}
    newer: NewerSchema | None = None
    for path in spool_paths(directories):
        try:
            size = path.stat().st_size
            sizes[one_line(path.name)] = max(size, sizes.get(one_line(path.name), 0))
            spools.append(compact(read_spool(path)))
            if spools[-1].size > size:  # it grew meanwhile
                sizes[one_line(path.name)] = max(spools[-1].size, sizes[one_line(path.name)])
        except NewerSchema as error:
            newer = error
            problems.append(_relative(str(error), path.parent))
        except (NotASpool, OSError) as error:
            problems.append(_relative(str(error), path.parent))
    if not spools:
        if newer is not None:
            raise newer
        hint = f" ({problems[0]})" if problems else ""
        where = ", ".join(str(directory) for directory in directories)
        raise NoSpools(
            f"no readable spool in {where}{hint}; was TRACEML_ENABLE=1 set for the training?"
        )
    kept = _without_copies(_with_older_steps(spools), problems)
    if len(directories) > 1:
        _refuse_several_runs(kept)
    for spool in kept:
        problems.extend(spool.problems)
    away = [s for s in kept if s.is_elsewhere and s.end is None and not s.is_closed]
    if away:
        header = away[0].header
        problems.append(
            f"{len(away)} process(es) may have left more than their digests say, on their own "
            f"machines (the first: {header.spool_path} on {header.hostname}); `traceml-agent fold` "
            "there brings it into the run once they are gone"
        )
    return kept, sizes


def _with_older_steps(spools: list[Spool]) -> list[Spool]:
    """Spools in place of digests that have only sums of older steps, where that is not too much."""
    summed = [spool for spool in spools if spool.summed_steps and not spool.is_elsewhere]
    if not summed or sum(spool.spool_size for spool in summed) > WHOLE_BYTES:
        return spools
    return [
        _whole(spool) if spool.summed_steps and not spool.is_elsewhere else spool
        for spool in spools
    ]


def _whole(spool: Spool) -> Spool:
    """With the steps of the spool itself, unless it was thinned so far that the digest has more."""
    try:
        found = compact(read_spool(spool.path, whole=True, only_steps=True))
    except (NotASpool, NewerSchema, OSError):  # gone meanwhile
        return spool
    if sum(b.count for b in found.batches) > sum(b.count for b in spool.batches):
        spool.batches, spool.sums = found.batches, found.sums
        spool.device_batches = found.device_batches
        spool.sketch, spool.summed_steps = None, 0
    return spool


def _without_copies(spools: list[Spool], problems: list[str]) -> list[Spool]:
    """One spool a process: of copies the one that holds most, then the one with the first name."""
    best: dict[Header, Spool] = {}
    renamed = 0
    for spool in spools:
        known = best.setdefault(spool.header, spool)
        renamed += known.path.name != spool.path.name
        if _fullness(spool) > _fullness(known):
            best[spool.header] = spool
    if renamed:
        problems.append(f"{renamed} spool(s) are copies of others: each process counts once")
    return list(best.values())


def _fullness(spool: Spool) -> tuple[int, bool, int]:
    return last_step(spool), spool.end is not None, spool.size


def _refuse_several_runs(spools: list[Spool]) -> None:
    """Parts belong to one run. A part that holds some other run too is a finding, as ever."""
    by_part: dict[Path, list[Spool]] = {}
    for spool in spools:
        by_part.setdefault(spool.path.parent, []).append(spool)
    runs = {part: run_of(found, part.name) for part, found in by_part.items()}
    if len(set(runs.values())) > 1:
        named = "; ".join(f"{one_line(str(p))} is of run {one_line(r)}" for p, r in runs.items())
        raise PartsOfSeveralRuns(
            f"these are no parts of one run: {named}. Fold each run by a command of its own"
        )


def spool_paths(directories: Sequence[Path]) -> list[Path]:
    """The spools of all parts, sorted as those of one directory would be."""
    paths = [path for part in directories for path in part.glob(f"*{SPOOL_SUFFIX}")]
    return sorted(paths, key=lambda path: path.name)


def paths_without_copies(directories: Sequence[Path]) -> list[Path]:
    """The same, each process once. Only copies are read; the rest may be large."""
    paths = list(dict.fromkeys(spool_paths(directories)))
    by_header: dict[bytes, list[Path]] = {}
    for path in paths:
        with contextlib.suppress(OSError), path.open("rb") as file:
            by_header.setdefault(file.readline(HEADER_LIMIT), []).append(path)
    dropped: set[Path] = set()
    for copies in by_header.values():
        spools = []
        for path in copies if len(copies) > 1 else ():
            with contextlib.suppress(NotASpool, NewerSchema, OSError):
                spools.append(read_spool(path))
        if len(spools) > 1:
            kept = {spool.path for spool in _without_copies(spools, [])}
            dropped.update(spool.path for spool in spools if spool.path not in kept)
    return [path for path in paths if path not in dropped]


def one_line(text: str) -> str:
    """Text that UTF-8 can hold, in one line: names of files are any bytes."""
    plain = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c.isprintable() else " " for c in plain)


def _relative(text: str, directory: Path) -> str:
    return text.replace(f"{directory}/", "")
