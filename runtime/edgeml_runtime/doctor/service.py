"""The agent's own affairs: its enrolment, the keys it trusts, the clock, the broker."""

from __future__ import annotations

import json
import socket
import time
from datetime import datetime
from pathlib import Path

from edgeml_runtime.config import CONFIG, HTTP, JOB, LOCK, SAMPLES, SLOTS
from edgeml_runtime.doctor.machine import Finding, Machine, fail, ok, warn

EARLIEST = 1_735_689_600  # 2025-01-01: a clock before it was never set (no RTC, no network yet)
SLACK_S = 300.0  # clocks of two machines may differ by this much
BROKER_TIMEOUT_S = 5.0
SET_CLOCK = "sudo timedatectl set-ntp true"
MAX_MANIFEST_BYTES = 4 << 20


def enrolled(machine: Machine) -> Finding:
    if machine.config is None:
        return fail(machine.not_enrolled or f"no device is enrolled in {machine.state}", fix=_enroll(machine))
    return ok(f"{machine.config.device} on board {machine.config.board}")


def key(machine: Machine) -> Finding:
    count = len(machine.config.trusted) if machine.config else 0
    if not count:
        return warn("no key is trusted before the device is enrolled", fix=_enroll(machine))
    return ok(f"{count} trusted key{'' if count == 1 else 's'}")


def clock(machine: Machine) -> Finding:
    said = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(machine.now))
    if machine.now < EARLIEST:
        return fail(f"{said}: it was never set", fix=SET_CLOCK)
    for what, when in (
        ("the agent last ran", _last_run(machine.state)),
        ("its release was signed", _signed(machine.state)),
    ):
        if when is not None and machine.now < when - SLACK_S:
            then = time.strftime("%Y-%m-%d %H:%M", time.gmtime(when))
            return warn(f"{said} is before {then}, when {what}: the clock went back", fix=SET_CLOCK)
    return ok(said)


def broker(machine: Machine) -> Finding:
    if machine.config is None:
        return warn("no broker is known before the device is enrolled", fix=_enroll(machine))
    host, port = machine.config.host, machine.config.port
    where = f"{host}:{port}"
    try:
        socket.create_connection((host, port), timeout=BROKER_TIMEOUT_S).close()
    except socket.gaierror as error:
        again = f"edgeml-agent enroll --state {machine.state} --broker IP:{port} ..., with the address as a number"
        return fail(f"{where} does not answer: the name {host!r} is unknown here ({error.strerror})", fix=again)
    except ConnectionRefusedError:
        return fail(
            f"{where} does not answer: nothing listens on that port",
            fix=f"on {host}: edgeml broker, or sudo systemctl start mosquitto",
        )
    except OSError as error:
        return fail(
            f"{where} does not answer ({error}): network or firewall",
            fix=f"ping -c 3 {host}; on {host}: sudo ufw allow {port}/tcp",
        )
    return ok(f"{where} accepts connections")


def _enroll(machine: Machine) -> str:
    return f"edgeml-agent enroll --state {machine.state} --id NAME --broker HOST:PORT --key HEX --board BOARD"


def _last_run(state: Path) -> float | None:
    """Return when the agent last wrote into its folder."""
    times = [path.stat().st_mtime for name in (CONFIG, JOB, HTTP, LOCK, SAMPLES) if (path := state / name).exists()]
    return max(times, default=None)


def _signed(state: Path) -> float | None:
    """Return the date in the newest installed release, whoever signed it: for display only."""
    dates = [_created(path) for path in (state / SLOTS).glob("?/manifest.json")]
    return max((date for date in dates if date is not None), default=None)


def _created(manifest: Path) -> float | None:
    try:
        with manifest.open("rb") as stream:
            said = json.loads(stream.read(MAX_MANIFEST_BYTES))["signed"]["created"]
        return datetime.fromisoformat(said).timestamp()
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a damaged release is the agent's affair
