"""onnxruntime as it is installed here: its version, what its library asks of the system, whether it loads."""

from __future__ import annotations

import mmap
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from edgeml_runtime.doctor.machine import PROCESSORS, Finding, Machine, fail, ok, warn

REQUIREMENT = "onnxruntime>=1.23,!=1.24.2"  # as in setup.cfg; a test compares them
OLDEST = (1, 23)
IMPORT_TIMEOUT_S = 120.0
CORES = {  # "CPU part" in /proc/cpuinfo of Arm's own designs
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd0d": "Cortex-A77",
    "0xd41": "Cortex-A78",
    "0xd42": "Cortex-A78AE",
}
SIGNALS = {
    signal.SIGILL: "illegal instruction: {core} lacks an instruction that {runtime} uses",
    signal.SIGSEGV: "segmentation fault while {runtime} was loading on {core}",
    signal.SIGABRT: "{runtime} gave up while loading on {core}",
    signal.SIGBUS: "a file of {runtime} could not be read: the disk or the card may be damaged",
    signal.SIGKILL: "the system killed it, most likely for memory",
}


@dataclass(frozen=True)
class Bad:
    """A version that dies on some boards."""

    what: str
    here: Callable[[Machine], bool]


KNOWN_BAD = {
    "1.21.0": Bad(
        "dies of an illegal instruction on Cortex-A53, A57, A72 and A73 (no dot product)",
        lambda machine: machine.is_arm and "asimddp" not in machine.cpuinfo("Features").split(),
    ),
    "1.22.0": Bad(
        "aborts where the kernel lists no processors", lambda machine: not machine.read(f"{PROCESSORS}/possible")
    ),
    "1.24.2": Bad("crashes at exit on Jetson Orin", lambda machine: "Orin" in machine.model),
}


def upgrade() -> str:
    """Return the command that puts a good onnxruntime beside this very Python."""
    return f"{sys.executable} -m pip install --upgrade '{REQUIREMENT}'"


def onnxruntime(machine: Machine) -> Finding:
    version = installed()
    if not version:
        return fail(f"not installed for {sys.executable}", fix=upgrade())
    return judge(version, machine)


def judge(version: str, machine: Machine) -> Finding:
    """Return what is known of `version` on this machine."""
    if bad := KNOWN_BAD.get(version):
        kind = fail if bad.here(machine) else warn
        return kind(f"{version} {bad.what}", fix=upgrade())
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        return warn(f"{version} is older than this agent was tried with ({REQUIREMENT})", fix=upgrade())
    return ok(version)


def imports(machine: Machine) -> Finding:
    """Load it in a child, because a wrong build ends the process with a signal."""
    command = [sys.executable, "-c", "import edgeml_runtime.ort_session"]
    start = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, timeout=IMPORT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        detail = f"loading onnxruntime takes more than {IMPORT_TIMEOUT_S:.0f} s here: the card or disk is very slow"
        return fail(detail, fix="sudo dmesg | grep -iE 'mmc|i/o error'; then try another card")
    if done.returncode == 0:
        return ok(f"onnxruntime loads in a child process in {time.monotonic() - start:.1f} s")
    return explain(done.returncode, done.stderr.decode(errors="replace"), machine)


def explain(code: int, errors: str, machine: Machine) -> Finding:
    """Return in words how a child that loads onnxruntime ended: `code` as subprocess gives it, and its last words."""
    last = (errors.strip().splitlines() or ["it said nothing"])[-1][:300]
    if code >= 0:
        reinstall = f"{sys.executable} -m pip install --force-reinstall --no-cache-dir numpy '{REQUIREMENT}'"
        return fail(f"a child that loads onnxruntime ends with status {code}: {last}", fix=reinstall)
    number = signal.Signals(-code)
    runtime = f"onnxruntime {installed() or '(none installed)'}"
    core = core_name(machine) or machine.machine
    text = SIGNALS.get(number, "{runtime} was ended while loading on {core}").format(runtime=runtime, core=core)
    fixes = {signal.SIGKILL: "close other programs, or add swap: sudo apt-get install -y zram-tools"}
    return fail(f"{number.name}: {text}", fix=fixes.get(number, upgrade()))


def telemetry(machine: Machine) -> Finding:
    """onnxruntime from 1.29 on writes a device id under HOME and opens a connection unless it is told not to."""
    said = machine.environ.get("ORT_DISABLE_TELEMETRY", "")
    if said != "1":
        detail = f"ORT_DISABLE_TELEMETRY is {said!r}: onnxruntime 1.29 and later phone home"
        return fail(detail, fix="export ORT_DISABLE_TELEMETRY=1")
    left = Path(machine.environ.get("HOME", "/nonexistent")) / ".cache/Microsoft/DeveloperTools/.onnxruntime"
    if left.exists():
        detail = f"off here, but another program of this user let onnxruntime write {left}"
        return warn(detail, fix=f"rm -r {left}; and set ORT_DISABLE_TELEMETRY=1 for that program")
    return ok("onnxruntime's is off")


def core_name(machine: Machine) -> str:
    part = machine.cpuinfo("CPU part")
    return CORES.get(part, part and f"core {part}") if machine.is_arm else machine.cpuinfo("model name")


def installed() -> str:
    """Return the version of onnxruntime that this Python would import, "" when there is none."""
    try:
        return metadata.version("onnxruntime")
    except metadata.PackageNotFoundError:
        return ""


def library() -> Path | None:
    """Return the file of onnxruntime that Python loads."""
    try:
        files = metadata.files("onnxruntime") or []
    except metadata.PackageNotFoundError:
        return None
    found = (Path(str(file.locate())) for file in files if "onnxruntime_pybind11_state" in file.name)
    return next((path for path in found if path.suffix == ".so" and path.exists()), None)


def needed(prefix: bytes) -> set[tuple[int, ...]]:
    """Return the symbol versions named `prefix` (GLIBC_, GLIBCXX_) that the installed onnxruntime asks for."""
    path = library()
    return versions(path, prefix) if path else set()


def versions(path: Path, prefix: bytes) -> set[tuple[int, ...]]:
    """Return the symbol versions that stand in the library at `path`; they are plain text in its string table."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = re.findall(rb"\0" + prefix + rb"(\d+(?:\.\d+)+)(?=\0)", content)
    return {tuple(map(int, text.split(b"."))) for text in found}


def alignment() -> int | None:
    """Return the largest memory page that the installed onnxruntime can be loaded on: the least of its segments."""
    path = library()
    if path is None:
        return None
    with path.open("rb") as stream:
        header = stream.read(64)
        if header[:6] != b"\x7fELF\x02\x01":  # 64-bit, little-endian
            return None
        (offset,), (size, count) = struct.unpack_from("<Q", header, 32), struct.unpack_from("<HH", header, 54)
        stream.seek(offset)
        table = stream.read(size * count)
    segments = [struct.unpack_from("<I44xQ", table, size * index) for index in range(count)]
    return min((align for kind, align in segments if kind == 1), default=None)  # PT_LOAD
