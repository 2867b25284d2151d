"""The SQL index: its tables, and an engine several processes can write through at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Boolean, Column, Float, Integer, LargeBinary, String, Table, UniqueConstraint

BUSY_TIMEOUT_S = 30.0
METADATA = sa.MetaData()
JSON = sa.JSON

releases = Table(
    "releases",
    METADATA,
    Column("model", String, primary_key=True),
    Column("release", String, primary_key=True),
    Column("number", Integer, nullable=False),
    Column("created", Float, nullable=False),
    Column("manifest", String, nullable=False),
    Column("manifest_bytes", Integer, nullable=False),
    Column("summary", JSON, nullable=False),
    Column("run_dir", String, nullable=False),
    UniqueConstraint("model", "number"),
)

devices = Table(
    "devices",
    METADATA,
    Column("id", String, primary_key=True),
    Column("board", String, nullable=False, default=""),
    Column("online", Boolean, nullable=False, default=False),
    Column("boot_id", String, nullable=False, default=""),
    Column("last_seen", Float, nullable=False, default=0.0),
    Column("reported", JSON),
    Column("telemetry", JSON, nullable=False, default=dict),
    Column("malformed", Integer, nullable=False, default=0),
    Column("notes", JSON, nullable=False, default=list),
)

device_keys = Table(  # the key that a device was first met with; another one is not believed
    "device_keys",
    METADATA,
    Column("device", String, primary_key=True),
    Column("key", String, nullable=False),
)

sequences = Table(  # the last assignment number of each device; it never goes back
    "sequences",
    METADATA,
    Column("device", String, primary_key=True),
    Column("seq", Integer, nullable=False),
)

rollouts = Table(
    "rollouts",
    METADATA,
    Column("id", String, primary_key=True),
    Column("model", String, nullable=False),
    Column("release", String, nullable=False),
    Column("selector", String, nullable=False),
    Column("options", JSON, nullable=False),
    Column("state", String, nullable=False, index=True),
    Column("devices", JSON, nullable=False),
    Column("created", Float, nullable=False),
    Column("ended", Float),
    Column("detail", String, nullable=False, default=""),
)

federations = Table(
    "federations",
    METADATA,
    Column("id", String, primary_key=True),
    Column("model", String, nullable=False),
    Column("release", String, nullable=False),
    Column("options", JSON, nullable=False),
    Column("state", String, nullable=False, index=True),
    Column("rounds", JSON, nullable=False),
    Column("outcome", JSON, nullable=False),
    Column("created", Float, nullable=False),
    Column("ended", Float),
    Column("detail", String, nullable=False, default=""),
)

journals = Table(  # where every federation under way stands
    "journals",
    METADATA,
    Column("federation", String, primary_key=True),
    Column("phase", String, nullable=False),
    Column("facts", JSON, nullable=False),
    Column("arrays", LargeBinary, nullable=False),
)

uploads = Table(  # updates of rounds that are open
    "uploads",
    METADATA,
    Column("federation", String, primary_key=True),
    Column("round", String, primary_key=True),
    Column("device", String, primary_key=True),
    Column("header", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("took", Float, nullable=False),
)

benches = Table(  # the queue of every device: oldest first, one at a time
    "benches",
    METADATA,
    Column("id", String, primary_key=True),
    Column("device", String, nullable=False, index=True),
    Column("kind", String, nullable=False),
    Column("model", String, nullable=False),
    Column("work", JSON, nullable=False),
    Column("options", JSON, nullable=False),
    Column("state", String, nullable=False, index=True),
    Column("step", String, nullable=False, default=""),
    Column("progress", Float, nullable=False, default=0.0),
    Column("reason", String, nullable=False, default=""),
    Column("detail", String, nullable=False, default=""),
    Column("canceled", Boolean, nullable=False, default=False),
    Column("result", String, nullable=False, default=""),
    Column("created", Float, nullable=False),
    Column("ended", Float),
)

measurements = Table(  # what devices have measured of a model: a row a variant
    "measurements",
    METADATA,
    Column("bench", String, primary_key=True),
    Column("variant", String, primary_key=True),
    Column("device", String, nullable=False),
    Column("board", String, nullable=False),
    Column("model", String, nullable=False),
    Column("digest", String, nullable=False, index=True),
    Column("time", Float, nullable=False),
    Column("agent", String, nullable=False),
    Column("hardware", JSON, nullable=False),
    Column("document", JSON, nullable=False),
)

heartbeats = Table(
    "heartbeats",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("pid", Integer, nullable=False),
    Column("host", String, nullable=False),
    Column("port", Integer, nullable=False),
    Column("time", Float, nullable=False),
)


def open_index(path: Path) -> sa.Engine:
    """Return an engine on the SQLite index at `path`, made if absent, in WAL mode.

    `engine.begin()` takes the write lock at once, so read-then-write inside it is atomic among
    processes; plain `engine.connect()` reads without a lock.
    """
    engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": BUSY_TIMEOUT_S})
    sa.event.listen(engine, "connect", _on_connect)
    sa.event.listen(engine, "begin", _on_begin)
    with engine.begin() as connection:
        METADATA.create_all(connection)
    return engine


def reader(engine: sa.Engine) -> sa.Connection:
    """Return a connection that sees one consistent state and never waits for a writer."""
    return engine.connect().execution_options(reads_only=True)


def _on_connect(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late; see _on_begin
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA secure_delete=ON")  # what a device has sent is gone when its round is
    connection.execute("PRAGMA synchronous=NORMAL")  # WAL: a power cut may lose the last commits, never the index


def _on_begin(connection: sa.Connection) -> None:
    deferred = connection.get_execution_options().get("reads_only", False)
    connection.exec_driver_sql("BEGIN" if deferred else "BEGIN IMMEDIATE")
