"""Benchmarks on devices: the queue of each device, and what the devices have measured."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from edgeml.errors import NotFound
from edgeml.registry import tables
from edgeml.registry.records import ENDED, REQUESTED, BenchPatience, BenchRecord, BenchWork, DeviceMeasurement
from edgeml_runtime.wire.plain import from_plain, to_plain


class Benches:
    """Requests, their progress and their results. Every method is one short transaction."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, device: str, work: BenchWork, options: BenchPatience, *, kind: str = "measure", model: str) -> str:
        """Put a request at the end of the device's queue and return its id; the blobs must be in the registry."""
        row = {
            "id": f"bench-{secrets.token_hex(4)}",
            "device": device,
            "kind": kind,
            "model": model,
            "work": to_plain(work),
            "options": to_plain(options),
            "state": REQUESTED,
            "created": time.time(),
        }
        with self._engine.begin() as connection:
            connection.execute(sa.insert(tables.benches).values(row))
        return str(row["id"])

    def find(self, bench_id: str) -> BenchRecord:
        table = tables.benches
        with tables.reader(self._engine) as connection:
            row = connection.execute(sa.select(table).where(table.c.id == bench_id)).mappings().first()
        if row is None:
            raise NotFound(f"no benchmark {bench_id!r} in this registry")
        return from_plain(BenchRecord, dict(row))

    def waiting(self) -> list[tuple[str, str, bool]]:
        """Return (id, device, canceled) of what is still to be worked on, oldest first."""
        table = tables.benches
        query = sa.select(table.c.id, table.c.device, table.c.canceled).where(table.c.state.not_in(ENDED))
        with tables.reader(self._engine) as connection:
            rows = connection.execute(query.order_by(table.c.created))
            return [(str(row.id), str(row.device), bool(row.canceled)) for row in rows]

    def before(self, record: BenchRecord) -> int:
        """Return how many others of its device are to be done first."""
        queue = [bench_id for bench_id, device, _ in self.waiting() if device == record.device]
        return queue.index(record.id) if record.id in queue else 0

    def cancel(self, bench_id: str) -> None:
        """Say that nobody wants this benchmark any more; the server tells the device."""
        self._update(bench_id, {"canceled": True})

    def update(self, record: BenchRecord) -> None:
        """Write how `record` goes."""
        plain = to_plain(record)
        values = {name: plain[name] for name in ("state", "step", "progress", "reason", "detail", "result")}
        self._update(record.id, values | {"ended": time.time() if record.is_over else None})

    def keep(self, found: Iterable[DeviceMeasurement]) -> None:
        """Keep measurements; one that is there already is replaced."""
        rows = [to_plain(one) for one in found]
        if not rows:
            return
        statement = insert(tables.measurements)
        changes = {column.name: statement.excluded[column.name] for column in tables.measurements.c}
        with self._engine.begin() as connection:
            connection.execute(statement.on_conflict_do_update(index_elements=["bench", "variant"], set_=changes), rows)

    def measurements(self, digests: Sequence[str] | None = None, *, board: str = "") -> list[DeviceMeasurement]:
        """Return what devices have measured, newest first: of graphs with these digests, on `board`, if given."""
        table = tables.measurements
        query = sa.select(table).order_by(table.c.time.desc())
        if digests is not None:
            query = query.where(table.c.digest.in_(list(digests)))
        if board:
            query = query.where(table.c.board == board)
        with tables.reader(self._engine) as connection:
            return [from_plain(DeviceMeasurement, dict(row)) for row in connection.execute(query).mappings()]

    def _update(self, bench_id: str, values: dict[str, Any]) -> None:
        table = tables.benches
        with self._engine.begin() as connection:
            connection.execute(sa.update(table).where(table.c.id == bench_id).values(values))
