"""Made-up machines: /proc and /sys as boards have them, written into a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

V8 = "fp asimd evtstrm crc32 cpuid"
V82 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"


@dataclass(frozen=True)
class Cores:
    """Some equal cores; caches in KB, 0 for none."""

    count: int
    part: str
    features: str
    mhz: int
    l2: int
    l3: int = 0


@dataclass(frozen=True)
class Made:
    """A board that can be written into a folder."""

    model: str
    kinds: tuple[Cores, ...]
    memory_kb: int


BOARDS = {
    "raspberry-pi-zero-2w": Made("Raspberry Pi Zero 2 W Rev 1.0", (Cores(4, "0xd03", V8, 1000, 512),), 435_968),
    "raspberry-pi-3b-plus": Made("Raspberry Pi 3 Model B Plus Rev 1.3", (Cores(4, "0xd03", V8, 1400, 512),), 944_264),
    "raspberry-pi-4": Made("Raspberry Pi 4 Model B Rev 1.5", (Cores(4, "0xd08", V8, 1800, 1024),), 3_884_392),
    "raspberry-pi-5": Made("Raspberry Pi 5 Model B Rev 1.0", (Cores(4, "0xd0b", V82, 2400, 512, 2048),), 8_245_488),
}
ROCK = Made(
    "Radxa ROCK 5B", (Cores(4, "0xd05", V82, 1800, 128, 3072), Cores(4, "0xd0b", V82, 2352, 512, 3072)), 16_000_000
)


def write(board: Made, root: Path) -> Path:
    """Write the files of `board` below `root` and return it."""
    text, first = "", 0
    for kind in board.kinds:
        for index in range(first, first + kind.count):
            text += (
                f"processor\t: {index}\nBogoMIPS\t: 108.00\nFeatures\t: {kind.features}\nCPU implementer\t: 0x41\n"
                f"CPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: {kind.part}\nCPU revision\t: 4\n\n"
            )
            _sysfs(root / f"sys/devices/system/cpu/cpu{index}", kind, index, f"{first}-{first + kind.count - 1}")
        first += kind.count
    _put(root / "proc/cpuinfo", f"{text}Revision\t: c03115\nSerial\t\t: 10000000deadbeef\nModel\t\t: {board.model}\n")
    _put(root / "proc/meminfo", f"MemTotal:  {board.memory_kb} kB\nMemFree:  1000 kB\n")
    _put(root / "proc/device-tree/model", f"{board.model}\0")
    return root


def _sysfs(folder: Path, kind: Cores, index: int, together: str) -> None:
    _put(folder / "cpufreq/cpuinfo_max_freq", f"{kind.mhz * 1000}\n")
    caches = [(1, "Data", 32, str(index)), (2, "Unified", kind.l2, together), (3, "Unified", kind.l3, "0-7")]
    for number, (level, what, size, shared) in enumerate(cache for cache in caches if cache[2]):
        for name, value in (("level", level), ("type", what), ("size", f"{size}K"), ("shared_cpu_list", shared)):
            _put(folder / f"cache/index{number}" / name, f"{value}\n")


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
