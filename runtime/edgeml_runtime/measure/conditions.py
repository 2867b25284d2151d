"""What the machine is: its processor and memory. What it was doing before, during and after a run: `Conditions`.

A reading costs some tens of microseconds of files under /proc and /sys, and is taken between timed
stretches, never within one. `scaling_cur_freq` is the kernel's wish: on a Raspberry Pi with too little
voltage the core runs slower than it says, so the firmware's throttle bits are read beside it.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeml_runtime.hardware import features, max_frequency_khz, memory_bytes, parts
from edgeml_runtime.session import VERSION

THROTTLED_NOW = 0xF  # bits 0-3 of get_throttled: under-voltage, capped, throttled, soft limit; 16-19 are history
HISTORY = 16
SYS, TASKS = Path("/sys"), Path("/proc/self/task")
CPU = SYS / "devices/system/cpu"
FIRMWARE = SYS / "devices/platform/soc/soc:firmware/get_throttled"
RAPL, METERS, THERMAL = SYS / "class/powercap", SYS / "class/hwmon", SYS / "class/thermal"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One look at the machine. Counters (ticks, pages) grow since boot; what cannot be read is None."""

    at_s: float  # time.monotonic()
    wall_s: float  # time.time(), to notice a clock that jumps
    running: int | None  # tasks that run or want to, now, this one included
    busy_ticks: int | None  # of all cores, this process included
    steal_ticks: int | None  # that the hypervisor gave to others
    all_ticks: int | None
    swapped_pages: int | None  # in and out
    frequency_khz: int | None  # of the slowest core
    temperature_c: float | None
    throttled: int | None  # the firmware's bits
    energy_uj: int | None  # that the processor's packages have used (RAPL), wraps around
    power_uw: int | None  # that a meter on the board reads now (hwmon: INA219, INA3221, ...)


class Conditions:
    """Readings along a run: `look` between its stretches, `end` after the last, then `facts`.

    Before and after the run the firmware is asked even where that takes a process (`vcgencmd`): what happened between
    two looks shows in its bits 16 to 19, which stay set.
    """

    def __init__(self) -> None:
        self.readings = [look(ask=True)]

    def look(self) -> None:
        self.readings.append(look())

    def end(self) -> None:
        self.readings.append(look(ask=True))

    def facts(self) -> dict[str, Any]:
        """Return what the readings say of the time between the first and the last, JSON values only."""
        first, last = self.readings[0], self.readings[-1]
        clocks = [r.frequency_khz for r in self.readings[1:] if r.frequency_khz]  # before it, the core slept
        facts: dict[str, Any] = {
            "running_others": _median([r.running - 1 for r in self.readings if r.running is not None]),
            "steal": _share(first, last),
            "swapped_pages": _difference(first.swapped_pages, last.swapped_pages),
            "frequency_khz_min": min(clocks, default=None),
            "frequency_khz_max": max(clocks, default=None),
            "temperature_c_max": max((r.temperature_c for r in self.readings if r.temperature_c), default=None),
            "throttled": _any_bits([r.throttled for r in self.readings if r.throttled is not None]),
            "governor": _governor(),
            "clock_jump_s": round((last.wall_s - first.wall_s) - (last.at_s - first.at_s), 3),
        }
        return {name: value for name, value in facts.items() if value is not None}

    def joules(self) -> float | None:
        """Return the energy used between the second reading and the last; None where nothing measures it.

        Of the processor's packages where they count it, else what a meter read times the time. A counter that wrapped
        around gives None: the run is shorter than nobody knows how many turns.
        """
        first, last = self.readings[min(1, len(self.readings) - 1)], self.readings[-1]
        if (used := _difference(first.energy_uj, last.energy_uj)) is not None:
            return used / 1e6 if used > 0 else None
        watts = [reading.power_uw / 1e6 for reading in self.readings[1:] if reading.power_uw is not None]
        return float(np.mean(watts)) * (last.at_s - first.at_s) if watts else None

    def series(self) -> list[dict[str, Any]]:
        """Return every reading as plain values, `at_s` from the first, unknown ones left out."""
        start = self.readings[0].at_s
        plain = [asdict(reading) | {"at_s": round(reading.at_s - start, 3)} for reading in self.readings]
        kept = ("at_s", "running", "frequency_khz", "temperature_c", "throttled")
        return [{name: reading[name] for name in kept if reading[name] is not None} for reading in plain]


def look(*, ask: bool = False) -> Reading:
    """Return what can be read here at this moment; `ask` the firmware, too, where that takes a process."""
    ticks = _ticks()
    return Reading(
        at_s=time.monotonic(),
        wall_s=time.time(),
        running=_running_tasks(),
        busy_ticks=ticks.get("busy"),
        steal_ticks=ticks.get("steal"),
        all_ticks=ticks.get("all"),
        swapped_pages=_swapped(),
        frequency_khz=_slowest_core(),
        temperature_c=_temperature(),
        throttled=_throttled() if ask else _throttle_bits(),
        energy_uj=_total(RAPL.glob("intel-rapl:?/energy_uj")),
        power_uw=_total(METERS.glob("hwmon*/power1_input")),
    )


