"""Latency on this machine, through the very code that serves on a device."""

from __future__ import annotations

from edgeml.artifacts import Measurement, Rows, Variant
from edgeml.errors import DataError
from edgeml_runtime.measure import Plan, measure
from edgeml_runtime.session import Session


def measure_here(variant: Variant, rows: Rows, plan: Plan | None = None) -> Measurement:
    """Return the latency of `variant` for one row, the first of `rows`; raise DataError when there is none."""
    if not len(rows):
        raise DataError("no row to time the model on: give at least one")
    session = Session(variant.model.data)
    sizes = {spec.shape[0] for spec in session.inputs if spec.shape and spec.shape[0] > 1}
    feeds = rows.take([0] * max(sizes, default=1)).inputs  # type: ignore[arg-type]
    timing = measure(session, feeds, plan or Plan())
    return Measurement(
        variant.recipe,
        timing.p50_ms,
        timing.p90_ms,
        timing.p99_ms,
        timing.n,
        timing.ci95_ms,
        timing.valid,
        timing.why,
        timing.samples_ms,
        dict(timing.environment),
    )
