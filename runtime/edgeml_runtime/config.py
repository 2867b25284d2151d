"""What an agent is told at enrolment and keeps in its state folder, and the lock on that folder.

agent.json   id, broker, trusted keys, board, policy      http.json   where the running agent listens
job.json     the last assignment and how far it came      lock        held while an agent runs
bench.json    the last benchmark and how far it came
blobs/ slots/ bench/ tasks/ kept/ feedback/ personal/ samples.db
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeml_runtime.download import free_bytes, sync_folder
from edgeml_runtime.errors import AgentRefused, MalformedMessage, StorageFull
from edgeml_runtime.wire import topics
from edgeml_runtime.wire.plain import from_plain, to_plain
from edgeml_runtime.wire.tasks import KINDS

CONFIG, HTTP, JOB, LOCK, BENCH_JOB = "agent.json", "http.json", "job.json", "lock", "bench.json"
BLOBS, SLOTS, SAMPLES, BENCH = "blobs", "slots", "samples.db", "bench"
TASKS, KEPT, FEEDBACK, PERSONAL = "tasks", "kept", "feedback", "personal"
TELEMETRY_S = 5.0
MAX_CONFIG_BYTES = 64 << 10
_HOURS = re.compile(r"([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d")


@dataclass(frozen=True, kw_only=True)
class BenchLimits:
    """When a benchmark may run here, and how much of the device it may take. Serving comes first in any case."""

    max_s: float = 600.0  # of running, all jobs of one task together
    max_bytes: int = 256 << 20  # of graphs and rows, as they travel and each one unpacked
    max_rate: float = 1.0  # predictions a second: with more a benchmark waits, and one that runs is interrupted
    min_free_bytes: int = 64 << 20  # of memory, to begin
    max_temperature_c: float = 80.0
    quiet_hours: tuple[str, ...] = ()  # "22:00-06:00", local time: no benchmark begins or runs then

    def __post_init__(self) -> None:
        for hours in self.quiet_hours:
            if not _HOURS.fullmatch(hours):
                raise AgentRefused(f'quiet_hours has {hours!r}: write "22:00-06:00"')


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What the device's owner lets a server ask of its data and of its time; the server cannot change it."""

    accept: tuple[str, ...] = (*KINDS, "bench")  # kinds of task
    min_rows: int = 10  # fewer rows say too much about each of them
    max_update_bytes: int = 16 << 20
    max_kept_bytes: int = 64 << 20  # of all federations together, between their rounds
    max_task_bytes: int = 64 << 20  # of a graph and its parameters
    max_task_memory: int = 0  # bytes that a run may reserve; 0: what is free
    max_task_s: float = 600.0  # of one run
    tasks_per_day: int = 2000  # runs over local rows in any 24 hours; 0: as many as come
    operators: tuple[str, ...] = ()  # that a graph may use; empty: the list of edgeml_runtime.vetting
    templates: tuple[str, ...] = ()  # sha256 of the graphs that may run; empty: any that passes
    task_keys: tuple[str, ...] = ()  # public keys (hex) that may sign tasks; empty: every trusted one
    clip_norm: float = 0.0  # the longest update that may leave, whatever the server asks; 0: any
    noise: float = 0.0  # the least standard deviation of the noise on each value of an update, in clip_norms
    personal: bool = True  # a model with this device's own tensors may answer, see edgeml_runtime.personal
    secure: bool = False  # answers leave under masks only: the server learns their sum, see edgeml_runtime.secagg
    peers: tuple[str, ...] = ()  # public keys (hex) of devices to be summed with under masks; empty: any
    bench: BenchLimits = field(default_factory=BenchLimits)

    def __post_init__(self) -> None:
        if unknown := sorted({*self.accept} - {*KINDS, "bench"}):
            raise AgentRefused(f"accept has {unknown[0]!r}; tasks are {', '.join((*KINDS, 'bench'))}")
        if self.noise and not self.clip_norm:
            raise AgentRefused(f"noise {self.noise:g} counts in clip_norms, and clip_norm is 0: set it, too")
        for name in ("templates", "task_keys", "peers"):
            if wrong := [one for one in getattr(self, name) if not _is_key(one)]:
                raise AgentRefused(f"{name} has {wrong[0][:80]!r}: write all of its 64 hexadecimal digits")
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, int | float) and not 0 <= value < math.inf:
                raise AgentRefused(f"{setting.name} is {value:g}: give a number of at least 0")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One enrolled device."""

    device: str
    host: str
    port: int
    trusted: tuple[str, ...]  # public keys, hex
    board: str
    http_port: int = 0  # of the local interface; 0 takes a free one
    telemetry_s: float = TELEMETRY_S
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        topics.check_device_id(self.device)
        if not 0 < self.port < 65536 or not 0 <= self.http_port < 65536:
            raise AgentRefused(f"ports {self.port} and {self.http_port}: use 1 to 65535 (HTTP: 0 takes a free one)")
        if not self.trusted or not all(_is_key(key) for key in self.trusted):
            raise AgentRefused(
                "a trusted key is 64 hexadecimal digits: copy it from the line that `edgeml server` prints"
            )
        if self.telemetry_s <= 0:
            raise AgentRefused(f"telemetry_s is {self.telemetry_s:g}: give a positive number of seconds")


def default_state() -> Path:
    """Return the folder agents use when none is named: systemd's, the environment's, or one of this user."""
    named = os.environ.get("EDGEML_STATE") or os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(named) if named else Path.home() / ".local/state/edgeml"


def enroll(state: Path, config: Config) -> None:
    """Keep `config` in `state`; a running agent there must be restarted to see it."""
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(state / CONFIG, json.dumps(to_plain(config), indent=2).encode() + b"\n")
    except OSError as error:
        raise AgentRefused(f"{state}: {error.strerror}; choose another folder with --state") from error


def read_config(state: Path) -> Config:
    """Return the device that is enrolled in `state`; raise AgentRefused when none is."""
    path = state / CONFIG
    try:
        with path.open("rb") as stream:
            return from_plain(Config, json.loads(stream.read(MAX_CONFIG_BYTES)))
    except FileNotFoundError as error:
        raise AgentRefused(
            f"no device is enrolled in {state}: run `edgeml-agent enroll` first, or name its --state"
        ) from error
    except OSError as error:
        raise AgentRefused(f"{path}: {error.strerror}; run as the user that enrolled it") from error
    except (ValueError, MalformedMessage) as error:
        raise AgentRefused(f"{path}: {error}; correct it or enroll again") from error


def lock(state: Path) -> int:
    """Return an open file that holds the folder's lock until it is closed; raise AgentRefused when another has it."""
    file = os.open(state / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(file, 20).decode(errors="replace").strip() or "unknown"
        os.close(file)
        raise AgentRefused(
            f"another agent (pid {holder}) runs on {state}: stop it, or enroll a second device with its own --state"
        ) from error
    os.ftruncate(file, 0)
    os.write(file, str(os.getpid()).encode())
    return file


def is_locked(state: Path) -> bool:
    """Return whether an agent runs on `state`."""
    try:
        file = os.open(state / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the file at `path` by `data`, whole or not at all; raise StorageFull when it does not fit."""
    fresh = path.with_name(path.name + ".new")
    try:
        with fresh.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        fresh.unlink(missing_ok=True)
        free = free_bytes(path.parent)
        raise StorageFull(
            f"{path.name} needs {len(data):,} bytes and {path.parent} has {free:,} free; free some space"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a small JSON file of ours, {} when there is none or it is not readable as one."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_key(text: str) -> bool:
    return len(text) == 64 and all(digit in "0123456789abcdef" for digit in text)
