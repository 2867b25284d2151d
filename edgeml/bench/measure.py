"""Latency on this machine, through the very code that serves on a device."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeml.artifacts import Measurement, Rows, Variant
from edgeml.errors import DataError
from edgeml_runtime.measure import Plan, Watch, benchmark, nobody
from edgeml_runtime.session import DEFAULTS, Session
from edgeml_runtime.wire.manifest import Settings


def measure_here(
    variant: Variant,
    rows: Rows,
    plan: Plan | None = None,
    *,
    settings: Settings = DEFAULTS,
    starts: int = 0,
    profile: bool = True,
    watch: Watch = nobody,
) -> Measurement:
    """Return the latency of `variant` for one row, the first of `rows`; raise DataError when there is none.

    `starts` new processes give the cold start and the memory, `profile` the time of every operator.
    """
    if not len(rows):
        raise DataError("no row to time the model on: give at least one")
    feeds = one_query(variant, rows)
    found = benchmark(
        variant.model.data, feeds, plan or Plan(), settings=settings, starts=starts, profile=profile, watch=watch
    )
    timing = found.timing
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
        found.plain(),
    )


def one_query(variant: Variant, rows: Rows) -> Mapping[str, np.ndarray]:
    """Return the first of `rows` as `variant` takes it: repeated where the model's row axis has a fixed size."""
    inputs = Session(variant.model.data).inputs
    sizes = {spec.shape[0] for spec in inputs if spec.shape and spec.shape[0] > 1}
    return rows.take([0] * max(sizes, default=1)).inputs  # type: ignore[arg-type]
