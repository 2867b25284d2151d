"""Documents as the page reads them: the summary of a build, or the document of `edgeml bench -o`.

    summary | bench document -read-> Reading: forms of the model, places it was predicted for, devices it ran on

A value that is in no document is absent here, and shown as not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Document = Mapping[str, Any]
HERE = "this-machine"


@dataclass(frozen=True, kw_only=True)
class Form:
    """One variant: what it is, how good it is, what it took. `measured` is Benchmark.plain(), or empty."""

    name: str
    measured: Document = field(default_factory=dict)
    bytes: int | None = None
    score: float | None = None
    score_low: float | None = None  # 95 % bound from below
    passed: bool | None = None
    work: Document = field(default_factory=dict)
    told: Document = field(default_factory=dict)  # its entry in the summary

    @property
    def timed(self) -> bool:
        return bool(self.measured.get("p50_ms"))

    @property
    def valid(self) -> bool:
        """Whether its measurement may be used."""
        return self.timed and bool(self.measured.get("valid", True))


@dataclass(frozen=True, kw_only=True)
class Place:
    """A board: its facts, what is predicted for each variant, and which one it runs ("" where nothing was chosen)."""

    name: str
    profile: Document = field(default_factory=dict)
    limits: Document = field(default_factory=dict)
    predictions: Mapping[str, Document] = field(default_factory=dict)
    chosen: str = ""
    fits: bool | None = None
    reason: str = ""

    @property
    def title(self) -> str:
        return str(self.profile.get("title") or self.name)


@dataclass(frozen=True, kw_only=True)
class OnDevice:
    """A measurement that came back from a real device."""

    device: str
    board: str
    variant: str
    measured: Document


@dataclass(frozen=True, kw_only=True)
class Reading:
    """All that a page about one model shows of its variants."""

    model: str
    metric: str = ""
    forms: Sequence[Form] = ()
    places: Sequence[Place] = ()
    devices: Sequence[OnDevice] = ()

    @property
    def names(self) -> list[str]:
        return [form.name for form in self.forms]

    @property
    def timed(self) -> list[Form]:
        return [form for form in self.forms if form.timed]

    def form(self, name: str) -> Form | None:
        return next((form for form in self.forms if form.name == name), None)


def is_bench(document: Document) -> bool:
    """Say whether `document` is one of `edgeml bench -o`."""
    return "results" in document and "model" in document


def read(document: Document) -> Reading:
    """Return what `document` says, whichever of the two it is."""
    return _bench(document) if is_bench(document) else _summary(document)


def _summary(summary: Document) -> Reading:
    metric = summary.get("metric", "")
    source = summary["metrics"].get("source", {}).get(metric)
    places = [
        Place(
            name=name,
            profile=choice.get("profile", {}),
            limits=choice.get("limits", {}),
            predictions={
                variant: {"method": choice["latency_ms"]["method"], **one}
                for variant, one in choice.get("predictions", {}).items()
            },
            chosen=choice["variant"],
            fits=choice["fits"],
            reason=choice["reason"],
        )
        for name, choice in summary["devices"].items()
    ]
    return Reading(
        model=summary["model"],
        metric=metric,
        forms=[_form(variant, metric, source) for variant in summary["variants"]],
        places=places,
        devices=_devices(summary),
    )


def _form(variant: Document, metric: str, source: float | None) -> Form:
    score, upper = variant["metrics"].get(metric), variant.get("accuracy_drop_upper")
    bound = None if score is None or upper is None else score - abs(upper - (variant.get("accuracy_drop") or 0.0))
    return Form(
        name=variant["name"],
        measured=variant.get("measurement") or _from_latency(variant["host_latency_ms"]),
        bytes=variant["bytes"],
        score=score,
        score_low=bound if source is not None else None,
        passed=variant["verdict"] == "pass",
        work=variant.get("work", {}),
        told=variant,
    )


def _from_latency(found: Document) -> Document:
    """Return a run's latencies as the measured document names them; runs before it existed have only those."""
    if not found.get("p50"):
        return {}
    kept = {f"{name}_ms": found[name] for name in ("p50", "p90", "p99")}
    kept |= {name: found[name] for name in ("n", "valid", "why") if name in found}
    return kept | {"ci95_ms": found.get("ci95"), "samples_ms": found.get("samples", ())}


def _bench(document: Document) -> Reading:
    measured: dict[str, Document] = {}
    places: dict[str, dict[str, Document]] = {}
    devices = []
    for result in document["results"]:
        name, board, found = result["variant"], result["board"], result.get("measured")
        measured.setdefault(name, {})
        if found and result.get("device"):
            devices.append(OnDevice(device=result["device"], board=board, variant=name, measured=found))
        elif found:
            measured[name] = found
        if result.get("predicted"):
            memory = (result.get("memory_mb") or {}).get("predicted")
            places.setdefault(board, {})[name] = {**result["predicted"], "memory_mb": memory}
    known, boards = document.get("variants", {}), document.get("boards", {})
    forms = [
        Form(
            name=name, measured=found, bytes=known.get(name, {}).get("bytes"), work=known.get(name, {}).get("work", {})
        )
        for name, found in measured.items()
    ]
    return Reading(
        model=document["model"],
        forms=forms,
        places=[Place(name=board, profile=boards.get(board, {}), predictions=found) for board, found in places.items()],
        devices=[*devices, *_devices(document)],
    )


def _devices(document: Document) -> list[OnDevice]:
    return [
        OnDevice(device=one["device"], board=one.get("board", ""), variant=one["variant"], measured=one["measured"])
        for one in document.get("on_devices", [])
    ]
