"""Which processors the agent runs on at all. Opens nothing: the doctor asks it where onnxruntime cannot load."""

from __future__ import annotations

import platform

from edgeml_runtime.errors import AgentRefused


def refuse_architecture(machine: str = "") -> None:
    """Raise AgentRefused on 32-bit ARM (of this machine by default), for which there is no onnxruntime."""
    machine = machine or platform.machine()
    if machine.startswith(("armv6", "armv7")) or machine == "armhf":
        raise AgentRefused(f"{machine} is 32-bit and onnxruntime is 64-bit only: install a 64-bit system (aarch64)")
