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


ARM = "0x41"  # the implementer of every core that Arm designed
IN: Pipeline = "in-order"
OUT: Pipeline = "out-of-order"

CORES = {
    core.name: core
    for core in (
        Core("Cortex-A35", (ARM, "0xd04"), IN, False),
        Core("Cortex-A53", (ARM, "0xd03"), IN, False),
        Core("Cortex-A55", (ARM, "0xd05"), IN, None),
        Core("Cortex-A57", (ARM, "0xd07"), OUT, False),
        Core("Cortex-A72", (ARM, "0xd08"), OUT, False),
        Core("Cortex-A73", (ARM, "0xd09"), OUT, False),
        Core("Cortex-A75", (ARM, "0xd0a"), OUT, None),
        Core("Cortex-A76", (ARM, "0xd0b"), OUT, True),
        Core("Cortex-A77", (ARM, "0xd0d"), OUT, True),
        Core("Cortex-A78", (ARM, "0xd41"), OUT, True),
        Core("Cortex-A78AE", (ARM, "0xd42"), OUT, True),
        Core("Cortex-A78C", (ARM, "0xd4b"), OUT, True),
        Core("Cortex-A510", (ARM, "0xd46"), IN, True),
        Core("Cortex-A520", (ARM, "0xd80"), IN, True),
        Core("Cortex-A710", (ARM, "0xd47"), OUT, True),
        Core("Cortex-A715", (ARM, "0xd4d"), OUT, True),
        Core("Cortex-A720", (ARM, "0xd81"), OUT, True),
        Core("Cortex-X1", (ARM, "0xd44"), OUT, True),
        Core("Neoverse-N1", (ARM, "0xd0c"), OUT, True),
        Core("Neoverse-N2", (ARM, "0xd49"), OUT, True),
        Core("Neoverse-V1", (ARM, "0xd40"), OUT, True),
        Core("Neoverse-V2", (ARM, "0xd4f"), OUT, True),
        Core("Gracemont", ("", ""), OUT, True, "x86_64"),
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
