"""Room to work in: memory, swap, the kernel's memory limits, disk."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from edgeml_runtime.doctor.machine import Finding, Machine, fail, ok, warn

AGENT_MIB, COMFORT_MIB = 75, 150  # what the agent keeps, and with room for a model beside it
SMALL_MIB = 1024  # boards with less want swap
MIN_FREE_MIB, MIN_FREE_FILES = 200, 1000
CLEAN = "sudo apt-get clean && sudo journalctl --vacuum-size=50M"


def memory(machine: Machine) -> Finding:
    free, total = machine.meminfo_mib("MemAvailable"), machine.meminfo_mib("MemTotal")
    if free is None or total is None:
        return ok("this machine does not tell")
    detail = f"{free:,} of {total:,} MiB free; the agent keeps {AGENT_MIB}"
    fix = "sudo systemctl set-default multi-user.target && sudo reboot  # without the desktop"
    if free < AGENT_MIB:
        return fail(detail, fix=fix)
    return ok(detail) if free >= COMFORT_MIB else warn(f"{detail}, and a model needs some too", fix=fix)


def swap(machine: Machine) -> Finding:
    total, free, memory = (machine.meminfo_mib(name) for name in ("SwapTotal", "SwapFree", "MemTotal"))
    if total is None or free is None or memory is None:
        return ok("this machine does not tell")
    zram = "sudo apt-get install -y zram-tools"
    if not total:
        if memory >= SMALL_MIB:
            return ok(f"none, and {memory:,} MiB of memory")
        return warn(f"none, with {memory:,} MiB of memory: what is a little too large is killed", fix=zram)
    used = total - free
    if used > total // 2:
        detail = f"{used:,} of {total:,} MiB are in use: answers will be slow, and benchmarks invalid"
        return warn(detail, fix="ps aux --sort=-rss | head -5; stop what is not needed")
    return ok(f"{used:,} of {total:,} MiB are in use")


def memory_limits(machine: Machine) -> Finding:
    """Raspberry Pi OS boots with cgroup_disable=memory, and systemd's memory limits then do nothing, silently."""
    controllers = machine.read("sys/fs/cgroup/cgroup.controllers").split()
    first_version = [line.split() for line in machine.read("proc/cgroups").splitlines() if line.startswith("memory\t")]
    if "memory" in controllers or any(fields[-1:] == ["1"] for fields in first_version):
        return ok("the kernel can limit a service's memory")
    return warn(
        "the kernel's memory cgroup is off: MemoryMax and MemoryHigh do nothing; LimitDATA, which the unit sets, works",
        fix="sudo sed -i '1s/$/ cgroup_enable=memory/' /boot/firmware/cmdline.txt && sudo reboot",
    )


def disk(machine: Machine) -> Finding:
    there = next(path for path in (machine.state, *machine.state.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        return fail(f"{there} cannot be written by this user", fix=_writable(there))
    found = os.statvfs(there)
    free = shutil.disk_usage(there).free >> 20
    detail = f"{free:,} MiB free in {there}; {MIN_FREE_MIB} wanted"
    if free < MIN_FREE_MIB:
        return fail(detail, fix=CLEAN)
    if found.f_files and found.f_favail < MIN_FREE_FILES:
        return fail(f"{found.f_favail:,} more files fit in {there}; {MIN_FREE_FILES:,} wanted", fix=CLEAN)
    return ok(detail)


def _writable(there: Path) -> str:
    """Return what makes `there` writable: the file system where it is mounted read-only, else its owner."""
    if os.statvfs(there).f_flag & os.ST_RDONLY:
        return f"sudo mount -o remount,rw $(findmnt -n -o TARGET --target {there})"
    return f"sudo chown -R $(id -un) {there}"
