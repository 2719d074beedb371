"""Settings that stand in `traceml.toml`, or in `[tool.traceml]` of `pyproject.toml`."""

from collections.abc import Collection
from pathlib import Path
from typing import Any


def settings_in_file(
    directory: Path | None, known: Collection[str], problems: list[str]
) -> tuple[dict[str, Any], str]:
    """The settings and the name of the first file that has some; what is wrong is added to
    `problems`."""
    try:
        where = directory or Path.cwd()
    except OSError:  # the working directory was removed
        return {}, ""
    for path, keys in (
        (where / "traceml.toml", ()),
        (where / "pyproject.toml", ("tool", "traceml")),
    ):
        try:
            data = path.read_bytes()
        except OSError:
            continue
        if keys and b"traceml" not in data:
            continue
        table = _toml_table(path, data, keys, problems)
        if table is not None:
            for stranger in sorted(set(table) - set(known)):
                problems.append(f"{path}: no such setting: {stranger}")
            return table, str(path)
    return {}, ""


def _toml_table(
    path: Path, data: bytes, keys: tuple[str, ...], problems: list[str]
) -> dict[str, Any] | None:
    try:
        import tomllib  # type: ignore[import-not-found,unused-ignore]  # Python 3.11
    except ImportError:  # Python 3.10
        problems.append(f"{path}: read on Python 3.11 and later only; use TRACEML_* variables")
        return None
    try:
        table: Any = tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # also numbers too long and lists too deep
        problems.append(f"{path}: not TOML ({error}); not used")
        return None
    for key in keys:
        table = table.get(key) if isinstance(table, dict) else None
    return table if isinstance(table, dict) else None
