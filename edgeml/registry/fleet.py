"""The fleet's rows of the index: devices, rollouts, federations, and the server's heartbeat."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from edgeml.errors import NotFound, ServerUnavailable
from edgeml.registry import tables
from edgeml.registry.records import (
    ENDED,
    REQUESTED,
    DeviceRecord,
    FederationOptions,
    FederationRecord,
    Heartbeat,
    Release,
    RolloutOptions,
    RolloutRecord,
)
from edgeml_runtime.wire.plain import from_plain, to_plain

STALE_S = 5.0  # a server that has not written for so long is taken for dead


class Fleet:
    """Requests and their progress. Every method is one short transaction."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    # --- devices

    def devices(self) -> list[DeviceRecord]:
        """Return every device the server has heard of, by id."""
        with tables.reader(self._engine) as connection:
            rows = connection.execute(sa.select(tables.devices).order_by(tables.devices.c.id)).mappings()
            return [from_plain(DeviceRecord, dict(row)) for row in rows]

    def save_devices(self, records: Iterable[DeviceRecord]) -> None:
        """Write `records` in one transaction."""
        rows = [{"reported": None, **to_plain(record)} for record in records]
        if not rows:
            return
        statement = insert(tables.devices)
        changes = {column.name: statement.excluded[column.name] for column in tables.devices.c if column.name != "id"}
        with self._engine.begin() as connection:
            connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=changes), rows)

    def next_seq(self, device: str) -> int:
        """Return the number of the next assignment to `device`; it grows for ever, over restarts too."""
        statement = insert(tables.sequences).values(device=device, seq=1)
        grown = statement.on_conflict_do_update(index_elements=["device"], set_={"seq": tables.sequences.c.seq + 1})
        with self._engine.begin() as connection:
            return int(connection.execute(grown.returning(tables.sequences.c.seq)).scalar_one())

    def keys(self) -> dict[str, str]:
        """Return the public key (hex) that every device was first met with."""
        with tables.reader(self._engine) as connection:
            return {row.device: row.key for row in connection.execute(sa.select(tables.device_keys))}

    def pin_key(self, device: str, key: str) -> str:
        """Keep `key` as that of `device` unless it has one, and return the one it has."""
        table = tables.device_keys
        with self._engine.begin() as connection:
            connection.execute(insert(table).values(device=device, key=key).on_conflict_do_nothing())
            return str(connection.execute(sa.select(table.c.key).where(table.c.device == device)).scalar_one())

    def forget_key(self, device: str) -> None:
        """Drop the key of `device`, which was set up anew: the next one it reports is taken."""
        with self._engine.begin() as connection:
            gone = connection.execute(sa.delete(tables.device_keys).where(tables.device_keys.c.device == device))
        if not gone.rowcount:
            raise NotFound(f"no key of a device {device!r} is known here; `edgeml fleet list` shows the devices")

    # --- rollouts

    def add_rollout(self, release: Release, selector: str, *, devices: Sequence[str], options: RolloutOptions) -> str:
        """Insert a request to ship `release` to `devices` and return its id."""
        waiting = {device: {"state": "WAITING"} for device in devices}
        row = _request("roll", release, options) | {"selector": selector, "devices": waiting}
        with self._engine.begin() as connection:
            connection.execute(sa.insert(tables.rollouts).values(row))
        return str(row["id"])

    def rollout(self, rollout_id: str) -> RolloutRecord:
        return from_plain(RolloutRecord, self._row(tables.rollouts, rollout_id))

    def rollouts(self, *, unfinished: bool = False) -> list[RolloutRecord]:
        """Return rollouts, oldest first; only those still to be worked on when `unfinished`."""
        return [from_plain(RolloutRecord, row) for row in self._rows(tables.rollouts, unfinished)]

    def update_rollout(self, rollout_id: str, *, state: str, devices: Mapping[str, Any], detail: str = "") -> None:
        values = {"state": state, "devices": to_plain(devices), "detail": detail, "ended": _end(state)}
        self._update(tables.rollouts, rollout_id, values)

    # --- federations

    def add_federation(self, release: Release, options: FederationOptions) -> str:
        """Insert a request for federated rounds that start from `release` and return its id."""
        row = _request("fed", release, options) | {"rounds": [], "outcome": {}}
        with self._engine.begin() as connection:
            connection.execute(sa.insert(tables.federations).values(row))
        return str(row["id"])

    def federation(self, federation_id: str) -> FederationRecord:
        return from_plain(FederationRecord, self._row(tables.federations, federation_id))

    def federations(self, *, unfinished: bool = False) -> list[FederationRecord]:
        """Return federations, oldest first; only those still to be worked on when `unfinished`."""
        return [from_plain(FederationRecord, row) for row in self._rows(tables.federations, unfinished)]

    def update_federation(self, record: FederationRecord) -> None:
        """Write the state, rounds, outcome and detail of `record`."""
        plain = to_plain(record)
        values = {name: plain[name] for name in ("state", "rounds", "outcome", "detail")}
        self._update(tables.federations, record.id, values | {"ended": _end(record.state)})

    # --- the server

    def beat(self, heartbeat: Heartbeat) -> None:
        """Write the server's sign of life."""
        values = dataclasses.asdict(heartbeat)
        statement = insert(tables.heartbeats).values(id=1, **values)
        with self._engine.begin() as connection:
            connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))

    def stop_beating(self, pid: int) -> None:
        """Take back the sign of life of the server `pid`, which ends."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(tables.heartbeats).where(tables.heartbeats.c.pid == pid))

    def server_alive(self, now: float | None = None) -> Heartbeat:
        """Return the heartbeat of the server; raise ServerUnavailable when there is no fresh one."""
        now = time.time() if now is None else now
        with tables.reader(self._engine) as connection:
            row = connection.execute(sa.select(tables.heartbeats)).mappings().first()
        if row is None:
            raise ServerUnavailable("no server works on this registry; start one with `edgeml server`")
        found = Heartbeat(pid=row["pid"], host=row["host"], port=row["port"], time=row["time"])
        if now - found.time > STALE_S:
            raise ServerUnavailable(
                f"the server (pid {found.pid}, broker {found.host}:{found.port}) gave no sign of life for "
                f"{now - found.time:.0f} s; start it again with `edgeml server`"
            )
        return found

    def _rows(self, table: sa.Table, unfinished: bool) -> list[dict[str, Any]]:
        query = sa.select(table).order_by(table.c.created)
        if unfinished:
            query = query.where(table.c.state.not_in(ENDED))
        with tables.reader(self._engine) as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def _row(self, table: sa.Table, row_id: str) -> dict[str, Any]:
        with tables.reader(self._engine) as connection:
            row = connection.execute(sa.select(table).where(table.c.id == row_id)).mappings().first()
        if row is None:
            raise NotFound(f"no {table.name.removesuffix('s')} {row_id!r} in this registry")
        return dict(row)

    def _update(self, table: sa.Table, row_id: str, values: Mapping[str, Any]) -> None:
        with self._engine.begin() as connection:
            connection.execute(sa.update(table).where(table.c.id == row_id).values(dict(values)))


def _request(prefix: str, release: Release, options: Any) -> dict[str, Any]:
    """Return the columns every request has. Ids are random: devices remember the jobs of a registry that is gone."""
    return {
        "id": f"{prefix}-{secrets.token_hex(4)}",
        "model": release.model,
        "release": release.release,
        "options": to_plain(options),
        "state": REQUESTED,
        "created": time.time(),
        "detail": "",
    }


def _end(state: str) -> float | None:
    return time.time() if state in ENDED else None
