"""A broker for the lab, on the loopback interface only: mosquitto when it is installed, else amqtt.

No passwords, no TLS, no persistence: whoever can reach the port can publish. Devices trust
signatures and not the broker, but a fleet outside one machine needs a mosquitto with certificates.
"""

from __future__ import annotations

import contextlib
import ctypes
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from edgeml.errors import BrokerUnavailable

Kind = Literal["mosquitto", "embedded"]
Choice = Literal["auto", "mosquitto", "embedded"]  # auto: mosquitto where it is installed
HOST = "127.0.0.1"
START_TIMEOUT_S, STOP_TIMEOUT_S = 15.0, 5.0
SBIN = "/usr/sbin"  # Debian puts mosquitto there, outside a user's PATH
_ATTEMPTS = 3  # a free port may be taken by someone else before the broker binds it
_LIBC, _PR_SET_PDEATHSIG = ctypes.CDLL(None), 1

_CONF = """\
listener {port} {host}
user {user}
allow_anonymous true
persistence false
set_tcp_nodelay true
max_packet_size 200000
max_inflight_messages 100
max_queued_messages 2000
max_queued_bytes 67108864
log_type error
log_type warning
"""


class Broker:
    """A running broker process; `stop`, or leaving the `with` block, ends it. It dies with its parent's thread."""

    def __init__(self, kind: Kind, port: int, *, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.kind, self.host, self.port = kind, HOST, port
        self._process, self._folder = process, folder

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        """End the process and remove its folder; a second call does nothing."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def wait(self) -> int:
        """Return the exit status of the process once it has ended."""
        return self._process.wait()

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def start_broker(port: int = 0, *, kind: Choice = "auto") -> Broker:
    """Return a broker that accepts connections on `port` of the loopback interface; 0 takes a free one.

    Call it from the main thread: the broker ends when the thread that started it ends. Raises
    BrokerUnavailable when it does not come up.
    """
    chosen: Kind = kind if kind != "auto" else ("mosquitto" if find_mosquitto() else "embedded")
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _start(chosen, port or _free_port())
        except BrokerUnavailable:
            if port or attempt == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def find_mosquitto() -> str | None:
    """Return the path of the mosquitto program, or None when it is not installed."""
    return shutil.which("mosquitto", path=os.pathsep.join([os.environ.get("PATH", ""), SBIN]))


def _mosquitto(port: int, folder: Path) -> list[str]:
    program = find_mosquitto()
    if program is None:
        raise BrokerUnavailable("mosquitto is not installed: apt install mosquitto, or use the embedded broker")
    conf = folder / "mosquitto.conf"
    conf.write_text(_CONF.format(port=port, host=HOST, user=getpass.getuser()), encoding="utf-8")
    return [program, "-c", str(conf)]


def _embedded(port: int, _folder: Path) -> list[str]:
    return [sys.executable, "-m", "edgeml.transport.broker_embedded", HOST, str(port)]


COMMANDS: dict[Kind, Callable[[int, Path], list[str]]] = {"mosquitto": _mosquitto, "embedded": _embedded}


def _start(kind: Kind, port: int) -> Broker:
    if not _is_free(port):  # or whoever holds it would answer in the new broker's place
        raise BrokerUnavailable(f"{kind} on {HOST}:{port}: the port is taken; choose another, or end who holds it")
    folder = Path(tempfile.mkdtemp(prefix="edgeml-broker-"))
    complaints = folder / "stderr"
    try:
        command = COMMANDS[kind](port, folder)
        with complaints.open("wb") as stderr:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, preexec_fn=die_with_parent
            )
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    broker = Broker(kind, port, process=process, folder=folder)
    deadline = time.monotonic() + START_TIMEOUT_S
    while broker.alive and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return broker
        time.sleep(0.01)
    lines = complaints.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    state = "did not accept connections" if broker.alive else f"ended with status {process.returncode}"
    broker.stop()
    raise BrokerUnavailable(f"{kind} on {HOST}:{port} {state}: {lines[-1] if lines else 'it said nothing'}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as brokers do, after a restart
        try:
            listener.bind((HOST, port))
        except OSError:
            return False
    return True


def die_with_parent() -> None:
    """Make the kernel end this process when its parent's thread is gone, kill -9 included: a `preexec_fn`.

    A change of user would undo this, so mosquitto's configuration names the user it already has.
    """
    os.setpgid(0, 0)  # Ctrl-C on the terminal is for the parent, which stops the broker last
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
