"""What the command line asks a device: its status and predictions, from the running agent or from its disk."""

from __future__ import annotations

import http.client
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgeml_runtime import rows
from edgeml_runtime.config import HTTP, SAMPLES, SLOTS, is_locked, read_config, read_json
from edgeml_runtime.errors import AgentRefused, DeviceError, ModelRefused, ShapeMismatch
from edgeml_runtime.interfaces.http import HOST, MAX_BODY_BYTES
from edgeml_runtime.journal import Journal
from edgeml_runtime.metrics import Counters
from edgeml_runtime.personal import OwnModels
from edgeml_runtime.protocol import Deployment
from edgeml_runtime.samples import Samples
from edgeml_runtime.serving import Serving, load
from edgeml_runtime.slots import Slot, Slots
from edgeml_runtime.wire.manifest import CATEGORICAL, NUMERIC, Manifest
from edgeml_runtime.wire.plain import to_plain

TIMEOUT_S = 30.0
BATCH = 500  # rows in one request


def status(state: Path) -> dict[str, Any]:
    """Return the device's status; `source` says whether the running agent told it or the disk."""
    config = read_config(state)
    if port := _port(state):
        return {"source": "agent", **_call(port, "/status")}
    machine = Deployment(*Journal.open(state).load(config.trusted))
    job, slot = machine.status, _current(state)
    samples = _samples(state)
    return {
        "source": "disk",
        "device": config.device,
        "board": config.board,
        "broker": {"host": config.host, "port": config.port, "connected": False},
        "running": _installed(slot) if slot else None,
        "job": to_plain(job) if job else None,
        "samples": {"stored": samples.count() if samples else 0, "labelled": samples.labelled() if samples else 0},
    }


def predict(state: Path, data: str) -> dict[str, Any]:
    """Return the answers for the rows in the file `data` ("-": standard input)."""
    config, slot = read_config(state), _current(state)
    if slot is None:
        raise ModelRefused(f"no model is installed in {state}: deploy one to this device")
    manifest = slot.manifest()
    found = rows.read_text(manifest, _read(data), name="standard input" if data == "-" else data)
    inputs = rows.parse(manifest, found)
    if port := _port(state):
        return {"source": "agent", **_ask(port, manifest, inputs)}
    serving, samples = Serving(Counters("")), _samples(state)
    serving.swap(OwnModels(state, config.policy, samples, only_reads=True).over(slot, load(slot)))
    if samples is not None:
        samples.close()
    return {"source": "disk", **serving.predict(inputs).document()}


def _ask(port: int, manifest: Manifest, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Ask the running agent, in batches that fit its limit, and join the answers."""
    table, joined = _rows(manifest, inputs), dict[str, Any]()
    for start in range(0, len(table), BATCH):
        told = _call(port, "/predict", {"rows": table[start : start + BATCH]})
        for key, value in told.items():
            joined[key] = joined[key] + value if start and isinstance(value, list) and key != "classes" else value
    return joined


def _rows(manifest: Manifest, inputs: dict[str, np.ndarray]) -> list[Any]:
    """Return parsed inputs as rows again: of table models in the order of the features."""
    count = rows.count(inputs)
    if not manifest.features:
        return [{name: array[i].tolist() for name, array in inputs.items()} for i in range(count)]
    numbers, words = iter(inputs.get(NUMERIC, np.empty((0, 0))).T), iter(inputs.get(CATEGORICAL, np.empty((0, 0))).T)
    columns = [next(numbers if feature.kind == "numeric" else words).tolist() for feature in manifest.features]
    return [[None if isinstance(v, float) and math.isnan(v) else v for v in row] for row in zip(*columns, strict=True)]


def _call(port: int, path: str, body: Any = None) -> dict[str, Any]:
    connection = http.client.HTTPConnection(HOST, port, timeout=TIMEOUT_S)
    data = None if body is None else json.dumps(body)
    if data is not None and len(data) > MAX_BODY_BYTES:
        raise ShapeMismatch(f"{len(data):,} bytes of rows; the agent takes {MAX_BODY_BYTES:,} at a time: send fewer")
    try:
        connection.request("GET" if data is None else "POST", path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        told = json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise AgentRefused(
            f"the agent on {HOST}:{port} does not answer ({error}): see its log, or restart it"
        ) from error
    finally:
        connection.close()
    if answer.status != 200:
        raise DeviceError(str(told.get("error", told)))
    return dict(told)


def _port(state: Path) -> int:
    """Return the running agent's HTTP port, 0 when none runs."""
    return int(read_json(state / HTTP).get("port", 0)) if is_locked(state) else 0


def _current(state: Path) -> Slot | None:
    return Slots(state / SLOTS).current if (state / SLOTS).is_dir() else None


def _samples(state: Path) -> Samples | None:
    """Return the rows that are stored, None where no row ever was: asking creates nothing."""
    return Samples(state / SAMPLES) if (state / SAMPLES).exists() else None


def _installed(slot: Slot) -> dict[str, str]:
    manifest = slot.manifest()
    graph = next(one.graph.digest for one in manifest.variants if one.name == slot.variant)
    return {"model": manifest.model, "release": manifest.release, "variant": slot.variant, "graph": graph}


def _read(data: str) -> str:
    try:
        return sys.stdin.read() if data == "-" else Path(data).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise ShapeMismatch(f"no file {data}: check the path") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ShapeMismatch(f"{data} cannot be read as text: {error}") from error
