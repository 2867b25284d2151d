"""Heat and power as a device reports them, from files like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeml_runtime.supply import Supply, supply


def put(root: Path, **files: str) -> Path:
    for name, content in files.items():
        path = root / "class" / name.replace("__", "/").replace("powersupply", "power_supply")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


ZONES = {"thermal__thermal_zone0__temp": "48312", "thermal__thermal_zone1__temp": "61000"}
MAINS = {"powersupply__AC__type": "Mains", "powersupply__AC__online": "1"}
BATTERY = {"powersupply__BAT0__type": "Battery", "powersupply__BAT0__capacity": "83"}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, Supply()),
        (ZONES, Supply(temperature_c=61.0)),
        (MAINS, Supply(mains=True)),
        ({**MAINS, **BATTERY, "powersupply__AC__online": "0"}, Supply(battery=0.83, mains=False)),
        ({**BATTERY, "powersupply__BAT0__scope": "Device"}, Supply()),  # of a mouse
        ({**BATTERY, "powersupply__BAT0__capacity": ""}, Supply()),
    ],
)
def test_what_the_kernel_says_is_reported_and_nothing_is_guessed(
    tmp_path: Path, files: dict[str, str], expected: Supply
) -> None:
    assert supply(put(tmp_path, **files)) == expected
