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
from collections.abc import Mapping
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
from edgeml_runtime.wire.manifest import LABEL, PREDICTION, Blob, Manifest, ReleaseVariant

FLOAT = "fp32"  # the variant whose weights have the names and the type that training knows
MOST_ROWS, AT_ONCE = 2000, 250  # newest labelled rows to judge by, and how many in one run
MOST_DEATHS = 2  # of the agent while it tried them
NOTED_S = 86_400.0  # how often a model that answers is noted as in use
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
        self._note_due = -math.inf
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
            if hashlib.file_digest(stream, "sha256").hexdigest() != variant.graph.digest:
                raise BadDigest(f"the {FLOAT} graph is not what the manifest promises: deploy the release again")
        return path

    def _judged(self, released: Loaded, session: Session) -> Personal:
        """Return what this device's own labelled rows say of both."""
        inputs, targets = self._samples.rows(MOST_ROWS) if self._samples else ({}, np.empty(0))
        if (count := len(targets)) < self._policy.min_rows:
            raise ModelRefused(f"{count} labelled rows to judge it on, and {self._policy.min_rows} are needed")
        metric, own = score(session, released.manifest, (inputs, targets))
        _, other = score(released.session, released.manifest, (inputs, targets))
        gain = own - other if metric == "accuracy" else other - own
        compared = f"{metric} {own:.4g} with its own tensors, {other:.4g} without, on {count} rows of its own"
        better = gain >= 0
        return Personal(
            serves=better,
            reason=compared if better else f"worse: {compared}",
            metric=metric,
            own=own,
            released=other,
            gain=gain,
            rows=count,
        )


def score(session: Session, manifest: Manifest, rows: Rows) -> tuple[str, float]:
    """Return accuracy (classes) or rmse (numbers) of `session` on labelled rows; raise ModelRefused without either."""
    inputs, targets = rows
    wanted = {"classification": LABEL, "regression": PREDICTION}.get(manifest.task, "")
    parts = []
    for start in range(0, len(targets), AT_ONCE):
        found = answers(session, {name: array[start : start + AT_ONCE] for name, array in inputs.items()})
        if wanted not in found:
            raise ModelRefused(f"no metric for a {manifest.task} model with the outputs {', '.join(found)}")
        parts.append(found[wanted].reshape(-1))
    said = np.concatenate(parts)
    if said.shape != targets.shape:
        raise ShapeMismatch(f"{said.size} answers to {targets.size} rows")
    if wanted == LABEL:
        return "accuracy", float(np.mean(said == targets))
    return "rmse", float(np.sqrt(np.mean(np.square(said.astype(np.float64) - targets))))


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
