"""This device's own model: the release's float graph with its own tensors in place, if that serves it no worse.

    tensors (owned) -> the float graph with them (overlay) -> goldens: shapes, finite -> its own labelled rows -> serve

The tensors are never sent. Telemetry tells whether they serve and, where the owner lets evaluations be answered, how
much better they are on the rows here (`owned.tells_gain`). Whatever cannot be, the release serves as it came, and
`Loaded.personal` says why.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from edgeml_runtime import overlay, probe
from edgeml_runtime.architecture import only_programs
from edgeml_runtime.config import BLOBS, KEPT, PERSONAL, Policy
from edgeml_runtime.download import free_bytes
from edgeml_runtime.errors import BadDigest, DeviceError, ModelRefused, ShapeMismatch
from edgeml_runtime.kept import Kept
from edgeml_runtime.owned import Owned, OwnTensors
from edgeml_runtime.samples import Samples
from edgeml_runtime.serving import Loaded, Personal, answers, load
from edgeml_runtime.session import Session
from edgeml_runtime.slots import Slot
from edgeml_runtime.wire.holdout import Part
from edgeml_runtime.wire.manifest import LABEL, PREDICTION, Blob, Manifest, ReleaseVariant

FLOAT = "fp32"  # the variant whose weights have the names and the type that training knows
MOST_ROWS, AT_ONCE = 2000, 10  # labelled rows to judge by, and how many in one run
PARTS, PIECE_BYTES = 8, 4 << 20  # so many pieces they are read in, and the size of the largest in memory
TEXT_BYTES = 64  # of a word among them, about
JUDGE_S = 5.0  # seconds of judging, at most: at a start nothing answers before
MOST_DEATHS = 2  # of the agent while it tried them
NOTED_S = 86_400.0  # how often a model that answers is noted as in use
_METRICS = {"classification": (LABEL, "accuracy"), "regression": (PREDICTION, "rmse")}  # of the answer with this name
Rows = tuple[Mapping[str, np.ndarray], np.ndarray]

log = logging.getLogger(__name__)


class OwnModels:
    """Decides, at every load of a release, what serves: it, or it with this device's own tensors.

    What `only_reads` may run beside an agent: it takes nothing over, deletes and counts nothing, and leaves no file.
    """

    def __init__(self, state: Path, policy: Policy, samples: Samples | None, *, only_reads: bool = False) -> None:
        self._blobs, self._policy, self._samples = state / BLOBS, policy, samples
        most = policy.max_kept_bytes
        kept = None if only_reads else Kept(state / KEPT, most=most)
        self._tensors = OwnTensors(state / PERSONAL, kept, most=most, only_reads=only_reads)
        self._note_due, self._only_reads = -math.inf, only_reads
        if not only_reads:
            self._tensors.sweep()
            self._tensors.expire()

    def wants(self, manifest: Manifest, variant: ReleaseVariant) -> tuple[Blob, ...]:
        """Return the float graph of the release, where the device installs another and has tensors for this one."""
        found = _float(manifest)
        if found is None or found is variant or not self._policy.personal or only_programs():
            return ()
        room = free_bytes(self._blobs) > 2 * found.graph.size
        return (found.graph,) if room and self._tensors.has(manifest) else ()

    def lacks(self, slot: Slot) -> bool:
        """Return whether something that `wants` names for the release in `slot` is not on the disk."""
        manifest = slot.manifest()
        variant = next(one for one in manifest.variants if one.name == slot.variant)
        return any(not (self._blobs / blob.digest).is_file() for blob in self.wants(manifest, variant))

    def over(self, slot: Slot, released: Loaded) -> Loaded:
        """Return what shall serve of the release in `slot`, whose `released` form is loaded."""
        run = ""
        try:
            if not self._tensors.has(released.manifest):
                return released
            if not self._policy.personal:
                raise ModelRefused(
                    "the owner's policy does not let them serve: edgeml-agent task-policy --set personal=yes"
                )
            owned = self._tensors.of(released.manifest)
            if owned is None:  # what was kept are no parameters
                return released
            run = owned.run
            return self._tried(slot, released, owned)
        except (DeviceError, OSError, MemoryError) as error:
            return _instead(released, Personal(serves=False, run=run, reason=str(error) or type(error).__name__))

    def note_use(self, loaded: Loaded | None, now: float) -> None:
        """Note, once a day, that the own tensors in `loaded` answer: those that nobody uses expire."""
        if loaded is not None and loaded.released is not None and now >= self._note_due:
            self._note_due = now + NOTED_S
            self._tensors.used(loaded.manifest.model)

    def _tried(self, slot: Slot, released: Loaded, owned: Owned) -> Loaded:
        model = released.manifest.model
        if (deaths := self._tensors.begun(model)) >= MOST_DEATHS:
            raise ModelRefused(f"the agent was killed {deaths} times while it tried these tensors")
        self._tensors.begin(model)
        try:
            session = self._session(slot, owned)
            _check_goldens(slot, session)
            judged = self._judged(released, session)
        finally:
            self._tensors.end(model)
        verdict = dataclasses.replace(judged, run=owned.run)
        if not verdict.serves:
            return _instead(released, verdict)
        self._tensors.used(model)
        log.info("this device's own tensors of %s serve: %s", owned.run, verdict.reason)
        return Loaded(
            session,
            released.manifest,
            released.running,
            personal=verdict,
            released=lambda why: _instead(load(slot), dataclasses.replace(verdict, serves=False, reason=why)),
        )

    def _session(self, slot: Slot, owned: Owned) -> Session:
        """Load the release's float graph with the device's own tensors in it."""
        manifest = slot.manifest()
        variant = _float(manifest)
        if variant is None:
            raise ModelRefused(f"release {manifest.release} has no {FLOAT} graph, and no other takes these tensors")
        if bad := [name for name, array in owned.arrays.items() if not np.isfinite(array).all()]:
            raise ModelRefused(f"{len(bad)} of {len(owned.arrays)} tensors are not finite: {bad[0]!r}")
        installed = slot.variant == FLOAT
        settings = slot.settings if installed else variant.session
        target = self._tensors.trial()
        try:
            overlay.write(slot.graph if installed else self._fetched(variant), target, owned.arrays)
            return Session(target, dataclasses.replace(settings, external_data=False))
        finally:
            target.unlink(missing_ok=True)

    def _fetched(self, variant: ReleaseVariant) -> Path:
        path = self._blobs / variant.graph.digest
        if not path.is_file():
            raise ModelRefused(f"the {FLOAT} graph, which takes these tensors, is not here: deploy the release again")
        with path.open("rb") as stream:
            whole = hashlib.file_digest(stream, "sha256").hexdigest() == variant.graph.digest
        if not whole:
            if not self._only_reads:
                path.unlink()  # or it would pass for one that need not be fetched
            raise BadDigest(f"the {FLOAT} graph is not what the manifest promises: deploy the release again")
        return path

    def _judged(self, released: Loaded, session: Session) -> Personal:
        """Return what this device's own labelled rows say of both."""
        samples, needed = self._samples, max(1, self._policy.min_rows)
        if samples is None or (count := samples.labelled()) < needed:
            raise ModelRefused(f"{count if samples else 0} labelled rows to judge it on, and {needed} are needed")
        output, metric = _METRICS.get(released.manifest.task, ("", ""))
        until, done, sums = time.monotonic() + JUDGE_S, 0, np.zeros(2)
        for rows in batches(samples):
            sums += [_score(one, output, rows) for one in (session, released.session)]
            done += len(rows[1])
            if time.monotonic() >= until:
                break
        if done < needed:
            raise ModelRefused(f"{done} of {count} labelled rows were judged in {JUDGE_S:g} s, and {needed} are needed")
        own, other = (sums / done if output == LABEL else np.sqrt(sums / done)).tolist()
        gain = own - other if metric == "accuracy" else other - own
        compared = f"{metric} {own:.4g} with its own tensors, {other:.4g} without, on {done} rows of its own"
        better = gain >= 0
        return Personal(
            serves=better,
            reason=compared if better else f"worse: {compared}",
            metric=metric,
            own=_finite(own),
            released=_finite(other),
            gain=_finite(gain),
            rows=done,
        )


