"""What makes a timing unfit to decide by. One entry of DOUBTS each: the sentence, or "" where there is no doubt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgeml_runtime.hardware import throttling
from edgeml_runtime.measure.conditions import THROTTLED_NOW

WIDEST_CI = 0.20  # of the median
MOST_LOAD = 1.0  # tasks of others per core that want to run
LEAST_HELD = 0.90  # of the time, the calling thread had a processor
MOST_STOLEN = 0.05  # of the processors' time, by the hypervisor
MOST_SWAPPED = 256  # pages: 1 MB
CLOCK_FALL = 0.90  # of the fastest clock seen
MOST_LATE = 0.10  # of paced queries
MOST_INTERRUPTED = 0.10  # of paced queries: between two of them a processor may do what it likes


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of a run when it ends. `median` is (value, low, high); `facts` are Conditions.facts()."""

    median: tuple[float, float, float]
    facts: Mapping[str, Any]
    cores: int
    held: float = 1.0  # share of the time in which the threads that wanted a processor had one
    interrupted: float = 0.0  # share of paced queries during which another took the processor
    late: float = 0.0  # share of paced queries that had to wait
    settled: bool = True


def doubts(evidence: Evidence) -> str:
    """Return why a run is not to be trusted, or ""."""
    return "; ".join(filter(None, (doubt(evidence) for doubt in DOUBTS.values())))


def _load(evidence: Evidence) -> str:
    load = evidence.facts.get("running_others", 0) / evidence.cores
    if load <= MOST_LOAD:
        return ""
    return f"{load:.1f} other tasks per core want to run (at most {MOST_LOAD:g}): quieten the machine"


def _held(evidence: Evidence) -> str:
    if evidence.held >= LEAST_HELD:
        return ""
    return (
        f"the processor was taken away for {1 - evidence.held:.0%} of the time (at most {1 - LEAST_HELD:.0%}): "
        "quieten the machine"
    )


def _stolen(evidence: Evidence) -> str:
    share = evidence.facts.get("steal", 0.0)
    if share <= MOST_STOLEN:
        return ""
    return f"the hypervisor took {share:.0%} of the processors (at most {MOST_STOLEN:.0%}): take a quieter host"


def _throttled(evidence: Evidence) -> str:
    bits = evidence.facts.get("throttled", 0) & THROTTLED_NOW
    named = ", ".join(throttling(bits))
    return f"throttled (get_throttled {bits:#x}: {named}): check power supply and cooling" if bits else ""


def _clock(evidence: Evidence) -> str:
    low, high = (evidence.facts.get(f"frequency_khz_{end}", 0) for end in ("min", "max"))
    if not low or low >= CLOCK_FALL * high:
        return ""
    return f"the clock moved between {low // 1000} and {high // 1000} MHz: fix the governor (performance), cool it"


def _swapped(evidence: Evidence) -> str:
    pages = evidence.facts.get("swapped_pages", 0)
    return f"{pages} pages were swapped (at most {MOST_SWAPPED}): free some memory" if pages > MOST_SWAPPED else ""


def _interval(evidence: Evidence) -> str:
    middle, low, high = evidence.median
    if (width := (high - low) / middle) <= WIDEST_CI:
        return ""
    return f"the median's interval is {width:.0%} of it (at most {WIDEST_CI:.0%}): measure for longer"


def _late(evidence: Evidence) -> str:
    if evidence.late <= MOST_LATE:
        return ""
    return f"{evidence.late:.0%} of the queries had to wait for the one before: ask less often, or for less"


def _interrupted(evidence: Evidence) -> str:
    if evidence.interrupted <= MOST_INTERRUPTED:
        return ""
    return (
        f"others took the processor during {evidence.interrupted:.0%} of the queries (at most {MOST_INTERRUPTED:.0%}): "
        "quieten the machine"
    )


def _warming(evidence: Evidence) -> str:
    return "" if evidence.settled else "still getting faster or slower after the longest warm-up: warm up for longer"


DOUBTS: dict[str, Callable[[Evidence], str]] = {
    "load": _load,
    "held": _held,
    "steal": _stolen,
    "throttled": _throttled,
    "clock": _clock,
    "swap": _swapped,
    "interval": _interval,
    "late": _late,
    "interrupted": _interrupted,
    "warm-up": _warming,
}
