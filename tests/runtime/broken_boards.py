"""A healthy Raspberry Pi 4 made of files, and everything the doctor finds when one of them is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeml_runtime.config import Config
from edgeml_runtime.doctor import Machine, power

A72 = "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n"


A76 = A72.replace("cpuid", "cpuid asimdrdm asimddp").replace("d08", "d0b")


CPU = "sys/devices/system/cpu"


CLOCK = f"{CPU}/cpu0/cpufreq"


LIBSTDCXX = b"\x7fELF\0GLIBCXX_3.4\0GLIBCXX_3.4.9\0GLIBCXX_3.4.30\0GLIBCXX_DEBUG_MESSAGE_LENGTH\0"


HEALTHY = {
    "proc/cpuinfo": A72,
    "proc/device-tree/model": "Raspberry Pi 4 Model B Rev 1.5\0",
    "proc/meminfo": "MemTotal: 1900000 kB\nMemAvailable: 1500000 kB\nSwapTotal: 204800 kB\nSwapFree: 204800 kB\n",
    f"{CPU}/possible": "0-3\n",
    f"{CPU}/present": "0-3\n",
    f"{CPU}/online": "0-3\n",
    f"{CLOCK}/scaling_governor": "ondemand\n",
    f"{CLOCK}/scaling_driver": "cpufreq-dt\n",
    f"{CLOCK}/scaling_min_freq": "600000\n",
    f"{CLOCK}/scaling_max_freq": "1800000\n",
    f"{CLOCK}/cpuinfo_max_freq": "1800000\n",
    "sys/class/thermal/thermal_zone0/temp": "48312\n",
    power.THROTTLED: "0\n",
    "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io memory pids\n",
    "usr/lib/aarch64-linux-gnu/libstdc++.so.6": LIBSTDCXX,
}


SETTINGS = Config(device="pi-1", host="127.0.0.1", port=1, trusted=("ab" * 32,), board="raspberry-pi-4")


def a_machine(folder: Path, files: dict[str, str | bytes | None] | None = None, **changes: Any) -> Machine:
    """Return a healthy Raspberry Pi 4 below `folder`, with other `files` (None: not there) and `changes`."""
    root = folder / "root"
    for name, content in {**HEALTHY, **(files or {})}.items():
        if content is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    state = folder / "state"
    state.mkdir(exist_ok=True)
    settings: dict[str, Any] = {
        "state": state,
        "config": SETTINGS,
        "root": root,
        "machine": "aarch64",
        "libc": "glibc 2.36",
        "page_bytes": 4096,
        "allowed": 4,
        "environ": {"ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1", "HOME": str(folder / "home")},
    }
    return Machine(**{**settings, **changes})


# what is wrong, which check sees it, how bad it is, what it says, what it tells to do
CASES: dict[str, tuple[str, dict[str, Any], str, str, str]] = {
    "armv7l": ("architecture", {"machine": "armv7l"}, "fail", "armv7l is 32-bit.*64-bit", "64-bit system"),
    "armv6l": ("architecture", {"machine": "armv6l"}, "fail", "armv6l is 32-bit", "64-bit system"),
    "riscv64": ("architecture", {"machine": "riscv64"}, "fail", "aarch64 and x86_64 only", "board"),
    "32-bit programs on a 64-bit kernel": ("bits", {"bits": 32}, "fail", "32-bit on a 64-bit kernel", "64-bit system"),
    "an old python": ("python", {"python": (3, 9, 2)}, "fail", "3.9.2.*3.11", "apt-get install -y python3.11"),
    "musl": ("libc", {"libc": ""}, "fail", "not glibc", "Debian"),
    "an old glibc": ("libc", {"libc": "glibc 2.24"}, "fail", "glibc 2.24.*2.2[78]", "64-bit system"),
    "a card that cannot list processors": (
        *("cpu list", {"files": {f"{CPU}/possible": None, f"{CPU}/present": ""}}),
        *("warn", "possible and present cannot be read", "mount -t sysfs"),
    ),
    "two of four processors": ("threads", {"allowed": 2}, "warn", "2 of 4", "taskset -c 0-3"),
    "jemalloc on large pages": (
        *("pages", {"page_bytes": 16384, "environ": {"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"}}),
        *("warn", "16 KiB", "unset LD_PRELOAD"),
    ),
    "no C++ library": (
        *("c++", {"files": {"usr/lib/aarch64-linux-gnu/libstdc++.so.6": None}}),
        *("fail", "no libstdc", "apt-get install -y libstdc"),
    ),
    "an old C++ library": (
        *("c++", {"files": {"usr/lib/aarch64-linux-gnu/libstdc++.so.6": b"\0GLIBCXX_3.4.19\0"}}),
        *("fail", "3.4.19.*3.4.2", "apt-get install -y libstdc"),
    ),
    "powersave": (
        *("governor", {"files": {f"{CLOCK}/scaling_governor": "powersave"}}),
        *("warn", "powersave on 1 .* 600 MHz", "tee /sys/devices/system/cpu/cpu.*/scaling_governor"),
    ),
    "a cap": (
        *("governor", {"files": {f"{CLOCK}/scaling_max_freq": "600000"}}),
        *("warn", "capped at 600 of 1800 MHz", "echo 1800000 | sudo tee"),
    ),
    "under-voltage now": (
        *("power", {"files": {power.THROTTLED: "50005\n"}}),
        *("fail", "now: under-voltage, throttled .*0x50005", "power supply"),
    ),
    "heat before": (
        *("power", {"files": {power.THROTTLED: "80000\n"}}),
        *("warn", "since boot: soft temperature limit, not now", "heat sink"),
    ),
    "warm": (
        *("temperature", {"files": {"sys/class/thermal/thermal_zone1/temp": "76000"}}),
        *("warn", "76.0 C", "heat sink"),
    ),
    "hot": (
        *("temperature", {"files": {"sys/class/thermal/thermal_zone0/temp": "83100"}}),
        *("fail", "83.1 C", "heat sink"),
    ),
    "little memory": (
        *("memory", {"files": {"proc/meminfo": "MemTotal: 430000 kB\nMemAvailable: 102400 kB\n"}}),
        *("warn", "100 of 419 MiB", "systemctl"),
    ),
    "no memory": (
        *("memory", {"files": {"proc/meminfo": "MemTotal: 430000 kB\nMemAvailable: 40960 kB\n"}}),
        *("fail", "40 of 419 MiB", "systemctl"),
    ),
    "no swap on a small board": (
        *("swap", {"files": {"proc/meminfo": "MemTotal: 430000 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n"}}),
        *("warn", "419 MiB", "zram"),
    ),
    "swapping": (
        *("swap", {"files": {"proc/meminfo": "MemTotal: 430000 kB\nSwapTotal: 102400 kB\nSwapFree: 10240 kB\n"}}),
        *("warn", "90 of 100 MiB", "ps aux"),
    ),
    "no memory cgroup": (
        *("memory limits", {"files": {"sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids\n"}}),
        *("warn", "MemoryMax .* nothing.*LimitDATA.* works", "cgroup_enable=memory"),
    ),
    "telemetry on": ("telemetry", {"environ": {"ORT_DISABLE_TELEMETRY": "0"}}, "fail", "phone home", "export ORT"),
    "a clock never set": ("clock", {"now": 1000.0}, "fail", "1970-01-01.*never set", "timedatectl"),
    "no broker": ("broker", {}, "fail", "127.0.0.1:1 does not answer: nothing listens", "edgeml broker"),
    "not enrolled": ("enrolled", {"config": None}, "fail", "no device is enrolled", "edgeml-agent enroll --state"),
    "no key": ("key", {"config": None}, "warn", "no key", "edgeml-agent enroll --state"),
}
