"""Writes a run as Parquet files: `DIR/<table>/run=<run id>/part-00000.parquet`.

Ranks share files: 8,192 files of 500 rows would be slower to open than to read. The rows of a rank
lie together, so that a query for one rank reads its row groups alone.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from traceml_agent.errors import TracemlError
from traceml_agent.report.export import TABLES, Rows, finding_rows, rows_of, spools_of
from traceml_agent.spool.reader import Spool

ROWS_A_GROUP = 1 << 17
"""Chosen: near the 122,880 rows that DuckDB writes, and what is held in memory: about 50 MB."""
ROWS_A_FILE = 1 << 22
"""Chosen: 100 to 200 MB of steps, the size that Spark reads in one task."""
LONGEST_NAME = 160
"""Of the directory of a run, in bytes: file systems allow 255."""


class MissingExtra(TracemlError):
    """A library that only this command needs is not installed."""


class ExportError(TracemlError):
    """The data set cannot be written there."""


def export(
    parts: Sequence[Path],
    directory: Path,
    payload_of: Callable[[Sequence[Path]], dict[str, Any]],
    *,
    replace: bool,
    problems: list[str],
) -> dict[Path, int]:
    """Adds a run to the data set in `directory`; returns the new directories with their rows.

    `parts`: the directory of the run, or those that its nodes left.

    The run appears as a whole at the end, or not at all. A run that is there already is replaced
    or refused. Raises TracemlError and OSError.
    """
    _pyarrow()
    spools = spools_of(parts, problems)
    first = next(spools)
    run_id = first.header.run_id
    targets = {table: directory / table / f"run={partition(run_id)}" for table in TABLES}
    there = [target for target in targets.values() if target.exists()]
    if there and not replace:
        raise ExportError(f"{there[0]} is there already; `--replace` writes the run anew")
    payload = payload_of(parts)  # parts of several runs are refused here
    directory.mkdir(parents=True, exist_ok=True)
    aside = directory / f".export-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        tables = {table: _Table(table, aside / "new" / table) for table in TABLES}
        spool: Spool | None = first
        del first
        while spool is not None:
            for rows in rows_of(spool):
                tables[rows.table].add(rows)
            del spool, rows  # before the next one is read
            spool = next(spools, None)
        tables["findings"].add(finding_rows(payload, run_id))
        for table in tables.values():
            table.close()
        _publish(targets, aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return {target: tables[name].total for name, target in targets.items()}


def partition(run_id: str) -> str:
    """A run id as the value of a partition: as Hive writes it, and never longer than a name."""
    value = quote(run_id, safe="")
    if len(value) > LONGEST_NAME:
        mark = hashlib.sha256(run_id.encode("utf-8", "replace")).hexdigest()[:16]
        value = f"{quote(run_id[: LONGEST_NAME // 12], safe='')}-{mark}"
    return value


def _publish(targets: Mapping[str, Path], aside: Path) -> None:
    """Moves the tables to their place; what lies there goes away with `aside`."""
    (aside / "old").mkdir()
    for table, target in targets.items():
        new = aside / "new" / table
        for path in new.iterdir():  # until now no pattern of `*.parquet` found them
            path.rename(path.with_suffix(""))
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            target.rename(aside / "old" / table)
        new.rename(target)


class _Table:
    """The files of one table while they are written."""

    def __init__(self, name: str, directory: Path) -> None:
        self.total = 0
        self._directory = directory
        self._schema = _schema(TABLES[name])
        self._waiting: list[Any] = []
        self._waiting_rows = 0
        self._writer: Any = None
        self._file_rows = 0
        self._files = 0
        directory.mkdir(parents=True)

    def add(self, rows: Rows) -> None:
        """Takes rows; writes when there are enough for a row group."""
        import pyarrow as pa

        arrays = []
        for column in self._schema:
            if column.name in rows.constants:
                value = pa.scalar(rows.constants[column.name], type=column.type)
                arrays.append(pa.repeat(value, rows.count))
            elif column.name in rows.columns:
                arrays.append(pa.array(rows.columns[column.name], type=column.type))
            else:
                arrays.append(pa.nulls(rows.count, type=column.type))
        self._waiting.append(pa.Table.from_arrays(arrays, schema=self._schema))
        self._waiting_rows += rows.count
        self.total += rows.count
        if self._waiting_rows >= ROWS_A_GROUP:
            self._write()

    def close(self) -> None:
        """Writes the rest. A table without rows has one file that says its columns."""
        if self._waiting or not self._files:
            self._write()
        if self._writer is not None:
            self._writer.close()

    def _write(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._writer is None:
            path = self._directory / f"part-{self._files:05d}.parquet.new"
            self._writer = pq.ParquetWriter(path, self._schema, compression="zstd")
            self._files += 1
            self._file_rows = 0
        found = pa.concat_tables(self._waiting) if self._waiting else self._schema.empty_table()
        self._writer.write_table(found, row_group_size=ROWS_A_GROUP)
        self._file_rows += self._waiting_rows
        self._waiting, self._waiting_rows = [], 0
        if self._file_rows >= ROWS_A_FILE:
            self._writer.close()
            self._writer = None


def _schema(columns: Mapping[str, str]) -> Any:
    import pyarrow as pa

    types = {
        "int": pa.int64(),
        "float": pa.float64(),
        "text": pa.string(),
        "json": pa.string(),
        "flag": pa.bool_(),
        "ints": pa.list_(pa.int64()),
        "texts": pa.list_(pa.string()),
    }
    return pa.schema([(name, types[type_name]) for name, type_name in columns.items()])


def _pyarrow() -> None:
    try:
        import pyarrow.parquet  # noqa: F401  # asked before anything is read
    except ImportError as error:
        raise MissingExtra(
            f"Parquet needs pyarrow ({error}): pip install 'traceml-agent[export]'"
        ) from None
