"""The cores that boards are made of: which instructions each has, and what /proc/cpuinfo calls it.

Identifiers are those of Linux, arch/arm64/include/asm/cputype.h; features those of LLVM 19's processor definitions.
Peaks are in devices/*.toml and, for cores that LLVM has a scheduling model of, in `PEAKS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Pipeline = Literal["in-order", "out-of-order"]
Arch = Literal["aarch64", "x86_64"]


@dataclass(frozen=True)
class Core:
    """One design of a core; `dot_product` is None where revisions of it differ."""

    name: str
    part: tuple[str, str]  # implementer and part of /proc/cpuinfo; "" where x86 says it otherwise
    pipeline: Pipeline
    dot_product: bool | None
    arch: Arch = "aarch64"


def _arm(name: str, part: str, pipeline: Pipeline, dot_product: bool | None) -> Core:
    return Core(name, ("0x41", part), pipeline, dot_product)


CORES = {
    core.name: core
    for core in (
        _arm("Cortex-A35", "0xd04", "in-order", False),
        _arm("Cortex-A53", "0xd03", "in-order", False),
        _arm("Cortex-A55", "0xd05", "in-order", None),
        _arm("Cortex-A57", "0xd07", "out-of-order", False),
        _arm("Cortex-A72", "0xd08", "out-of-order", False),
        _arm("Cortex-A73", "0xd09", "out-of-order", False),
        _arm("Cortex-A75", "0xd0a", "out-of-order", None),
        _arm("Cortex-A76", "0xd0b", "out-of-order", True),
        _arm("Cortex-A77", "0xd0d", "out-of-order", True),
        _arm("Cortex-A78", "0xd41", "out-of-order", True),
        _arm("Cortex-A78AE", "0xd42", "out-of-order", True),
        _arm("Cortex-A78C", "0xd4b", "out-of-order", True),
        _arm("Cortex-A510", "0xd46", "in-order", True),
        _arm("Cortex-A520", "0xd80", "in-order", True),
        _arm("Cortex-A710", "0xd47", "out-of-order", True),
        _arm("Cortex-A715", "0xd4d", "out-of-order", True),
        _arm("Cortex-A720", "0xd81", "out-of-order", True),
        _arm("Cortex-X1", "0xd44", "out-of-order", True),
        _arm("Neoverse-N1", "0xd0c", "out-of-order", True),
        _arm("Neoverse-N2", "0xd49", "out-of-order", True),
        _arm("Neoverse-V1", "0xd40", "out-of-order", True),
        _arm("Neoverse-V2", "0xd4f", "out-of-order", True),
        Core("Gracemont", ("", ""), "out-of-order", True, "x86_64"),
    )
}
BY_PART = {core.part: core for core in CORES.values() if core.part[1]}

# float operations and int8 products a cycle, of LLVM 19's scheduling models run with llvm-mca: FMLA of 4 lanes,
# SMLAL of 8 products, SDOT of 16. A core that LLVM gives the model of another (A73, A78, ...) has no line here
PEAKS = {
    "Cortex-A53": (8, 8),
    "Cortex-A55": (16, 16),
    "Cortex-A57": (8, 8),
    "Cortex-A72": (8, 8),
    "Cortex-A76": (16, 32),
    "Neoverse-N1": (16, 32),
    "Neoverse-N2": (16, 32),
}
