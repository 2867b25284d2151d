"""A board as files: what its kernel would show under /proc and /sys, written from its profile in devices/."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgeml.devices import DeviceProfile

LINE_BYTES = 64  # of every core below
TEMPERATURE_MC = 48_312  # thousandths of a degree
PLAIN = "fp asimd evtstrm crc32 cpuid"  # what a core without the ARMv8.2 extensions announces


@dataclass(frozen=True)
class Core:
    """What a kernel says of a core: Arm's Technical Reference Manuals, MIDR_EL1 and cache chapters."""

    part: int
    variant: int
    revision: int
    features: str
    data_kb: int
    code_kb: int
    shared_kb: int = 0  # third level


CORES = {
    "Cortex-A53": Core(0xD03, 0, 4, PLAIN, 32, 32),
    "Cortex-A72": Core(0xD08, 0, 3, PLAIN, 32, 48),
    "Cortex-A76": Core(
        *(0xD0B, 4, 1),
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp",
        *(64, 64, 2048),
    ),
}


def write_board(root: Path, board: DeviceProfile) -> None:
    """Write below `root` the files in which a kernel on `board` would describe it."""
    cpu = "sys/devices/system/cpu"
    everyone = f"0-{board.cores - 1}"
    files = {
        "proc/cpuinfo": _cpuinfo(board),
        "proc/meminfo": _meminfo((board.usable_ram_mb or board.ram_mb) << 10),
        "proc/cgroups": "#subsys_name\thierarchy\tnum_cgroups\tenabled\nmemory\t0\t1\t0\n",  # as Raspberry Pi OS boots
        "proc/device-tree/model": board.title + "\0",
        "sys/class/thermal/thermal_zone0/temp": f"{TEMPERATURE_MC}\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/devices/platform/soc/soc:firmware/get_throttled": "0\n",
        "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids\n",
        **{f"{cpu}/{name}": everyone + "\n" for name in ("possible", "present", "online")},
        f"{cpu}/kernel_max": "255\n",
    }
    for number in range(board.cores):
        files |= {f"{cpu}/cpu{number}/{name}": text + "\n" for name, text in _core(board, number).items()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")


def _cpuinfo(board: DeviceProfile) -> str:
    core = CORES[board.core]
    each = [
        f"processor\t: {number}\nBogoMIPS\t: 108.00\nFeatures\t: {core.features}\nCPU implementer\t: 0x41\n"
        f"CPU architecture: 8\nCPU variant\t: {core.variant:#x}\nCPU part\t: {core.part:#x}\n"
        f"CPU revision\t: {core.revision}\n\n"
        for number in range(board.cores)
    ]
    return "".join(each) + f"Model\t\t: {board.title}\n"


def _meminfo(total_kb: int) -> str:
    lines = {"MemTotal": total_kb, "MemFree": total_kb // 2, "MemAvailable": total_kb * 3 // 4}
    lines |= {"SwapTotal": 204_800, "SwapFree": 204_800}
    return "".join(f"{name + ':':16}{kb} kB\n" for name, kb in lines.items())


def _core(board: DeviceProfile, number: int) -> dict[str, str]:
    """Return the files of one processor, by their path in its folder."""
    core, khz = CORES[board.core], str(int(board.frequency_ghz * 1e6))
    everyone, alone = f"0-{board.cores - 1}", str(number)
    clock = {"cpuinfo_max_freq": khz, "scaling_max_freq": khz, "scaling_cur_freq": khz, "cpuinfo_min_freq": "600000"}
    clock |= {"scaling_min_freq": "600000", "scaling_governor": "ondemand", "scaling_driver": "cpufreq-dt"}
    lists = {"core_siblings_list": everyone, "cluster_cpus_list": everyone, "package_cpus_list": everyone}
    lists |= {"thread_siblings_list": alone, "core_cpus_list": alone, "core_id": alone, "physical_package_id": "0"}
    caches = [(1, "Data", core.data_kb, alone), (1, "Instruction", core.code_kb, alone)]
    if board.l2_kb:
        caches.append((2, "Unified", board.l2_kb, alone if core.shared_kb else everyone))
    if core.shared_kb:
        caches.append((3, "Unified", core.shared_kb, everyone))
    files = {f"cpufreq/{name}": text for name, text in clock.items()}
    files |= {f"topology/{name}": text for name, text in lists.items()}
    for index, (level, kind, size_kb, shared) in enumerate(caches):
        facts = {"level": level, "type": kind, "size": f"{size_kb}K", "shared_cpu_list": shared}
        facts["coherency_line_size"] = LINE_BYTES
        files |= {f"cache/index{index}/{name}": str(value) for name, value in facts.items()}
    return files
