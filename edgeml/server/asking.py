"""Questions about a candidate, put to the fleet one study after the other: how well it does there, what int8 must hold.

A study that the fleet does not answer leaves a finding without a result and with the reason; the gates decide.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeml.registry import Upload
from edgeml.server.course import Arrays, GiveUp, Kept, RoundEnd, Shop, Work, reasons
from edgeml.server.learner import Asked, Finding
from edgeml.server.synchronous import Synchronous
from edgeml.tasks.study import Study
from edgeml_runtime.wire.plain import from_plain, to_plain

INNER = "asking."
ToWork = Callable[[str, Study], Work]  # name and study of a question -> what a course goes through


@dataclass(frozen=True, kw_only=True)
class Tally(Asked):
    """How a study stands, and how it ended; its result is made of the sums, which are arrays."""

    name: str
    taken: int = 0  # sums


class Asking:
    """A course of surveys; `findings` has what came of each that is over."""

    def __init__(self, studies: Mapping[str, Study], work: ToWork, *, shop: Shop, now: float) -> None:
        self._studies, self._work, self._shop = dict(studies), work, shop
        self._tallies: list[Tally] = []  # of the studies that are over
        self._sums: dict[str, np.ndarray] = {}  # of them
        self.findings: dict[str, Finding] = {}
        self._inner: Synchronous | None = None
        self._tally = Tally(name="")
        self._last: list[str] = []  # why its last round was abandoned
        self._next(now)

    @property
    def finished(self) -> bool:
        return self._inner is None

    @property
    def open_rounds(self) -> tuple[str, ...]:
        return () if self._inner is None else self._inner.open_rounds

    @property
    def parameters(self) -> Arrays:
        return {}

    def serve(self, now: float) -> None:
        """Nothing: between two rounds nobody is at work."""

    def tick(self, now: float) -> RoundEnd | GiveUp | None:
        """Go on; a round's end is an event for the journal, and no study's failure is the federation's."""
        if self._inner is None:
            return None
        if self._inner.finished:
            return self._end("", now)
        event = self._inner.tick(now)
        if isinstance(event, GiveUp):
            return self._end("; ".join([event.reason, *self._last]), now)
        if isinstance(event, RoundEnd):
            done, tally = event.record, self._tally
            self._last = reasons(done, run=tally.name, quorum=self._inner.survey.plan.min_devices)
            self._tally = dataclasses.replace(
                tally,
                devices=done.participants or tally.devices,
                rows=done.rows or tally.rows,
                rounds=tally.rounds + 1,
                bytes_up=tally.bytes_up + done.bytes_up,
                bytes_down=tally.bytes_down + done.bytes_down,
                seconds=tally.seconds + done.seconds,
            )
        return event

    def uploaded(self, device: str, round_id: str, payload: bytes, *, now: float) -> None:
        """Take a header or a block of an answer."""
        if self._inner is not None:
            self._inner.uploaded(device, round_id, payload, now=now)

    def said(self, device: str, round_id: str, payload: bytes, *, now: float) -> None:
        if self._inner is not None:
            self._inner.said(device, round_id, payload, now=now)

    def came(self, device: str, now: float, *, live: bool) -> None:
        if self._inner is not None:
            self._inner.came(device, now, live=live)

    def went(self, device: str, now: float) -> None:
        if self._inner is not None:
            self._inner.went(device, now)

    @property
    def asking(self) -> bool:
        return self._inner is not None and self._inner.asking

    def ask(self) -> None:
        if self._inner is not None:
            self._inner.ask()

    def served(self, digest: str, count: int) -> None:
        if self._inner is not None:
            self._inner.served(digest, count)

    def resend(self) -> None:
        if self._inner is not None:
            self._inner.resend()

    # --- the journal

    def facts(self, now: float) -> dict[str, Any]:
        """Return JSON values that `resume` takes."""
        inner = None if self._inner is None else self._inner.facts(now)
        return {"over": to_plain(self._tallies), "tally": to_plain(self._tally), "inner": inner}

    def arrays(self) -> Arrays:
        inner = {} if self._inner is None else self._inner.arrays()
        return {**self._sums, **{INNER + name: value for name, value in inner.items()}}

    def kept(self) -> Kept:
        return Kept([], anew=True) if self._inner is None else self._inner.kept()

    def resume(self, facts: Mapping[str, Any], arrays: Arrays, uploads: Sequence[Upload], *, now: float) -> None:
        """Go on where an earlier server stood: what is over is made again of its sums."""
        for plain in facts["over"]:
            tally = from_plain(Tally, plain)
            prefix = f"{tally.name}."
            sums = {name: value for name, value in arrays.items() if name.startswith(prefix)}
            study = self._studies.pop(tally.name)
            for i in range(tally.taken):
                study = study.take({n.removeprefix(f"{prefix}{i}."): v for n, v in sums.items() if _is(n, prefix, i)})
            self._close(tally, study, sums)
        self._tally = from_plain(Tally, facts["tally"])
        self._next(now)
        if self._inner is not None and facts["inner"] is not None:
            mine = {name.removeprefix(INNER): value for name, value in arrays.items() if name.startswith(INNER)}
            self._inner.resume(facts["inner"], mine, uploads, now=now)

    # --- one study

    def _next(self, now: float) -> None:
        name = next(iter(self._studies), "")
        self._inner = Synchronous(self._work(name, self._studies[name]), self._shop, now) if name else None
        if self._tally.name != name:
            self._tally = Tally(name=name)

    def _end(self, why: str, now: float) -> RoundEnd | GiveUp | None:
        assert self._inner is not None
        name, survey = self._tally.name, self._inner.survey
        sums = {f"{name}.{i}.{out}": value for i, one in enumerate(survey.sums) for out, value in one.items()}
        self._close(dataclasses.replace(self._tally, why=why, taken=len(survey.sums)), survey.study, sums)
        del self._studies[name]
        self._next(now)
        return None

    def _close(self, tally: Tally, study: Study, sums: Mapping[str, np.ndarray]) -> None:
        self._tallies.append(tally)
        self._sums |= sums
        cost = {part.name: getattr(tally, part.name) for part in dataclasses.fields(Asked)}
        self.findings[tally.name] = Finding(result=None if tally.why else study.result(), **cost)


def _is(name: str, prefix: str, number: int) -> bool:
    return name.startswith(f"{prefix}{number}.")
