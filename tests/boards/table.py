"""The table of boards in docs/devices.md: `python -m tests.boards.table` writes it anew."""

from __future__ import annotations

import re
from pathlib import Path

from edgeml.devices import DeviceProfile, shipped_boards

PAGE = Path(__file__).resolve().parents[2] / "docs/devices.md"
COLUMNS = ("board", "core", "GHz", "RAM MB", "MAC a cycle: fp32, int8", "int8 dot product", "copy MB/s")
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"


def devices_table_row(board: DeviceProfile) -> str:
    cores = f"{board.cores} × {board.core}" if board.core else "-"
    usable = f" ({board.usable_ram_mb} usable)" if board.usable_ram_mb else ""
    peaks = f"{board.fp32_flops_per_cycle // 2}, {board.int8_macs_per_cycle}" if board.fp32_flops_per_cycle else "-"
    dot = {None: "-", True: "yes", False: "no"}[board.dot_product]
    facts = (
        cores,
        board.frequency_ghz or "-",
        f"{board.ram_mb or '-'}{usable}",
        peaks,
        dot,
        board.bandwidth_mb_s or "-",
    )
    return f"| `{board.name}` | {' | '.join(map(str, facts))} |"


def devices_table() -> str:
    return HEAD + "".join(f"{devices_table_row(board)}\n" for board in shipped_boards().values())


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(
        re.sub(r"\| board \|.*?\n(?=\n)", devices_table(), text, count=1, flags=re.DOTALL), encoding="utf-8"
    )
