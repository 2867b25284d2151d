"""What a check is given, and what it answers."""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgeml_runtime.config import Config

Level = Literal["ok", "warn", "fail"]
PROCESSORS = "sys/devices/system/cpu"
NUMBER = "-?[0-9]{1,18}"


@dataclass(frozen=True)
class Finding:
    """The answer to one question. What is not ok says how to put it right: a command where one does it."""

    level: Level
    detail: str
    fix: str = ""

    def __post_init__(self) -> None:
        if (self.level == "ok") == bool(self.fix):
            raise ValueError(f"{self.level} with the fix {self.fix!r}: what is not ok has a fix, what is ok has none")


def ok(detail: str) -> Finding:
    return Finding("ok", detail)


def warn(detail: str, *, fix: str) -> Finding:
    return Finding("warn", detail, fix)


def fail(detail: str, *, fix: str) -> Finding:
    return Finding("fail", detail, fix)


def _libc() -> str:
    """Return the C library as the system names it ("glibc 2.36"), "" where it is not glibc."""
    return (os.confstr("CS_GNU_LIBC_VERSION") or "") if "CS_GNU_LIBC_VERSION" in os.confstr_names else ""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The device under examination: files below `root`, and what this process knows of itself."""

    state: Path
    config: Config | None = None
    not_enrolled: str = ""  # why there is no config
    root: Path = Path("/")
    machine: str = field(default_factory=platform.machine)
    bits: int = 64 if sys.maxsize > 2**32 else 32
    python: tuple[int, ...] = sys.version_info[:3]
    libc: str = field(default_factory=_libc)
    page_bytes: int = field(default_factory=lambda: os.sysconf("SC_PAGE_SIZE"))
    allowed: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))  # processors this process may use
    now: float = field(default_factory=time.time)
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def is_arm(self) -> bool:
        return self.machine in ("aarch64", "arm64")

    @property
    def model(self) -> str:
        """What the firmware calls the board, "" where it does not tell."""
        return self.read("proc/device-tree/model")

    def read(self, path: str) -> str:
        """Return the text of a file below the root, "" where there is none."""
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
        except OSError:
            return ""

    def number(self, path: str) -> int | None:
        text = self.read(path)
        return int(text) if re.fullmatch(NUMBER, text) else None

    def glob(self, pattern: str) -> list[str]:
        """Return the paths below the root that match, relative to it, in order."""
        return sorted(str(path.relative_to(self.root)) for path in self.root.glob(pattern))

    def cpuinfo(self, name: str) -> str:
        """Return what /proc/cpuinfo says of the first processor under `name`."""
        for line in self.read("proc/cpuinfo").splitlines():
            label, _, value = line.partition(":")
            if label.strip() == name:
                return value.strip()
        return ""

    def meminfo_mib(self, name: str) -> int | None:
        """Return a line of /proc/meminfo in MiB."""
        found = re.search(rf"^{name}:\s+([0-9]{{1,18}}) kB$", self.read("proc/meminfo"), flags=re.MULTILINE)
        return int(found[1]) >> 10 if found else None


def processors(text: str) -> int:
    """Return how many processors a kernel's list names.

    >>> processors("0-3,6")
    5
    >>> processors("")
    0
    """
    parts = (re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", part) for part in text.split(","))
    return sum(int(ends[2] or ends[1]) - int(ends[1]) + 1 for ends in parts if ends)
