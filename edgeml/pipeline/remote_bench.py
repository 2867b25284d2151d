"""`edgeml bench --on DEVICE_ID`: a model measured on a real device, through the server's queue for it.

Commands and the server meet in the registry: the request is a row there, so is every measurement that came back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgeml import bench
from edgeml.artifacts import OnnxModel, Rows, Variant
from edgeml.devices import read_boards
from edgeml.errors import BenchFailed, NothingFits, UserError
from edgeml.pipeline.benchmark import COLD_STARTS, BenchOptions, stored_settings, subject, sustained
from edgeml.pipeline.calibration import known_of
from edgeml.pipeline.facts import told_of
from edgeml.pipeline.measured import measurement
from edgeml.registry import BenchPatience, BenchRecord, BenchWork, DeviceRecord, Registry
from edgeml.registry.selector import select
from edgeml_runtime.measure import Plan
from edgeml_runtime.wire import tensors
from edgeml_runtime.wire.bench import BenchResult, decode_result
from edgeml_runtime.wire.manifest import Settings
from edgeml_runtime.wire.messages import BenchBlob, BenchJob, BenchPlan, BenchTask

POLL_S = 0.1
RUNS = 20  # of the profile
Progress = Callable[[str, str], None]


def bench_on(
    registry: Registry, device_id: str, path: Path, *, options: BenchOptions, deadline_s: float = 600.0
) -> dict[str, Any]:
    """Return what `device_id` measured of every variant at `path`, in the form that `bench_path` has.

    Raises NotFound for an unknown device, NothingFits for a model that needs more memory than the device has, and
    FleetError when it is offline, refuses, or does not end in time.
    """
    if options.tune:
        raise UserError("--tune searches on this machine: leave it out with --on")
    device = reachable(registry, device_id)
    models, rows = subject(path, options.variants)
    for name, model in models.items():
        refuse_too_large(device, name, model)
    jobs: list[BenchJob] = []
    blobs: dict[str, BenchBlob] = {}
    plan, settings = _plan(options.plan()), stored_settings(path) if options.threads is None else {}
    for name, model in models.items():
        feeds = bench.one_query(Variant(model, name, model.digest), rows)
        graph, given = put(registry, model.data), put(registry, tensors.pack(feeds))
        blobs |= {graph.digest: graph, given.digest: given}
        jobs.append(
            BenchJob(
                name=name,
                verb="benchmark",
                graph=graph.digest,
                rows=given.digest,
                plan=plan,
                session=settings.get(name, Settings(threads=options.threads or 1)),
                runs=RUNS,
                starts=COLD_STARTS,
            )
        )
    work = BenchWork(jobs=tuple(jobs), blobs=tuple(blobs.values()))
    patience = BenchPatience(deadline_s=deadline_s)
    bench_id = registry.benches.add(device_id, work, patience, model=path.name)
    result = wait(registry, bench_id, progress=options.progress)
    return _document(path.name, device, result, models=models, rows=rows, options=options)


def reachable(registry: Registry, device_id: str) -> DeviceRecord:
    """Return the device if a server works and it is online; raise NotFound, ServerUnavailable or BenchFailed."""
    registry.server_alive()
    devices = {device.id: device for device in registry.devices()}
    select(device_id, {name: device.board for name, device in devices.items()})
    if device_id not in devices:
        raise UserError(f"{device_id!r} is no single device: benchmarks run on one, named by its id")
    device = devices[device_id]
    if not device.online:
        silent = f"its last word came {time.time() - device.last_seen:.0f} s ago"
        raise BenchFailed(f"{device_id} is offline, {silent}: switch it on, or start its agent", reason="Offline")
    return device


def refuse_too_large(device: DeviceRecord, name: str, model: OnnxModel) -> None:
    """Raise NothingFits when `model` is predicted to need more than the device has, before a byte is sent."""
    reported = device.reported
    memory = float(reported.hardware.get("memory_bytes", 0)) / 1e6 if reported else 0.0
    needed = bench.memory_mb(model)
    if memory and needed > memory:
        raise NothingFits(
            f"{name} is predicted to need {needed:.0f} MB of memory, and {device.id} has {memory:.0f} MB: "
            f"nothing was sent; choose a smaller variant"
        )
    free = reported.free_bytes if reported else 0
    if free and len(model.data) > free:
        raise NothingFits(
            f"{name} has {len(model.data):,} bytes, and the disk of {device.id} has {free:,} free: nothing was sent"
        )


def put(registry: Registry, data: bytes) -> BenchBlob:
    """Return the blob of `data`, which is in the registry from now on."""
    return BenchBlob(digest=registry.put_blob(data), size=len(data))


def wait(registry: Registry, bench_id: str, *, progress: Progress = lambda stage, line: None) -> BenchResult:
    """Return the result once the benchmark is over; a KeyboardInterrupt takes it back from the device.

    Raises BenchFailed with the device's reason, ServerUnavailable when the server dies meanwhile.
    """
    said = ""
    try:
        while True:
            record = registry.benches.find(bench_id)
            if record.is_over:
                break
            if (line := _line(registry, record)) != said:
                progress("device", line)
                said = line
            registry.server_alive()
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        registry.benches.cancel(bench_id)
        raise
    if not record.result:
        raise BenchFailed(f"{record.device}: {record.reason}: {record.detail}", reason=record.reason)
    return decode_result(registry.blob(record.result), task_of(record))


def task_of(record: BenchRecord) -> BenchTask:
    """Return the task of `record` as its device was given it, but for its number."""
    return BenchTask(
        device=record.device,
        task=record.id,
        kind=record.kind,
        seq=0,
        jobs=record.work.jobs,
        blobs=record.work.blobs,
        deadline_s=record.options.deadline_s,
    )


def _plan(plan: Plan) -> BenchPlan:
    return BenchPlan(**asdict(plan))


def _line(registry: Registry, record: BenchRecord) -> str:
    ahead = registry.benches.before(record)
    if ahead:
        return f"{record.device}: behind {ahead} other benchmark{'s' * (ahead > 1)} of it"
    why = f": {record.detail}" if record.detail else ""
    done = f" {record.progress:.0%}" if record.step == "RUNNING" else ""
    return f"{record.device}: {(record.step or 'asked').lower()}{done}{why}"


def _document(
    name: str,
    device: DeviceRecord,
    result: BenchResult,
    *,
    models: Mapping[str, OnnxModel],
    rows: Rows,
    options: BenchOptions,
) -> dict[str, Any]:
    failed = {job.name: f"{job.reason}: {job.detail}" for job in result.jobs if job.reason}
    if len(failed) == len(result.jobs):
        told = "; ".join(f"{variant} {why}" for variant, why in failed.items())
        raise BenchFailed(f"{device.id}: nothing was measured: {told}", reason=result.jobs[0].reason)
    results = []
    for job in result.jobs:
        if job.reason:
            continue
        measured = {**job.document, "operators": [_operator(node) for node in map(asdict, job.nodes)]}
        if options.sustained_s:
            measured["sustained"] = sustained(measurement(job.name, measured))
        model = models[job.name]
        predicted = _predicted(device.board, Variant(model, job.name, model.digest), rows, options=options)
        results.append(
            {
                "variant": job.name,
                "board": device.board,
                "device": device.id,
                "measured": measured,
                "predicted": predicted,
                "memory_mb": {**job.document.get("memory_mb", {}), "predicted": bench.memory_mb(model)},
                "environment": dict(measured["environment"]),
            }
        )
    where = f"{device.id} ({device.board})"
    return {"model": name, "where": where, **results[0], "results": results, "failed": failed}


def _operator(node: Mapping[str, Any]) -> dict[str, Any]:
    return {key: node[key] for key in ("name", "operator", "ms", "parameter_bytes")}


def _predicted(board: str, variant: Variant, rows: Rows, *, options: BenchOptions) -> dict[str, Any] | None:
    """Return what was predicted for the device's board, to hold against the measurement; None for an unknown board."""
    if not options.predict or board not in read_boards():
        return None
    return told_of(bench.predict_for(variant, known_of(board, rows=rows, threads=options.threads or 1)))
