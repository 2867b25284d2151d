"""The journal of federations under way: what a restarted server needs, dropped when the federation ends.

One row a federation (its phase, its facts, its arrays) and one row an update of its open rounds. The updates of
single devices are deleted as soon as their round is over.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from edgeml.registry import tables


@dataclass(frozen=True, kw_only=True)
class Page:
    """Where a federation stands. `facts` are JSON values; `arrays` are safetensors bytes, None: as they were."""

    phase: str
    facts: dict[str, Any]
    arrays: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Upload:
    """One update as it arrived, with the seconds it took since its round was opened.

    Of a masked round also what a device has said, by phase: its `round` is then `ROUND/PHASE`, and there is no header.
    """

    round: str
    device: str
    header: bytes
    body: bytes
    took: float


class Journals:
    """Every method is one short transaction, so a page and the updates that go with it never disagree."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def write(self, federation_id: str, page: Page, uploads: Iterable[Upload] = (), *, anew: bool = False) -> None:
        """Replace the federation's page and add `uploads`; with `anew`, those from before are dropped.

        An update stays as it first came; what a device says again (new keys) takes the place of what it said before.
        """
        table, ups = tables.journals, tables.uploads
        values: dict[str, Any] = {"phase": page.phase, "facts": page.facts}
        if page.arrays is not None:
            values["arrays"] = page.arrays
        first = insert(table).values(federation=federation_id, **{"arrays": b"", **values})
        rows = [{"federation": federation_id, **vars(upload)} for upload in uploads]
        put, one = insert(ups), ["federation", "round", "device"]
        newer = {name: put.excluded[name] for name in ("body", "took")}
        put = put.on_conflict_do_update(index_elements=one, set_=newer, where=ups.c.header == b"")
        with self._engine.begin() as connection:
            connection.execute(first.on_conflict_do_update(index_elements=["federation"], set_=values))
            if anew:
                connection.execute(sa.delete(ups).where(ups.c.federation == federation_id))
            if rows:
                connection.execute(put, rows)

    def read(self, federation_id: str) -> tuple[Page | None, list[Upload]]:
        """Return the federation's page and the updates of its open rounds, in the order in which they came."""
        table, ups = tables.journals, tables.uploads
        with tables.reader(self._engine) as connection:
            row = connection.execute(sa.select(table).where(table.c.federation == federation_id)).mappings().first()
            query = sa.select(ups).where(ups.c.federation == federation_id).order_by(sa.literal_column("rowid"))
            rows = connection.execute(query).mappings().all()
        page = None if row is None else Page(phase=row["phase"], facts=row["facts"], arrays=row["arrays"])
        return page, [Upload(**{name: up[name] for name in Upload.__dataclass_fields__}) for up in rows]

    def known(self) -> set[str]:
        """Return the federations that have a page."""
        with tables.reader(self._engine) as connection:
            return {str(row[0]) for row in connection.execute(sa.select(tables.journals.c.federation))}

    def forget(self, federation_id: str) -> None:
        """Drop everything of a federation that has ended."""
        with self._engine.begin() as connection:
            for table in (tables.journals, tables.uploads):
                connection.execute(sa.delete(table).where(table.c.federation == federation_id))
