"""Numbers of a document as words; what was not measured says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeml.report.numbers import milliseconds, number

ABSENT = "not measured"


def interval(ends: Sequence[float | None] | None) -> str:
    """Return an interval of latencies, or that it was not measured.

    >>> interval((0.05, 0.2)), interval((1.2, 1.3)), interval(None)
    ('50 µs to 0.2 ms', '1.2 to 1.3 ms', 'not measured')
    """
    if not ends or ends[0] is None or ends[1] is None:
        return ABSENT
    low, high = milliseconds(ends[0]), milliseconds(ends[1])
    unit = high.rpartition(" ")[2]
    return f"{low.removesuffix(unit).strip()} to {high}" if low.endswith(f" {unit}") else f"{low} to {high}"


def forecast(latency: Mapping[str, Any]) -> str:
    """Return a prediction with its range and its method."""
    words = f"{milliseconds(latency['predicted'])} ({interval((latency['low'], latency['high']))})"
    return f"{words}, {latency.get('method', 'predicted')}"


def hardware(profile: Mapping[str, Any]) -> str:
    """Return the facts that are known of a board, and only those."""
    cores, core = profile.get("cores"), profile.get("core")
    facts = [f"{cores} × {core}"] if cores and core else []
    facts += [
        f"{profile[name]} {unit}" for name, unit in (("frequency_ghz", "GHz"), ("ram_mb", "MB")) if profile.get(name)
    ]
    return ", ".join(facts) or "not known"


def limits_of(limits: Mapping[str, Any]) -> str:
    """Return what the project asks of a board."""
    latency, memory = limits.get("latency_p90_ms"), limits.get("memory_mb")
    said = [f"p90 {number(latency)} ms"] if latency else []
    said += [f"{number(memory)} MB"] if memory else []
    return ", ".join(said) or "none"


def settings_of(settings: Mapping[str, Any]) -> str:
    """Return session settings as words."""
    said = {True: "on", False: "off"}
    return ", ".join(
        f"{name.replace('_', ' ')} {said[value] if isinstance(value, bool) else value}"
        for name, value in settings.items()
    )


def figure_of(value: float | None) -> str:
    """Return a score to four digits, or that it was not measured."""
    return ABSENT if value is None else f"{value:.4f}" if abs(value) < 100 else number(value)


def latency_of(value: float | None) -> str:
    """Return a latency with its unit, or that it was not measured."""
    return ABSENT if value is None else milliseconds(value)


def numbers(values: Sequence[float | None]) -> str:
    """Return a row of scores to four digits; None stands for NaN or infinity."""
    return " ".join("NaN" if value is None else f"{value:.4g}" for value in values)


def apart(value: float | None) -> str:
    """Return a largest difference; None, where only one side is NaN, is infinite."""
    return "infinite" if value is None else f"{value:.1e}" if value else "0"


def short(value: Any) -> str:
    """Return any value as a few characters."""
    return number(value) if isinstance(value, float) else str(value)


def sentence(text: str) -> str:
    """Return `text` with a full stop, and a capital unless it begins with a name.

    >>> sentence("nothing fits"), sentence("int8-static-u8s8 wins")
    ('Nothing fits.', 'int8-static-u8s8 wins.')
    """
    first = text.partition(" ")[0]
    start = text[:1] if not first.isalpha() else text[:1].upper()
    return start + text[1:] + ("" if text.endswith(".") else ".")


def moment(written: str) -> str:
    """Return an ISO time to the minute.

    >>> moment("2026-11-26T13:06:59+00:00")
    '2026-11-26 13:06 UTC'
    """
    day, _, clock = written.partition("T")
    return f"{day} {clock[:5]}{' UTC' if clock.endswith('+00:00') else clock[19:]}" if clock else written
