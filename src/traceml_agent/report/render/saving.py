"""What fixing a finding would save, in a sentence: a step, the run, money, energy."""

from typing import Any

from traceml_agent.report.render.units import milliseconds, seconds


def saving_text(saving: dict[str, Any]) -> str:
    """`without the wait for input 38.1 ms -> 2.31-2.48 ms a step (-93 to -94 %), the steps of this
    run 7.50 s -> 0.46-0.49 s`."""
    now, low, high = saving["step_ms"], saving["step_low_ms"], saving["step_high_ms"]
    parts = [f"{milliseconds(now)} -> {_between(low, high, milliseconds)} a step"]
    if now:
        parts[0] += f" ({_percents(100 * (high / now - 1), 100 * (low / now - 1))})"
    if saving["run_s"] is not None:
        runs = _between(saving["run_low_s"], saving["run_high_s"], seconds)
        parts.append(f"the steps of this run {seconds(saving['run_s'])} -> {runs}")
    if saving.get("money_high") is not None:
        parts.append(f"{_between(saving['money_low'], saving['money_high'], _money)} less to pay")
    if saving.get("kwh_high") is not None:
        parts.append(f"{saving['kwh_low']:.3g} to {saving['kwh_high']:.3g} kWh less")
    return f"without {saving['without']} {', '.join(parts)}"


def _between(low: float, high: float, words: Any) -> str:
    """Both bounds, or one where they read the same; the unit once where it is the same."""
    first, last = words(low), words(high)
    if first == last:
        return str(first)
    number, _, unit = str(first).rpartition(" ")
    if not number:
        return f"{first} to {last}"
    return (
        f"{number}-{last}"
        if str(last).endswith(f" {unit}") and " " not in number
        else f"{first} to {last}"
    )


def _money(value: float) -> str:
    """Cents where it is a sum worth a bill, else two digits that count."""
    return f"{value:,.2f}" if value >= 1 or value == 0 else f"{value:.2g}"


def _percents(least: float, most: float) -> str:
    """`-92 to -94 %`, or `-94 %`."""
    first, last = f"{least:.0f}".replace("-0", "0"), f"{most:.0f}".replace("-0", "0")
    return f"{last} %" if first == last else f"{first} to {last} %"
