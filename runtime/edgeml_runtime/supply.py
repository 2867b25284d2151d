"""Heat and power of this device, as the server's choice of a cohort may ask: from /sys, None where there is nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

SYS = Path("/sys")


@dataclass(frozen=True, kw_only=True)
class Supply:
    """`battery` is the share of a full one; `mains` says whether any supply but a battery is on."""

    temperature_c: float | None = None  # of the hottest zone
    battery: float | None = None
    mains: bool | None = None


def supply(root: Path = SYS) -> Supply:
    """Return what can be read under `root` now (Documentation/ABI/testing/sysfs-class-power, sysfs-class-thermal)."""
    zones = [_number(zone) for zone in root.glob("class/thermal/thermal_zone*/temp")]
    parts = list(root.glob("class/power_supply/*"))
    batteries = [part for part in parts if _text(part / "type") == "Battery" and _text(part / "scope") != "Device"]
    lines = [_number(part / "online") for part in parts if _text(part / "type") != "Battery"]
    shares = [_number(part / "capacity") for part in batteries]
    return Supply(
        temperature_c=max((milli / 1000 for milli in zones if milli is not None), default=None),
        battery=min((share / 100 for share in shares if share is not None), default=None),
        mains=any(lines) if any(line is not None for line in lines) else None,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:  # also a zone that is off: it cannot be read
        return ""


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None
