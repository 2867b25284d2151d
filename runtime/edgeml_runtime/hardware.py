"""What this device is, read from the kernel's files: one JSON document that a board profile is made from.

Needs neither onnxruntime nor numpy, so that it also answers where they cannot be installed. What cannot be read
is left out. `root` is the folder that /proc and /sys lie in: of another device, or of a made-up one in a test.
"""

from __future__ import annotations

import os
import platform
import struct
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

SCHEMA = 1
INTERESTING = (  # of the dozens of processor flags, those that decide how fast a model runs
    *("asimd", "asimddp", "asimdhp", "fphp", "i8mm", "bf16", "sve", "neon", "vfpv4"),
    *("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "sse4_2"),
)
THROTTLING = {0: "under-voltage", 1: "clock capped", 2: "throttled", 3: "soft temperature limit"}  # 16-19: since boot
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def throttling(bits: int) -> list[str]:
    """Return what the firmware of a Raspberry Pi says is so now, of the bits that get_throttled gives.

    >>> throttling(0x50005)
    ['under-voltage', 'throttled']
    """
    return [name for bit, name in THROTTLING.items() if bits >> bit & 1]


def describe(root: Path = Path("/")) -> dict[str, Any]:
    """Return what this device is, JSON values only."""
    clusters = _clusters(root)
    facts: dict[str, Any] = {
        "schema": SCHEMA,
        "at": time.strftime("%Y-%m-%d", time.gmtime()),
        "model": _read(root / "proc/device-tree/model") or _read(root / "sys/class/dmi/id/product_name"),
        "arch": platform.machine(),
        "bits": 8 * struct.calcsize("P"),
        "cores": sum(cluster["cores"] for cluster in clusters) or os.cpu_count(),
        "clusters": clusters,
        "features": features(root),
        "memory_bytes": memory_bytes(root),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "onnxruntime": _version("onnxruntime"),
        "numpy": _version("numpy"),
    }
    return {name: value for name, value in facts.items() if value not in (None, [], {})}


def features(root: Path = Path("/")) -> list[str]:
    """Return the processor's flags that decide how fast a model runs, of those that every core has."""
    rows = [set(row.get("features", row.get("flags", "")).split()) for row in _processors(root)]
    shared = set.intersection(*rows) if rows else set()
    return [name for name in INTERESTING if name in shared]


def parts(root: Path = Path("/")) -> list[str]:
    """Return implementer and part of every kind of core, like "0x41/0xd08"; none on x86."""
    found = (f"{row['cpu implementer']}/{row['cpu part']}" for row in _processors(root) if "cpu part" in row)
    return list(dict.fromkeys(found))


def max_frequency_khz(root: Path = Path("/")) -> int | None:
    """Return the clock of the fastest core that the kernel says."""
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq")
    return max((clock for file in files if (clock := _number(_read(file)))), default=None)


def memory_bytes(root: Path = Path("/")) -> int | None:
    """Return what the kernel has of the memory."""
    for line in (_read(root / "proc/meminfo") or "").splitlines():
        words = line.split()
        if words[:1] == ["MemTotal:"] and len(words) > 1 and words[1].isdigit():
            return int(words[1]) * 1024
    return None


def _clusters(root: Path) -> list[dict[str, Any]]:
    """Return the kinds of core, the fastest first: how many, what they are, their clock and caches."""
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for index, row in enumerate(_processors(root)):
        folder = root / "sys/devices/system/cpu" / f"cpu{row.get('processor', index)}"
        facts = {
            "name": row.get("model name"),
            "implementer": row.get("cpu implementer"),
            "part": row.get("cpu part"),
            "max_frequency_khz": _number(_read(folder / "cpufreq/cpuinfo_max_freq")),
        }
        known = {name: value for name, value in facts.items() if value is not None}
        group = groups.setdefault(tuple(known.items()), {"cores": 0, **known, "caches": _caches(folder / "cache")})
        group["cores"] += 1
    return sorted(groups.values(), key=lambda group: -group.get("max_frequency_khz", 0))


def _caches(folder: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted(folder.glob("index[0-9]*")):
        size, level = _read(path / "size") or "", _number(_read(path / "level"))
        if level and size[-1:] in UNITS and size[:-1].isdigit():
            shared = _listed(_read(path / "shared_cpu_list") or "")
            cache = {"level": level, "type": _read(path / "type"), "bytes": int(size[:-1]) * UNITS[size[-1]]}
            found.append(cache | ({"shared_by": shared} if shared else {}))
    return found


def _processors(root: Path) -> list[Mapping[str, str]]:
    """Return the paragraphs of /proc/cpuinfo that are about one processor each, keys in small letters."""
    text = _read(root / "proc/cpuinfo") or ""
    paragraphs = [_pairs(paragraph.splitlines()) for paragraph in text.split("\n\n")]
    return [pairs for pairs in paragraphs if pairs.get("processor", "").isdigit()]


def _pairs(lines: Iterable[str]) -> dict[str, str]:
    halves = (line.partition(":") for line in lines)
    return {key.strip().lower(): value.strip() for key, colon, value in halves if colon}


def _listed(text: str) -> int:
    """Return how many numbers a kernel list names, like "0-3,8"."""
    count = 0
    for item in filter(None, text.split(",")):
        first, _, last = item.partition("-")
        if not first.isdigit() or not (last or first).isdigit():
            return 0
        count += int(last or first) - int(first) + 1
    return count


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None  # not every machine tells