def batches(samples: Samples) -> Iterator[Rows]:
    """Yield labelled rows, AT_ONCE at a time and MOST_ROWS in all, the newest of each of PARTS parts.

    Only one part is in memory, and of that not more than PIECE_BYTES: of large rows fewer are read.
    """
    size = sum(math.prod(shape) * (TEXT_BYTES if text else 4) for shape, text in samples.layout().values())
    most = max(1, min(MOST_ROWS // PARTS, PIECE_BYTES // max(1, size)))
    for part in range(PARTS):
        inputs, targets = samples.rows(most, part=Part(part / PARTS, (part + 1) / PARTS))
        for start in range(0, len(targets), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            yield {name: array[some] for name, array in inputs.items()}, targets[some]


def _score(session: Session, output: str, rows: Rows) -> float:
    """Return, summed over `rows`, the right labels or the squared errors of `session`; raise ModelRefused without."""
    inputs, targets = rows
    found = answers(session, inputs)
    if output not in found:
        raise ModelRefused(f"no metric for a model with the outputs {', '.join(found)}")
    said = found[output].reshape(-1)
    if said.shape != targets.shape:
        raise ShapeMismatch(f"{said.size} answers to {targets.size} rows")
    if output == LABEL:
        return float(np.sum(said == targets))
    return float(np.sum(np.square(said.astype(np.float64) - targets)))


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None


def _float(manifest: Manifest) -> ReleaseVariant | None:
    return next((variant for variant in manifest.variants if variant.name == FLOAT), None)


def _check_goldens(slot: Slot, session: Session) -> None:
    """Raise ModelRefused when the answers to the release's example rows have another shape, or are not finite."""
    inputs, wanted = probe.goldens_of(slot.goldens, FLOAT)
    if not inputs or not wanted:
        raise ModelRefused(f"the release has no example rows with answers of {FLOAT}")
    found = probe.replay(session, inputs)
    for name, want in wanted.items():
        got = found.get(name)
        if got is None or got.shape != want.shape or got.dtype.kind != want.dtype.kind:
            raise ModelRefused(f"its answer {name!r} to the release's example rows is not of the shape {want.shape}")
        if want.dtype.kind == "f" and (bad := int((np.isfinite(want) & ~np.isfinite(got)).sum())):
            raise ModelRefused(f"{bad} of {got.size} numbers of its answer {name!r} are NaN or infinite")


def _instead(released: Loaded, verdict: Personal) -> Loaded:
    log.warning("the release serves without this device's own tensors: %s", verdict.reason)
    return dataclasses.replace(released, personal=verdict)
