"""Cycles of executed blocks by LLVM's scheduling model of a core (llvm-mca 19): ports and latencies, no memory.

Caches, branch prediction and the front end are not in it: cycles are a lower bound that ranks well. LLVM 16, and
-mcpu=cortex-a76 in any version, silently take the A57's model: the A76 is costed as Neoverse N1, its sibling.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, field

from benchmarks.emulation.emulator import Block, Blocks, instructions

MODELS = {"cortex-a53": "cortex-a53", "cortex-a72": "cortex-a72", "cortex-a76": "neoverse-n1"}  # -> -mcpu
FEATURES = "-mattr=+v8.2a,+dotprod,+fullfp16,+lse,+rdm,+crc,+aes,+sha2"
ITERATIONS = 20
COVERED = 0.97  # of a region's instructions; the rest is taken to be like them
BATCH = 2000
VERSION = "LLVM version 19"


@dataclass
class Ports:
    """Cycles of blocks on one core; what was costed once is kept."""

    core: str
    cycles: dict[Block, float] = field(default_factory=dict)
    text: dict[str, str] = field(default_factory=dict)  # instruction word -> assembly

    def cost(self, regions: Iterable[Blocks]) -> list[float]:
        """Return the cycles of each region."""
        kept = [(region, _hot(region)) for region in regions]
        self._learn({block for _, hot in kept for block in hot})
        return [self._scaled(region, hot) for region, hot in kept]

    def _scaled(self, region: Blocks, hot: Blocks) -> float:
        covered = instructions(hot)
        scale = instructions(region) / covered if covered else 0.0
        return scale * sum(times * self.cycles[block] for block, times in hot.items())

    def _learn(self, blocks: Iterable[Block]) -> None:
        new = sorted(set(blocks) - self.cycles.keys())
        self._disassemble(sorted({word for block in new for word in block} - self.text.keys()))
        for start in range(0, len(new), BATCH):
            batch = new[start : start + BATCH]
            self.cycles |= dict(zip(batch, self._run(batch), strict=True))

    def _disassemble(self, words: list[str]) -> None:
        """Learn the assembly of every instruction; one that LLVM does not know becomes a nop."""
        lines = [" ".join(f"0x{word[i : i + 2]}" for i in (6, 4, 2, 0)) for word in words]
        command = ["llvm-mc-19", "--disassemble", "--triple=aarch64", FEATURES]
        done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=True)
        unknown = {int(number) - 1 for number in re.findall(r"<stdin>:(\d+):\d+: warning: invalid", done.stderr)}
        known = [word for index, word in enumerate(words) if index not in unknown]
        texts = [line.strip() for line in done.stdout.splitlines() if line.strip() and not line.strip().startswith(".")]
        self.text |= dict(zip(known, texts, strict=True)) | {words[index]: "nop" for index in unknown}

    def _run(self, blocks: list[Block]) -> list[float]:
        regions = []
        for index, block in enumerate(blocks):
            body = "\n".join(self.text[word] for word in block)
            regions.append(f"# LLVM-MCA-BEGIN b{index}\n{body}\n# LLVM-MCA-END b{index}\n")
        command = ["llvm-mca-19", "-mtriple=aarch64", f"-mcpu={MODELS[self.core]}", FEATURES]
        command += [f"-iterations={ITERATIONS}", "-instruction-info=0", "-resource-pressure=0"]
        command += ["-skip-unsupported-instructions=any"]
        done = subprocess.run(command, input="".join(regions), capture_output=True, text=True, check=False)
        found: list[float] = [0.0] * len(blocks)
        parts = re.split(r"\[\d+\] Code Region - b(\d+)", done.stdout)[1:]
        for name, body in zip(parts[::2], parts[1::2], strict=True):
            if total := re.search(r"Total Cycles:\s+(\d+)", body):
                found[int(name)] = int(total.group(1)) / ITERATIONS
        missing = [index for index, cycles in enumerate(found) if not cycles]
        for index in missing:  # a block of nothing that the model knows: one instruction a cycle
            found[index] = float(len(blocks[index]))
        if len(missing) > len(blocks) // 20:
            raise RuntimeError(f"{self.core}: llvm-mca costed {len(parts) // 2} of {len(blocks)}: {done.stderr[:500]}")
        return found


def version() -> str:
    """Return llvm-mca's version; raise RuntimeError when it is not the one whose models are meant."""
    said = subprocess.run(["llvm-mca-19", "--version"], capture_output=True, text=True, check=True).stdout
    if VERSION not in said:
        raise RuntimeError(f"llvm-mca-19 says {said.strip()!r}, but {VERSION} is needed")
    found = re.search(r"LLVM version (\S+)", said)
    return found.group(1) if found else ""


def _hot(region: Blocks) -> Blocks:
    """Return the blocks of most instructions that make up COVERED of a region."""
    total, kept, hot = instructions(region), 0.0, Blocks()
    for block, times in sorted(region.items(), key=lambda item: (-item[1] * len(item[0]), item[0])):
        if kept >= COVERED * total:
            break
        hot[block] = times
        kept += times * len(block)
    return hot
