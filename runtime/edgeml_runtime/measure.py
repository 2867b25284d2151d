"""Timed runs of a session on this machine, and what the machine was doing meanwhile.

One row at a time, one stream, through the code that serves: wall time for users, CPU time because it
stays steady while neighbours make the wall time double. A timing that cannot be trusted says so and
why. What the machine does not tell is absent, never guessed.
"""

from __future__ import annotations

import functools
import math
import os
import platform
import shutil
import subprocess
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeml_runtime.errors import AgentRefused
from edgeml_runtime.session import VERSION, Session

BATCHES = 31  # odd, and enough that ranks 10 to 22 of their medians hold the true one 95 times in 100
MOST_SAMPLES = 1_000_000  # 8 MB
KEPT_SAMPLES = 200
TIGHT_CI, WIDEST_CI = 0.05, 0.20  # of the median: good enough to stop, too wide to believe
MOST_LOAD = 1.0  # tasks of others per core that want to run
THROTTLED_NOW = 0xF  # bits 0-3 of get_throttled: under-voltage, capped, throttled, soft limit; 16-19 are history
CPU = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Plan:
    """When to stop: after `min_s`, `min_count` runs and a tight median, or after `max_s` in any case."""

    warmup_s: float = 0.2
    min_s: float = 1.0
    min_count: int = 100
    max_s: float = 10.0


