"""What the children of the agent have in common: how much they may take, and how they ended, in words."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from pathlib import Path

NICE = 5  # serving gets three quarters of a core that both want
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
LEAST_MEMORY = 256 << 20  # Python and onnxruntime reserve most of this without touching it

SIGNALS = {
    signal.SIGILL: ("IllegalInstruction", "this processor lacks an instruction that onnxruntime uses: another version"),
    signal.SIGKILL: ("Killed", "the system killed it, most likely for memory: choose a smaller variant"),
    signal.SIGSEGV: ("SegmentationFault", "onnxruntime crashed on this model: try another variant or version"),
    signal.SIGBUS: ("BusError", "the model's file could not be read: check the disk"),
    signal.SIGABRT: ("Aborted", "onnxruntime gave up on this model: try another variant or version"),
    signal.SIGXCPU: ("Timeout", "it used up its CPU time: choose a smaller variant"),
}


def ended_by(number: int, said: str = "no message") -> tuple[str, str]:
    """Return why a child was ended by signal `number`: a short typed reason, and words; `said` was its last line."""
    name = signal.Signals(number)
    reason, hint = SIGNALS.get(name, (name.name, f"ended by a signal ({said})"))
    return reason, f"{name.name}: {hint}"


def available_memory() -> int:
    """Return what a child may reserve: the memory that is free, LEAST_MEMORY at least."""
    return max(LEAST_MEMORY, free_memory())


def free_memory() -> int:
    """Return the bytes of memory that are free or can be freed, 0 when the kernel does not tell."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def limit(memory: int, cpu: int) -> None:
    """Hold this process to bytes of private memory and seconds of CPU time; 0: no limit."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if memory:
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))  # cgroup limits are off on stock Pis
    if cpu:
        resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu + 1))


def stand_back(memory: int, cpu: int) -> None:
    """Take little, be the first to go when memory is short, end with the agent; `memory` and `cpu` as in `limit`."""
    os.nice(NICE)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    limit(memory, cpu)
    parent = os.getppid()
    if parent == 1:  # the agent was gone already
        os._exit(1)
    die_with(parent)


def die_with(parent: int) -> None:
    """End when the process `parent`, which started this one, does; at once when it is gone already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def rename(name: str) -> None:
    """Let `ps` and `top` show this process as `name`, 15 characters at most."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name.encode(), 0, 0, 0)
