"""Which processors onnxruntime runs on at all. Opens nothing: the doctor asks it where onnxruntime cannot load."""

from __future__ import annotations

import platform
from importlib import util

from edgeml_runtime.errors import AgentRefused

ROUTE = "serve releases with a numpy variant, or install a 64-bit system (aarch64)"


def refuse_architecture(machine: str = "") -> None:
    """Raise AgentRefused on 32-bit ARM (of this machine by default), for which there is no onnxruntime."""
    machine = machine or platform.machine()
    if machine.startswith(("armv6", "armv7")) or machine == "armhf":
        raise AgentRefused(f"{machine} is 32-bit and onnxruntime is 64-bit only: {ROUTE}")


def only_programs() -> str:
    """Return why nothing but numpy programs runs here, "" where onnxruntime is installed."""
    try:
        refuse_architecture()
    except AgentRefused as error:
        return str(error)
    return "" if util.find_spec("onnxruntime") else f"onnxruntime is not installed here: {ROUTE}"