@dataclass(frozen=True)
class Timing:
    """What one run takes, in milliseconds. `ci95_ms` is of the median; `samples_ms` is a thinned, sorted sample."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float
    n: int
    ci95_ms: tuple[float, float]
    cpu_ms: float  # CPU time of the process per run, all its threads
    valid: bool
    why: str  # what makes it invalid, or ""
    samples_ms: tuple[float, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)


def measure(session: Session, feeds: Mapping[str, np.ndarray], plan: Plan = Plan()) -> Timing:
    """Return how long `session` takes for `feeds`: through `predict` where they are one row of one input."""
    call = _caller(session, feeds)
    before = environment()
    _repeat(call, seconds=plan.warmup_s, ends=array("q"))
    start, cpu, ends, step = time.perf_counter(), 0.0, array("q"), min(plan.min_s, plan.max_s)
    while True:
        cpu += _repeat(call, seconds=step, ends=ends)
        elapsed = time.perf_counter() - start
        done = elapsed >= plan.min_s and len(ends) >= plan.min_count and _tight(ends)
        if done or elapsed >= plan.max_s or len(ends) >= MOST_SAMPLES:
            break
        step = min(max(plan.min_s, 0.1) / 2, plan.max_s - elapsed)
    return _timing(np.asarray(ends) / 1e6, cpu * 1e3 / len(ends), before=before, after=environment())


def confidence_of_median(samples: np.ndarray) -> tuple[float, float]:
    """Return a 95 % interval for the median of `samples`, which are in the order they were taken.

    Taken from the order statistics of batch medians, not of single runs: neighbouring runs share
    the machine's moods, and as if independent they would promise an interval far too narrow.
    """
    if len(samples) >= 4 * BATCHES:
        samples = np.array([np.median(batch) for batch in np.array_split(samples, BATCHES)])
    ordered = np.sort(samples)
    half = 1.96 * math.sqrt(len(ordered)) / 2  # normal approximation of the binomial
    low, high = math.floor(len(ordered) / 2 - half), math.ceil(len(ordered) / 2 + half)
    return float(ordered[max(0, low)]), float(ordered[min(len(ordered) - 1, high)])


def environment() -> dict[str, Any]:
    """Return what can be read here of the processor, its clock, heat and load."""
    facts: dict[str, Any] = {
        "cpu_model": _cpu_model(),
        "cores": os.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "running": _running_tasks(),
        "governor": _read(CPU / "cpu0/cpufreq/scaling_governor"),
        "frequency_khz": _number(_read(CPU / "cpu0/cpufreq/scaling_cur_freq")),
        "temperature_c": _temperature(),
        "throttled": _throttled(),
        "onnxruntime": VERSION,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "kernel": platform.release(),
    }
    return {name: value for name, value in facts.items() if value is not None}


def hardware() -> dict[str, str]:
    """Return what this device is, for its reports: board, processor, memory, kernel."""
    memory = next((line.split()[1] for line in _read_lines("/proc/meminfo") if line.startswith("MemTotal:")), None)
    facts = {
        "board": _read("/proc/device-tree/model"),
        "cpu_model": _cpu_model(),
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "memory_bytes": str(int(memory) * 1024) if memory else None,
        "kernel": platform.release(),
        "onnxruntime": VERSION,
    }
    return {name: value for name, value in facts.items() if value}


def refuse_architecture(machine: str = "") -> None:
    """Raise AgentRefused on 32-bit ARM (of this machine by default), for which there is no onnxruntime."""
    machine = machine or platform.machine()
    if machine.startswith(("armv6", "armv7")) or machine == "armhf":
        raise AgentRefused(f"{machine} is 32-bit and onnxruntime is 64-bit only: install a 64-bit system (aarch64)")


def _caller(session: Session, feeds: Mapping[str, np.ndarray]) -> Callable[[], Any]:
    if len(session.inputs) == 1 and len(feeds) == 1:
        row = next(iter(feeds.values()))
        if row.ndim == len(session.inputs[0].shape) and row.ndim and len(row) == 1:
            return functools.partial(session.predict, row)
    return functools.partial(session.run, feeds)


def _repeat(call: Callable[[], Any], *, seconds: float, ends: array[int]) -> float:
    """Run `call` for `seconds`, at least once; append each duration in ns, return the CPU seconds it all took."""
    clock, cpu = time.perf_counter_ns, time.process_time()
    before = clock()
    until, room = before + int(seconds * 1e9), MOST_SAMPLES - len(ends)
    while room > 0:
        call()
        after = clock()
        ends.append(after - before)
        before, room = after, room - 1
        if after >= until:
            break
    return time.process_time() - cpu


def _tight(ends: Sequence[int]) -> bool:
    samples = np.asarray(ends)
    low, high = confidence_of_median(samples)
    return high - low <= TIGHT_CI * float(np.median(samples))


def _timing(samples: np.ndarray, cpu_ms: float, *, before: Mapping[str, Any], after: Mapping[str, Any]) -> Timing:
    p50, p90, p99 = (float(value) for value in np.percentile(samples, [50, 90, 99]))
    ci = confidence_of_median(samples)
    why = _doubts((p50, *ci), before, after)
    thin = np.sort(samples)[np.linspace(0, len(samples) - 1, min(KEPT_SAMPLES, len(samples))).astype(int)]
    return Timing(
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99,
        mean_ms=float(samples.mean()),
        min_ms=float(samples.min()),
        n=len(samples),
        ci95_ms=ci,
        cpu_ms=cpu_ms,
        valid=not why,
        why=why,
        samples_ms=tuple(float(value) for value in thin),
        environment=dict(after) | {f"{name}_before": before[name] for name in ("load_average",) if name in before},
    )


def _doubts(median: tuple[float, float, float], before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Return why a timing with this (median, low, high) is not to be trusted, or ""."""
    p50, low, high = median
    doubts = []
    running = min(now.get("running", now["load_average"]) for now in (before, after))
    if (load := (running - 1) / (after["cores"] or 1)) > MOST_LOAD:
        doubts.append(f"{load:.1f} other tasks per core want to run (at most {MOST_LOAD:g}): quieten the machine")
    if after.get("throttled", 0) & THROTTLED_NOW:
        doubts.append(f"throttled (get_throttled {after['throttled']:#x}): check power supply and cooling")
    if (width := (high - low) / p50) > WIDEST_CI:
        doubts.append(f"the median's interval is {width:.0%} of it (at most {WIDEST_CI:.0%}): measure for longer")
    return "; ".join(doubts)


def _cpu_model() -> str | None:
    lines = _read_lines("/proc/cpuinfo")
    return next((line.split(":", 1)[1].strip() for line in lines if line.lower().startswith("model name")), None)


def _running_tasks() -> int | None:
    """Return how many tasks run or want to, now: the load average forgets too slowly for a second's measurement."""
    fields = (_read("/proc/loadavg") or "").split()
    return int(fields[3].split("/")[0]) if len(fields) > 3 else None


def _temperature() -> float | None:
    milli = _number(_read("/sys/class/thermal/thermal_zone0/temp"))
    return None if milli is None else milli / 1000


def _throttled() -> int | None:
    """Return the firmware's throttle bits, where there is a Raspberry Pi's `vcgencmd` to ask."""
    program = shutil.which("vcgencmd")
    if program is None:
        return None
    done = subprocess.run([program, "get_throttled"], capture_output=True, text=True, timeout=5, check=False)
    _, _, value = done.stdout.strip().partition("=")
    return int(value, 16) if done.returncode == 0 and value else None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.lstrip("-").isdigit() else None


def _read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None  # not every machine tells


def _read_lines(path: str) -> list[str]:
    return (_read(path) or "").splitlines()
