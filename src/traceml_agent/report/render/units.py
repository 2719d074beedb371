"""Numbers with units, short enough for a table."""


def milliseconds(value: float | None) -> str:
    """`0.042 ms`, `1.23 ms`, `45.6 ms`, `2,345 ms`; `-` for None."""
    if value is None:
        return "-"
    digits = 3 if value < 0.1 else 2 if value < 10 else 1 if value < 1000 else 0
    return f"{value:,.{digits}f} ms"


def seconds(value: float) -> str:
    """`0.42 s`, `12.3 s`, `5 min 10 s`, `3 h 05 min`."""
    if value < 10:
        return f"{value:.2f} s"
    if value < 120:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{int(value // 60)} min {int(value % 60)} s"
    return f"{int(value // 3600)} h {int(value % 3600 // 60):02d} min"


def size(value: float | None) -> str:
    """Bytes in binary units: `412 MiB`, `1.5 GiB`; `-` for None."""
    if value is None:
        return "-"
    for unit in ("B", "KiB", "MiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB" if value < 100 else f"{value:.0f} GiB"


def percent(value: float | None) -> str:
    """`41 %`, `0.4 %`; `-` for None."""
    if value is None:
        return "-"
    return f"{value:.0f} %" if value >= 9.95 or value == 0 else f"{value:.1f} %"


def rate(value: float) -> str:
    """A number with three significant digits or thousands: `0.52`, `55.2`, `12,345`."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
