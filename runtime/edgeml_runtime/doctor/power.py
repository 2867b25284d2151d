"""Clock governor, power supply, heat: what makes a healthy board slow."""

from __future__ import annotations

import re
import shutil
import subprocess

from edgeml_runtime.doctor.machine import PROCESSORS, Finding, Machine, fail, ok, warn
from edgeml_runtime.hardware import throttling

OWN_GOVERNORS = ("intel_pstate", "amd-pstate", "amd-pstate-epp")  # their "powersave" goes up to full speed
THROTTLED = "sys/devices/platform/soc/soc:firmware/get_throttled"
HISTORY = 16
ASK_S = 5.0
WARM_C, HOT_C = 75.0, 80.0  # a Raspberry Pi throttles at 80
SUPPLY = (
    "use the board's own power supply and a short, thick cable (Pi 4: 5.1 V 3 A, Pi 5: 5.1 V 5 A), then: sudo reboot"
)
COOLING = "fit a heat sink or a fan and open the case; watch: cat /sys/class/thermal/thermal_zone0/temp"


def governor(machine: Machine) -> Finding:
    cores = machine.glob(f"{PROCESSORS}/cpu[0-9]*/cpufreq")
    named = sorted({name for core in cores if (name := machine.read(f"{core}/scaling_governor"))})
    if not named:
        return ok("this machine does not tell")
    own = machine.read(f"{cores[0]}/scaling_driver") in OWN_GOVERNORS
    if "powersave" in named and not own:
        detail = f"powersave on {len(cores)} processors: the clock stays at {_mhz(machine, cores[0], 'min')} MHz"
        return warn(detail, fix=f"echo ondemand | sudo tee /{PROCESSORS}/cpu*/cpufreq/scaling_governor")
    allowed, possible = (machine.number(f"{cores[0]}/{name}") for name in ("scaling_max_freq", "cpuinfo_max_freq"))
    if allowed is not None and possible is not None and allowed < possible:
        detail = f"{', '.join(named)}, but capped at {allowed // 1000} of {possible // 1000} MHz"
        return warn(detail, fix=f"echo {possible} | sudo tee /{PROCESSORS}/cpu*/cpufreq/scaling_max_freq")
    return ok(", ".join(named))


def power(machine: Machine) -> Finding:
    said, silent = _throttle_bits(machine)
    if silent:
        return warn(silent, fix="sudo usermod -aG video $(id -un), then log in again")
    if not re.fullmatch("(0x)?[0-9a-fA-F]{1,8}", said):
        return ok("this machine does not tell")
    bits = int(said, 16)
    now, before = _words(bits), _words(bits >> HISTORY)
    fix = SUPPLY if bits & (1 << 0 | 1 << HISTORY) else COOLING
    if now:
        return fail(f"now: {now} (get_throttled {bits:#x})", fix=fix)
    if before:
        return warn(f"since boot: {before}, not now (get_throttled {bits:#x})", fix=fix)
    return ok("no under-voltage and no throttling since boot")


def temperature(machine: Machine) -> Finding:
    zones = [machine.number(path) for path in machine.glob("sys/class/thermal/thermal_zone*/temp")]
    known = [milli / 1000 for milli in zones if milli is not None]
    if not known:
        return ok("this machine does not tell")
    hottest = max(known)
    if hottest >= HOT_C:
        return fail(f"{hottest:.1f} C: at {HOT_C:.0f} C a Raspberry Pi lowers its clock", fix=COOLING)
    if hottest >= WARM_C:
        return warn(f"{hottest:.1f} C, {HOT_C - hottest:.1f} below where a Raspberry Pi lowers its clock", fix=COOLING)
    return ok(f"{hottest:.1f} C")


def _throttle_bits(machine: Machine) -> tuple[str, str]:
    """Return the firmware's bits from the kernel's file or from `vcgencmd`, and why it would not say them."""
    text, program = machine.read(THROTTLED), shutil.which("vcgencmd", path=machine.environ.get("PATH"))
    if text or program is None:
        return text, ""
    try:
        done = subprocess.run([program, "get_throttled"], capture_output=True, text=True, timeout=ASK_S, check=False)
    except subprocess.TimeoutExpired:
        return "", f"vcgencmd does not answer within {ASK_S:.0f} s"
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()[-1]
        return "", f"vcgencmd may not ask the firmware: {last[:200]}"
    return done.stdout.strip().partition("=")[2], ""


def _words(bits: int) -> str:
    return ", ".join(throttling(bits))


def _mhz(machine: Machine, core: str, which: str) -> str:
    clock = machine.number(f"{core}/scaling_{which}_freq") or machine.number(f"{core}/cpuinfo_{which}_freq")
    return f"{clock // 1000}" if clock else "its lowest"