def environment() -> dict[str, Any]:
    """Return what can be read here of the processor, its clock, heat and load."""
    facts: dict[str, Any] = {
        "cpu_model": _cpu_model(),
        "cores": os.cpu_count(),
        "affinity": sorted(os.sched_getaffinity(0)),
        "cache_bytes": next(reversed(_caches()), None),
        "near_cache_bytes": next(iter(_caches()[-2:-1]), None),
        "load_average": os.getloadavg()[0],
        "running": _running_tasks(),
        "governor": _governor(),
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
    memory, clock = memory_bytes(), max_frequency_khz()
    facts = {
        "board": _read("/proc/device-tree/model"),
        "cpu_model": _cpu_model(),
        "cpu_parts": " ".join(parts()),
        "cpu_features": " ".join(features()),
        "max_frequency_khz": str(clock) if clock else None,
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "memory_bytes": str(memory) if memory else None,
        "kernel": platform.release(),
        "onnxruntime": VERSION,
    }
    return {name: value for name, value in facts.items() if value}


def _cpu_model() -> str | None:
    lines = _read_lines("/proc/cpuinfo")
    return next((line.split(":", 1)[1].strip() for line in lines if line.lower().startswith("model name")), None)


def _running_tasks() -> int | None:
    """Return how many tasks run or want to, now: the load average forgets too slowly for a second's measurement."""
    fields = (_read("/proc/loadavg") or "").split()
    return int(fields[3].split("/")[0]) if len(fields) > 3 else None


def _ticks() -> Mapping[str, int]:
    """Return the clock ticks of all cores since boot, from the first line of /proc/stat (man 5 proc_stat)."""
    fields = next(iter(_read_lines("/proc/stat")), "").split()[1:9]
    if len(fields) < 8 or not all(field.isdigit() for field in fields):
        return {}
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, fields)
    busy = user + nice + system + irq + softirq
    return {"busy": busy, "steal": steal, "all": busy + idle + iowait + steal}


def _swapped() -> int | None:
    pairs = dict(line.split()[:2] for line in _read_lines("/proc/vmstat") if line.startswith(("pswpin ", "pswpout ")))
    return sum(map(int, pairs.values())) if pairs else None


def _caches() -> list[int]:
    """Return the bytes of the caches for data that the first core can use, the nearest first."""
    levels = [path for path in (CPU / "cpu0/cache").glob("index*") if _read(path / "type") != "Instruction"]
    sizes = [_read(path / "size") or "" for path in levels]
    return sorted(int(one[:-1]) * {"K": 1 << 10, "M": 1 << 20}[one[-1]] for one in sizes if one[-1:] in ("K", "M"))


def _slowest_core() -> int | None:
    clocks = [_number(_read(CPU / f"cpu{core}/cpufreq/scaling_cur_freq")) for core in os.sched_getaffinity(0)]
    return min((clock for clock in clocks if clock), default=None)


def kept_waiting() -> tuple[int, int] | None:
    """Return the ns that this process's threads have run, and those they were kept waiting for a processor.

    From the kernel's own count (Documentation/scheduler/sched-stats), None where it keeps none.
    """
    counts = [text.split() for task in TASKS.iterdir() if (text := _read(task / "schedstat"))]
    return (sum(int(one[0]) for one in counts), sum(int(one[1]) for one in counts)) if counts else None


def _governor() -> str | None:
    """Return the governor of the cores this process may use, all of them where they differ."""
    found = {_read(CPU / f"cpu{core}/cpufreq/scaling_governor") for core in os.sched_getaffinity(0)} - {None}
    return ", ".join(sorted(filter(None, found))) or None


def _temperature() -> float | None:
    """Return that of the hottest zone."""
    zones = (_number(_read(zone)) for zone in THERMAL.glob("thermal_zone*/temp"))
    return max((milli / 1000 for milli in zones if milli is not None), default=None)


def _throttle_bits() -> int | None:
    """Return the firmware's bits where the kernel has them in a file: asking the firmware takes a process.

    A voltage sensor that alarms (hwmon, `rpi_volt` on a Raspberry Pi) sets bit 0, too.
    """
    text, low = _read(FIRMWARE), _total(METERS.glob("hwmon*/in*_lcrit_alarm"))
    if text is None and low is None:
        return None
    return int(text or "0", 16) | (1 if low else 0)


def _throttled() -> int | None:
    """Return the firmware's throttle bits, where there is a Raspberry Pi's file or `vcgencmd` to ask."""
    program = shutil.which("vcgencmd")
    bits = _throttle_bits()
    if program is None or FIRMWARE.exists():
        return bits
    done = subprocess.run([program, "get_throttled"], capture_output=True, text=True, timeout=5, check=False)
    _, _, value = done.stdout.strip().partition("=")
    return int(value, 16) | (bits or 0) if done.returncode == 0 and value else bits


def _total(files: Iterable[Path]) -> int | None:
    numbers = [number for file in files if (number := _number(_read(file))) is not None]
    return sum(numbers) if numbers else None


def _share(first: Reading, last: Reading) -> float | None:
    """Return the share of processor time that the hypervisor took between two readings."""
    stolen, passed = _difference(first.steal_ticks, last.steal_ticks), _difference(first.all_ticks, last.all_ticks)
    return round(stolen / passed, 4) if stolen is not None and passed else None


def _difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def _any_bits(bits: list[int]) -> int | None:
    """Return the bits that were set at any look, those that only the firmware's history tells of among them."""
    if not bits:
        return None
    fresh = (bits[-1] & ~bits[0]) >> HISTORY
    return int(np.bitwise_or.reduce(bits)) | fresh


def _median(values: list[int]) -> float | None:
    return float(np.median(values)) if values else None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.lstrip("-").isdigit() else None


def _read(path: str | Path) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None  # not every machine tells


def _read_lines(path: str) -> list[str]:
    return (_read(path) or "").splitlines()
