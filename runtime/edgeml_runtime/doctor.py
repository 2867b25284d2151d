"""Checks that answer "why does it not work here?" before anything is installed. One entry of CHECKS each."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from edgeml_runtime import measure
from edgeml_runtime.config import Config, read_config
from edgeml_runtime.errors import AgentRefused

KNOWN_BAD = {  # onnxruntime versions that die on some boards
    "1.21.0": "illegal instruction on Cortex-A53 and A72",
    "1.22.0": "aborts where the kernel lists no CPUs",
    "1.24.2": "crashes at exit on Jetson Orin",
}
MIN_FREE_BYTES = 200 << 20
EARLIEST = 1_735_689_600  # 2025-01-01: a clock before it was never set (no RTC, no network yet)
IMPORT_TIMEOUT_S, BROKER_TIMEOUT_S = 60.0, 3.0


@dataclass(frozen=True)
class Check:
    """The answer to one question: `ok`, or what to do."""

    name: str
    ok: bool
    detail: str


def examine(state: Path) -> list[Check]:
    """Return the outcome of every check, for the device enrolled in `state` if there is one."""
    try:
        config: Config | None = read_config(state)
        enrolled = Check("enrolled", True, f"{config.device} on board {config.board}" if config else "")
    except AgentRefused as error:
        config, enrolled = None, Check("enrolled", False, str(error))
    return [enrolled, *(Check(name, *check(state, config)) for name, check in CHECKS.items())]


def _architecture(_state: Path, _config: Config | None) -> tuple[bool, str]:
    try:
        measure.refuse_architecture()
    except AgentRefused as error:
        return False, str(error)
    return sys.maxsize > 2**32, f"{os.uname().machine}, {'64' if sys.maxsize > 2**32 else '32'}-bit Python"


def _python(_state: Path, _config: Config | None) -> tuple[bool, str]:
    return sys.version_info >= (3, 11), sys.version.split()[0]


def _onnxruntime(_state: Path, _config: Config | None) -> tuple[bool, str]:
    version = metadata.version("onnxruntime")
    return version not in KNOWN_BAD, f"{version} {KNOWN_BAD.get(version, '')}".strip()


def _imports(_state: Path, _config: Config | None) -> tuple[bool, str]:
    """In a child, because a wrong build ends the process with a signal."""
    command = [sys.executable, "-c", "import edgeml_runtime.session"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=IMPORT_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return False, f"importing onnxruntime takes more than {IMPORT_TIMEOUT_S:.0f} s here"
    last = (done.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
    return (
        done.returncode == 0,
        "works in a child process" if not done.returncode else f"status {done.returncode} {last}".strip(),
    )


def _disk(state: Path, _config: Config | None) -> tuple[bool, str]:
    there = next(path for path in (state, *state.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    return free >= MIN_FREE_BYTES, f"{free >> 20:,} MiB free in {there}; {MIN_FREE_BYTES >> 20} wanted"


def _clock(_state: Path, _config: Config | None) -> tuple[bool, str]:
    return time.time() > EARLIEST, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def _broker(_state: Path, config: Config | None) -> tuple[bool, str]:
    if config is None:
        return False, "not enrolled"
    where = f"{config.host}:{config.port}"
    try:
        socket.create_connection((config.host, config.port), timeout=BROKER_TIMEOUT_S).close()
    except OSError as error:
        return False, f"{where} does not answer ({error}): check the address, the network and the broker"
    return True, f"{where} accepts connections"


def _key(_state: Path, config: Config | None) -> tuple[bool, str]:
    count = len(config.trusted) if config else 0
    return count > 0, f"{count} trusted key{'' if count == 1 else 's'}"


def _throttled(_state: Path, _config: Config | None) -> tuple[bool, str]:
    bits = measure.environment().get("throttled")
    if bits is None:
        return True, "this machine does not tell"
    return (
        not bits & measure.THROTTLED_NOW,
        f"get_throttled {bits:#x}: check power supply and cooling" if bits else "no",
    )


def _telemetry(_state: Path, _config: Config | None) -> tuple[bool, str]:
    off = os.environ.get("ORT_DISABLE_TELEMETRY") == "1"
    return off, "onnxruntime's is off" if off else "set ORT_DISABLE_TELEMETRY=1: onnxruntime 1.29 and later phone home"


CHECKS: dict[str, Callable[[Path, Config | None], tuple[bool, str]]] = {
    "architecture": _architecture,
    "python": _python,
    "onnxruntime": _onnxruntime,
    "import": _imports,
    "disk": _disk,
    "clock": _clock,
    "broker": _broker,
    "key": _key,
    "throttled": _throttled,
    "telemetry": _telemetry,
}
