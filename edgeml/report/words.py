"""Numbers of a summary as words; what was not measured says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeml.report.scales import milliseconds, number

ABSENT = "not measured"


def latencies(found: Mapping[str, Any]) -> str:
    """Return p50, p90 and p99 with the interval of the median; INVALID in front where it is."""
    if not found.get("p50"):
        return ABSENT
    text = f"{latency_of(found['p50'])} · {latency_of(found['p90'])} · {latency_of(found['p99'])}"
    if found.get("ci95"):
        text += f" (median {latency_of(found['ci95'][0])} to {latency_of(found['ci95'][1])}, n {found['n']:,})"
    return text if found.get("valid", True) else f"INVALID: {text}"


def forecast(latency: Mapping[str, Any]) -> str:
    """Return a prediction with its range and its method."""
    words = f"{milliseconds(latency['predicted'])} ({milliseconds(latency['low'])} to {milliseconds(latency['high'])})"
    return f"{words}, {latency['method']}"


def hardware(profile: Mapping[str, Any]) -> str:
    """Return the facts that are known of a board, and only those."""
    cores, core = profile.get("cores"), profile.get("core")
    facts = [f"{cores} × {core}"] if cores and core else []
    facts += [
        f"{profile[name]} {unit}" for name, unit in (("frequency_ghz", "GHz"), ("ram_mb", "MB")) if profile.get(name)
    ]
    return ", ".join(facts) or ABSENT


def limits_of(limits: Mapping[str, Any]) -> str:
    """Return what the project asks of a board."""
    latency, memory = limits.get("latency_p90_ms"), limits.get("memory_mb")
    said = [f"p90 {number(latency)} ms"] if latency else []
    said += [f"{number(memory)} MB"] if memory else []
    return ", ".join(said) or "none"


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
    return "infinite" if value is None else f"{value:.1e}"


def short(value: Any) -> str:
    """Return any value as a few characters."""
    return number(value) if isinstance(value, float) else str(value)


def sentence(text: str) -> str:
    """Return `text` with a capital and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
