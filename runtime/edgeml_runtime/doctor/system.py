"""The system below: processor, word size, Python, C and C++ libraries, memory pages."""

from __future__ import annotations

from edgeml_runtime.architecture import refuse_architecture
from edgeml_runtime.doctor import wheel
from edgeml_runtime.doctor.machine import PROCESSORS, Finding, Machine, fail, ok, processors, warn
from edgeml_runtime.errors import AgentRefused

WHEELS_FOR = ("aarch64", "arm64", "x86_64", "AMD64")
NEW_SYSTEM = "write a 64-bit system to the card: Raspberry Pi OS (64-bit) 12 or newer, or Debian 12 or newer for arm64"
OLDEST_PYTHON = (3, 11)
OLDEST_GLIBC = (2, 28)  # manylinux_2_28, where the wheel itself cannot be asked
LIBSTDCXX = ("usr/lib/*/libstdc++.so.6", "lib/*/libstdc++.so.6", "usr/lib64/libstdc++.so.6", "usr/lib/libstdc++.so.6")


def architecture(machine: Machine) -> Finding:
    try:
        refuse_architecture(machine.machine)
    except AgentRefused as error:
        return fail(str(error), fix=NEW_SYSTEM)
    if machine.machine not in WHEELS_FOR:
        detail = f"{machine.machine}: onnxruntime has wheels for aarch64 and x86_64 only"
        return fail(detail, fix="use a board with one of these processors")
    return ok(" ".join(filter(None, (machine.machine, wheel.core_name(machine), machine.model))))


def bits(machine: Machine) -> Finding:
    """A Raspberry Pi OS (32-bit) boots a 64-bit kernel, so the kernel's word alone is not enough."""
    if machine.bits == 64:
        return ok("64-bit kernel and programs" if machine.machine in WHEELS_FOR else "64-bit Python")
    kernel = "64-bit" if machine.machine in WHEELS_FOR else "32-bit"
    detail = f"Python is {machine.bits}-bit on a {kernel} kernel ({machine.machine}): onnxruntime is 64-bit only"
    return fail(detail, fix=NEW_SYSTEM)


def python(machine: Machine) -> Finding:
    version = ".".join(map(str, machine.python))
    if machine.python[:2] >= OLDEST_PYTHON:
        return ok(version)
    return fail(
        f"{version}; the agent needs {'.'.join(map(str, OLDEST_PYTHON))} or newer",
        fix=f"sudo apt-get install -y python3.11 python3.11-venv; where apt has none, {NEW_SYSTEM}",
    )


def libc(machine: Machine) -> Finding:
    name, _, version = machine.libc.partition(" ")
    if name != "glibc":
        detail = "the C library is not glibc (musl?): onnxruntime's wheels need glibc"
        return fail(detail, fix="use Debian, Ubuntu or Raspberry Pi OS; in a container, an image based on one of them")
    needed = max(wheel.needed(b"GLIBC_"), default=OLDEST_GLIBC)
    if _numbers(version) < needed:
        return fail(f"glibc {version}; onnxruntime needs {_dotted(needed)} or newer", fix=NEW_SYSTEM)
    return ok(f"glibc {version}; onnxruntime needs {_dotted(needed)}")


def cxx(machine: Machine) -> Finding:
    """The C++ library carries its own versions, and an old system may have one that is too old for the wheel."""
    install = "sudo apt-get install -y libstdc++6"
    found = next((path for pattern in LIBSTDCXX for path in machine.glob(pattern)), None)
    if found is None:
        return fail("no libstdc++.so.6 in the usual places", fix=install)
    offered = max(wheel.versions(machine.root / found, b"GLIBCXX_"), default=())
    needed = max(wheel.needed(b"GLIBCXX_"), default=())
    if offered < needed:
        detail = f"libstdc++ offers GLIBCXX_{_dotted(offered)}, onnxruntime needs {_dotted(needed)}"
        return fail(detail, fix=f"{install}; where it is the newest, {NEW_SYSTEM}")
    return ok(f"libstdc++ offers GLIBCXX_{_dotted(offered)}; onnxruntime needs {_dotted(needed) or 'what it can find'}")


def pages(machine: Machine) -> Finding:
    """A Raspberry Pi 5 has pages of 16 KiB: libraries aligned for 4 KiB do not load there."""
    if "jemalloc" in machine.environ.get("LD_PRELOAD", "") and machine.page_bytes > 4096:
        detail = f"jemalloc is preloaded and most builds of it abort on pages of {machine.page_bytes >> 10} KiB"
        return warn(detail, fix="unset LD_PRELOAD")
    aligned = wheel.alignment()
    if aligned is not None and machine.page_bytes > aligned:
        detail = f"pages of {machine.page_bytes >> 10} KiB, and onnxruntime is aligned for {aligned >> 10}"
        return fail(detail, fix=wheel.upgrade())
    told = f", onnxruntime is aligned for {aligned >> 10}" if aligned else ""
    return ok(f"pages of {machine.page_bytes >> 10} KiB{told}")


def cpu_list(machine: Machine) -> Finding:
    """Some versions of onnxruntime end where they cannot read how many processors there are."""
    counts = {name: processors(machine.read(f"{PROCESSORS}/{name}")) for name in ("possible", "present")}
    if missing := [name for name, count in counts.items() if not count]:
        detail = f"/{PROCESSORS}/{' and '.join(missing)} cannot be read: onnxruntime warns, and older ones crash"
        return warn(detail, fix="sudo mount -t sysfs sysfs /sys; in a container, -v /sys/devices/system/cpu:"
                    "/sys/devices/system/cpu:ro")  # fmt: skip
    return ok(f"{counts['present']} of {counts['possible']} possible are present")


def threads(machine: Machine) -> Finding:
    """The agent runs one thread; benchmarks use more and must know how many there are."""
    online = processors(machine.read(f"{PROCESSORS}/online"))
    if online > machine.allowed:
        return warn(
            f"{machine.allowed} of {online} processors may be used here: benchmarks at more threads will not be true",
            fix=f"taskset -c 0-{online - 1} edgeml-agent run; or take CPUAffinity= and AllowedCPUs= out of the unit",
        )
    pinned = machine.environ.get("OPENBLAS_NUM_THREADS", "1")
    if pinned != "1":
        detail = f"OPENBLAS_NUM_THREADS is {pinned}: numpy starts threads that a device never uses"
        return warn(detail, fix="unset OPENBLAS_NUM_THREADS")
    return ok(f"{machine.allowed} processor{'' if machine.allowed == 1 else 's'}; the agent uses one thread")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
