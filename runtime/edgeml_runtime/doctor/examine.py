"""The table of checks, and the one verb that goes through it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeml_runtime.config import Config, read_config
from edgeml_runtime.doctor import power, room, service, system, wheel
from edgeml_runtime.doctor.machine import Finding, Machine, fail
from edgeml_runtime.errors import AgentRefused

CHECKS: dict[str, Callable[[Machine], Finding]] = {
    "enrolled": service.enrolled,
    "architecture": system.architecture,
    "bits": system.bits,
    "python": system.python,
    "libc": system.libc,
    "c++": system.cxx,
    "pages": system.pages,
    "cpu list": system.cpu_list,
    "onnxruntime": wheel.onnxruntime,
    "import": wheel.imports,
    "telemetry": wheel.telemetry,
    "threads": system.threads,
    "governor": power.governor,
    "power": power.power,
    "temperature": power.temperature,
    "memory": room.memory,
    "swap": room.swap,
    "memory limits": room.memory_limits,
    "disk": room.disk,
    "clock": service.clock,
    "key": service.key,
    "broker": service.broker,
}


@dataclass(frozen=True)
class Check:
    """One finding under its name."""

    name: str
    finding: Finding

    @property
    def ok(self) -> bool:
        """Whether the agent can work with it; a warning does not stop it."""
        return self.finding.level != "fail"

    def to_plain(self) -> dict[str, Any]:
        found = self.finding
        return {"name": self.name, "ok": self.ok, "level": found.level, "detail": found.detail, "fix": found.fix}


def examine(state: Path, *, root: Path = Path("/")) -> list[Check]:
    """Return the outcome of every check, for the device enrolled in `state` if there is one; files below `root`."""
    config: Config | None = None
    why = ""
    try:
        config = read_config(state)
    except AgentRefused as error:
        why = str(error)
    machine = Machine(state=state, config=config, not_enrolled=why, root=root)
    return [Check(name, ask(check, machine)) for name, check in CHECKS.items()]


def ask(check: Callable[[Machine], Finding], machine: Machine) -> Finding:
    """Return what `check` finds; a folder of another user must not hide what the others find."""
    try:
        return check(machine)
    except OSError as error:
        detail = f"cannot be looked at: {error.filename or machine.state}: {error.strerror}"
        return fail(detail, fix=f"sudo -u $(stat -c %U {machine.state}) edgeml-agent doctor --state {machine.state}")
