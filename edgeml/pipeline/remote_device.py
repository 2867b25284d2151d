"""A device of the fleet as calibration sees one: what it is asked is sent ahead in batches, through the server's queue.

A batch is one signed task of up to MOST_JOBS small graphs, packed; its answers are kept until they are asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np

from edgeml import bench
from edgeml.bench.calibrate import Ask
from edgeml.bench.calibrate.blocks import Builder
from edgeml.errors import BenchFailed
from edgeml.pipeline.calibration import calibrate_device
from edgeml.pipeline.remote_bench import put, reachable, wait
from edgeml.registry import BenchPatience, BenchWork, Registry
from edgeml_runtime.measure import OperatorTime, Plan, Timing
from edgeml_runtime.wire import tensors
from edgeml_runtime.wire.bench import BenchResult, JobResult, NodeTime
from edgeml_runtime.wire.manifest import Settings
from edgeml_runtime.wire.messages import BenchBlob, BenchJob, BenchPlan

MOST_JOBS, MOST_BYTES = 64, 8 << 20  # of one batch, packed: more do not fit a signed task, or a slow link's patience
PATIENCE = BenchPatience()
Feeds = Mapping[str, np.ndarray]


class OnDevice:
    """The device `name`, asked through `registry`; `say` is told what it does meanwhile."""

    def __init__(
        self,
        registry: Registry,
        name: str,
        settings: Settings,
        *,
        patience: BenchPatience = PATIENCE,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._registry, self.name, self._settings, self._patience, self._say = registry, name, settings, patience, say
        self._upcoming: Iterator[Ask] = iter(())
        self._answers: dict[tuple[str, str], JobResult] = {}

    def environment(self) -> dict[str, Any]:
        """Return what the device says of itself: its processor, caches, runtime."""
        net = Builder((1, 8))
        model = net.done(net.add("Neg", ["x"], (1, 8)))
        return dict(self._run([Ask(model, {"x": np.zeros((1, 8), np.float32)})]).environment)

    def expect(self, upcoming: Iterator[Ask]) -> None:
        """Take what will be asked, in order; it is drawn from as batches are made."""
        self._upcoming = upcoming

    def nodes(self, model: bytes, inputs: Feeds, runs: int) -> Sequence[OperatorTime]:
        """Return what every node of `model` takes there. Raises FleetError when the device cannot tell."""
        return [node_of(node) for node in self._answer(Ask(model, inputs, runs)).nodes]

    def time(self, model: bytes, inputs: Feeds, plan: Plan) -> Timing:
        """Return what a call of `model` takes there. Raises FleetError when the device cannot tell."""
        return timing_of(self._answer(Ask(model, inputs, plan=plan)).document)

    def _answer(self, ask: Ask) -> JobResult:
        if ask.key not in self._answers:
            batch = self._batch(ask)
            result = self._run(batch)
            self._answers |= {one.key: job for one, job in zip(batch, _in_order(result), strict=True)}
        found = self._answers.pop(ask.key)
        if found.reason:
            raise BenchFailed(f"{self.name}: {found.reason}: {found.detail}", reason=found.reason)
        return found

    def _batch(self, first: Ask) -> list[Ask]:
        """Return `first` and what is expected to be asked after it, up to the limits of a batch."""
        found, size = {first.key: first}, len(first.packed)
        following: Iterator[Ask] = itertools.dropwhile(lambda ask: ask.key == first.key, self._upcoming)
        for ask in following:
            if ask.key in found or len(found) >= MOST_JOBS or size + len(ask.packed) > MOST_BYTES:
                following = itertools.chain([ask], following)
                break
            found[ask.key] = ask
            size += len(ask.packed)
        self._upcoming = following
        return list(found.values())

    def _run(self, asks: Sequence[Ask]) -> BenchResult:
        blobs: dict[str, BenchBlob] = {}
        jobs = []
        for index, ask in enumerate(asks):
            packed, rows = put(self._registry, ask.packed), put(self._registry, tensors.pack(ask.inputs))
            graph = replace(packed, inflated=len(ask.model))
            blobs |= {graph.digest: graph, rows.digest: rows}
            plan = BenchPlan(**asdict(ask.plan)) if ask.plan else BenchPlan()
            jobs.append(
                BenchJob(
                    name=str(index),
                    verb="timing" if ask.plan else "operators",
                    graph=graph.digest,
                    rows=rows.digest,
                    plan=plan,
                    session=self._settings,
                    runs=ask.runs,
                )
            )
        work = BenchWork(jobs=tuple(jobs), blobs=tuple(blobs.values()))
        bench_id = self._registry.benches.add(self.name, work, self._patience, kind="calibrate", model="calibration")
        return wait(self._registry, bench_id, progress=lambda _, line: self._say(line))


def _in_order(result: BenchResult) -> list[JobResult]:
    return sorted(result.jobs, key=lambda job: int(job.name))


def node_of(node: NodeTime) -> OperatorTime:
    """Return a node as the device's own profile has it."""
    told = {key: value for key, value in asdict(node).items() if key not in ("types", "dims")}
    shapes = tuple((kind, tuple(dims)) for kind, dims in zip(node.types, node.dims, strict=True))
    return OperatorTime(**told, shapes=shapes)


def timing_of(document: Mapping[str, Any]) -> Timing:
    """Return the timing in a job's checked document; what only pictures need is left out."""
    known = {field.name for field in fields(Timing)} - {"series", "readings", "samples_ms", "intervals_ms"}
    told = {key: value for key, value in document.items() if key in known}
    low, high = document["ci95_ms"]
    return Timing(**{"p999_ms": None, **told, "ci95_ms": (low, high)}, intervals_ms={})


def calibrate_on(
    registry: Registry,
    device_id: str,
    *,
    board: str = "",
    threads: Sequence[int] = (),
    force: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
    scope: bench.Scope = bench.WHOLE,
) -> list[dict[str, Any]]:
    """Calibrate a device of the fleet, or go on where that was interrupted; return what each number of threads gave.

    It becomes `board`, by default the one it was enrolled as. Raises NotFound for an unknown device and FleetError
    when it is offline, refuses, or ends too late: what was finished by then is kept.
    """
    known = reachable(registry, device_id)
    cores = known.reported.hardware.get("cores", "1") if known.reported else "1"
    wanted = tuple(threads) or tuple(sorted({1, int(cores) if cores.isdigit() else 1}))
    seen = 0, 1

    def say(line: str) -> None:
        progress(*seen, line)

    def follow(done: int, total: int, what: str) -> None:
        nonlocal seen
        seen = done, total
        progress(done, total, what)

    found = []
    for settings in (Settings(threads=one) for one in wanted):
        device = OnDevice(registry, device_id, settings, say=say)
        found.append(
            calibrate_device(
                device,
                settings,
                board=board or known.board or device_id,
                label=device_id,
                force=force,
                progress=follow,
                scope=scope,
            )
        )
    return found
