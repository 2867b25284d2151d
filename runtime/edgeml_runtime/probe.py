"""Try a release in a child process before it serves: load it, replay its goldens, time it.

Whatever a bad model does there, run out of memory, hang, hit an instruction this processor lacks,
answer NaN or other labels, becomes a typed reason with numbers, and the agent lives on. The child is
`python -m edgeml_runtime.probe SLOT_DIR VARIANT`, which prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from edgeml_runtime.children import available_memory, ended_by, limit
from edgeml_runtime.errors import DeviceError
from edgeml_runtime.session import Session
from edgeml_runtime.slots import Slot
from edgeml_runtime.wire import tensors
from edgeml_runtime.wire.manifest import Bounds, ReleaseVariant

TIMEOUT_S = 60.0
TIMED_RUNS = 50


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What the probe found. `reason` is short and typed, `detail` is for people, with the numbers."""

    ok: bool
    reason: str = ""
    detail: str = ""
    max_abs: float = 0.0  # largest difference from a golden on any float output
    label_flips: int = 0
    load_ms: float = 0.0
    p50_ms: float = 0.0  # one row


def probe(slot: Slot, variant: str = "", *, timeout_s: float = TIMEOUT_S, memory_bytes: int = 0) -> ProbeResult:
    """Return how the release in `slot` behaves on this device; never raises for what the model does.

    `memory_bytes` bounds the child's private memory; by default what is available now.
    """
    limits = ["--memory", str(memory_bytes or available_memory()), "--cpu", str(int(timeout_s) + 1)]
    arguments = [str(slot.path), variant or slot.variant, *limits]
    command = [sys.executable, "-m", "edgeml_runtime.probe", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        detail = f"no answer within {timeout_s:g} s: choose a smaller variant or allow more time"
        return ProbeResult(ok=False, reason="Timeout", detail=detail)
    return _outcome(done.returncode, done.stdout, done.stderr)


def check(slot: Path, variant: str) -> ProbeResult:
    """Return how the release in the folder `slot` behaves in this very process."""
    try:
        release = Slot(slot).manifest()
        chosen = next((v for v in release.variants if v.name == variant), None)
        if chosen is None:
            return ProbeResult(ok=False, reason="NoSuchVariant", detail=f"release {release.release} has no {variant!r}")
        start = time.perf_counter()
        session = Session(Slot(slot).graph, Slot(slot).settings)
        load_ms = (time.perf_counter() - start) * 1e3
        inputs, wanted = goldens_of(Slot(slot).goldens, variant)
        if not wanted or not inputs:
            return ProbeResult(ok=False, reason="NoGoldens", detail=f"no recorded answers of {variant}: build it anew")
        result = _compare(replay(session, inputs), wanted, chosen)
        return ProbeResult(**{**asdict(result), "load_ms": load_ms, "p50_ms": _median_ms(session, inputs)})
    except DeviceError as error:
        memory = "bad_alloc" in str(error) or "memory" in str(error).lower()
        return ProbeResult(ok=False, reason="OutOfMemory" if memory else error.reason, detail=str(error))
    except MemoryError:
        return ProbeResult(ok=False, reason="OutOfMemory", detail="out of memory: choose a smaller variant")


def goldens_of(path: Path, variant: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the recorded inputs, and the answers that `variant` gave to them."""
    arrays = tensors.unpack(path.read_bytes())
    inputs = {name.removeprefix("input."): a for name, a in arrays.items() if name.startswith("input.")}
    prefix = variant + "."
    return inputs, {name.removeprefix(prefix): a for name, a in arrays.items() if name.startswith(prefix)}


def replay(session: Session, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run all rows at once, as they were recorded; row by row where the graph takes only one."""
    if all(spec.shape[:1] != (1,) for spec in session.inputs):
        return session.run(inputs)
    count = len(next(iter(inputs.values())))
    rows = [session.run(_row(inputs, i)) for i in range(count)]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _compare(
    answers: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], variant: ReleaseVariant
) -> ProbeResult:
    flips, worst, bounds = 0, 0.0, variant.bounds
    for name, want in wanted.items():
        got = answers.get(name)
        if got is None or got.shape != want.shape:
            found = "absent" if got is None else f"of shape {got.shape}"
            return ProbeResult(ok=False, reason="OutputMismatch", detail=f"{name} is {found}, recorded {want.shape}")
        if want.dtype.kind != "f":
            flips += int((np.asarray(got) != want).sum())
            continue
        if bad := int((np.isfinite(want) & ~np.isfinite(got)).sum()):
            return ProbeResult(
                ok=False, reason="NotFinite", detail=f"{name}: {bad} of {got.size} values are NaN or infinite here"
            )
        finite = np.isfinite(want)
        if finite.any():
            difference = np.abs(got[finite].astype(np.float64) - want[finite].astype(np.float64))
            worst = max(worst, float(difference.max()))
    return _judge(worst, flips, bounds=bounds)


def _judge(worst: float, flips: int, *, bounds: Bounds) -> ProbeResult:
    reason, detail = "", ""
    if flips > bounds.label_flips:
        reason, detail = "LabelFlips", f"{flips} labels differ from the recorded ones, {bounds.label_flips} may"
    elif worst > bounds.max_abs:
        reason, detail = "OutOfBounds", f"answers are {worst:.3g} off the recorded ones, {bounds.max_abs:.3g} may be"
    return ProbeResult(ok=not reason, reason=reason, detail=detail, max_abs=worst, label_flips=flips)


def _median_ms(session: Session, inputs: Mapping[str, np.ndarray]) -> float:
    count, times = len(next(iter(inputs.values()))), []
    for i in range(TIMED_RUNS):
        row = _row(inputs, i % count)
        start = time.perf_counter()
        session.run(row)
        times.append(time.perf_counter() - start)
    return float(np.median(times)) * 1e3


def _row(inputs: Mapping[str, np.ndarray], index: int) -> dict[str, np.ndarray]:
    return {name: array[index : index + 1] for name, array in inputs.items()}


def _outcome(code: int, output: bytes, errors: bytes) -> ProbeResult:
    """Return what the ended child says, or what its end says where it could not speak."""
    last = (errors.decode(errors="replace").strip().splitlines() or ["no message"])[-1][:300]
    if code == 0:
        return _parse(output)
    if code < 0:
        reason, detail = ended_by(-code, last)
        return ProbeResult(ok=False, reason=reason, detail=detail)
    memory = "MemoryError" in last or "bad_alloc" in last
    return ProbeResult(ok=False, reason="OutOfMemory" if memory else "ProbeFailed", detail=f"exit code {code}: {last}")


def _parse(output: bytes) -> ProbeResult:
    line = (output.strip().splitlines() or [b""])[-1]
    known = {field.name for field in fields(ProbeResult)}
    try:
        return ProbeResult(**{name: value for name, value in json.loads(line).items() if name in known})
    except (ValueError, TypeError, AttributeError):
        return ProbeResult(ok=False, reason="ProbeFailed", detail=f"the probe said {line[:80]!r} instead of its result")


def main() -> None:
    """Run the child's side: limit this process, check the release, print the result."""
    parser = argparse.ArgumentParser(prog="python -m edgeml_runtime.probe", description=main.__doc__)
    parser.add_argument("slot", type=Path)
    parser.add_argument("variant")
    parser.add_argument("--memory", type=int, default=0, help="bytes of private memory; 0: no limit")
    parser.add_argument("--cpu", type=int, default=0, help="seconds of CPU time; 0: no limit")
    options = parser.parse_args()
    limit(options.memory, options.cpu)
    print(json.dumps(asdict(check(options.slot, options.variant))))


if __name__ == "__main__":
    main()
