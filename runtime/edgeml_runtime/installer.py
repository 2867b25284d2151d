"""The hands of a deployment: each effect of the machine in `protocol` carried out on disk, child and session.

Downloads advance in the agent's loop, block by block. What is slow (hashing, probing, loading) runs in
a worker, whose outcome comes back to the loop with the job's name; those of another job are dropped.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from edgeml_runtime import download, serving
from edgeml_runtime.architecture import only_programs
from edgeml_runtime.config import BLOBS, SLOTS, Config
from edgeml_runtime.errors import DeviceError, MalformedMessage, ModelRefused, StorageFull
from edgeml_runtime.journal import MAX_STARTS, Journal
from edgeml_runtime.personal import OwnModels
from edgeml_runtime.probe import probe
from edgeml_runtime.protocol import SERVING, Deployment, Do, Effect, Phase, Report, Save
from edgeml_runtime.pull import Pull, Want, want
from edgeml_runtime.serving import Loaded, Serving
from edgeml_runtime.slots import GOLDENS, GRAPH, Slot, Slots
from edgeml_runtime.wire import signed
from edgeml_runtime.wire.blocks import digest_of
from edgeml_runtime.wire.manifest import PLAIN, Manifest, ReleaseVariant, read_manifest
from edgeml_runtime.wire.messages import Assignment, JobStatus, from_document
from edgeml_runtime.worker import Outcome, Worker

WHO = "deployment"
REFUSALS = frozenset({"BadSignature", "MalformedMessage", "ModelRefused"})  # what no second attempt would change
log = logging.getLogger(__name__)


class Installer:
    """Carries one deployment at a time; `report` publishes the device's state."""

    def __init__(
        self,
        config: Config,
        state: Path,
        *,
        serving: Serving,
        own: OwnModels,
        post: Callable[[Outcome], None],
        report: Callable[[JobStatus | None], None],
    ) -> None:
        self._config, self._state, self._serving, self._report = config, state, serving, report
        self._own = own
        self.slots, self.blobs = Slots(state / SLOTS), state / BLOBS
        self.journal = Journal.open(state)
        self.machine = Deployment(*self.journal.load(config.trusted))
        self.pull: Pull | None = None
        self._worker = Worker(WHO, post)
        self._manifest: Manifest | None = None
        self._slot: Slot | None = None  # installed, not yet active
        self._envelope = b""  # the manifest as it arrived
        self._envelopes: dict[int, tuple[str, float]] = {}  # assignments not yet in the journal, and when they came

    def start(self, now: float) -> None:
        """Load the release that serves, and go on with the job that a restart interrupted."""
        crashed = False
        if self.machine.phase in SERVING:
            self.journal.starts += 1
            self.journal.save(self.machine.record)
            crashed = self.journal.starts > MAX_STARTS
        if crashed:
            self._withdraw()
        self._load_current()
        spent = max(0.0, time.time() - self.journal.received)
        deadline = self.machine.assignment.deadline_s if self.machine.assignment else 0.0
        self.do(self.machine.resume(now, remaining_s=max(0.0, deadline - spent), crashed=crashed))

    def assign(self, envelope: bytes, now: float) -> None:
        """Take a signed assignment; raise WireError when it is not for this device, or nobody trusted signed it."""
        assignment = read_assignment(envelope, self._config)
        self._envelopes[assignment.seq] = envelope.decode(), time.time()
        self.do(self.machine.assign(assignment, now))

    def ended(self, outcome: Outcome, now: float) -> None:
        """Take what the worker has done."""
        assignment = self.machine.assignment
        if assignment is None or outcome.tag != _tag(self.machine.phase, assignment):
            return
        event = outcome.event
        if event == "failed" and outcome.reason in REFUSALS:
            event = "refused" if self.machine.phase is not Phase.ROLLING_BACK else "failed"
        if event == "verified":
            self._manifest = outcome.value
        if event == "installed":
            self._slot = outcome.value
        self.do(self.machine.outcome(event, now, reason=outcome.reason, detail=outcome.detail))

    def tick(self, now: float) -> None:
        """Let time pass: deadlines, and what the release on trial has served."""
        self._own.note_use(self._serving.loaded, now)
        served, failed, last = self._serving.trial()
        self.do(self.machine.observe(now, predictions=served, errors=failed, last_error=last))
        self.do(self.machine.tick(now))

    def pulled(self, now: float) -> None:
        """Take note of the progress of `pull`, which the loop drives."""
        if self.pull is None:
            return
        if self.pull.done:
            self.pull = None
            self.do(self.machine.outcome("arrived", now))
        elif self.machine.phase is Phase.BLOBS:
            self.do(self.machine.advance(self.pull.progress, now))

    def failed(self, error: DeviceError | OSError, now: float) -> None:
        """Take note that `pull` cannot go on."""
        self.do(self.machine.outcome("failed", now, reason=type(error).__name__, detail=str(error)))

    def do(self, effects: list[Effect]) -> None:
        """Carry out what the machine asks for, in order."""
        for effect in effects:
            match effect:
                case Save():
                    self._save()
                case Report(status):
                    self._report(status)
                case Do(phase, assignment):
                    self._begin(phase, assignment)
        if not self.machine.active and self.pull is not None:
            self.pull.close()
            self.pull = None

    def graph_of(self, digest: str) -> Path | None:
        """Return the file of the graph that serves if it is this one."""
        running, slot = self._serving.running, self.slots.current
        return slot.graph if running is not None and slot is not None and running.graph == digest else None

    def keep(self) -> set[str]:
        """Return the digests of blobs that must stay on the disk."""
        digests = set()
        for slot in (self.slots.current, self.slots.previous):
            if slot is not None:
                manifest, apart = slot.manifest(), slot.variant if slot.split else ""
                # a graph whose weights lie apart is a copy: its blob would only double what the disk holds
                graphs = (variant.graph.digest for variant in manifest.variants if variant.name != apart)
                digests |= {manifest.goldens.digest, *graphs}
        return digests

    def _begin(self, phase: Phase, assignment: Assignment) -> None:
        now, tag = time.monotonic(), _tag(phase, assignment)
        match phase:
            case Phase.MANIFEST if self._serves(assignment) and not self._lacks_own():
                self._serving.begin_trial()
                self.do(self.machine.outcome("running", now))
            case Phase.MANIFEST:
                self._fetch([Want(digest=assignment.manifest, size=assignment.manifest_bytes)])
            case Phase.CHECKING:
                self._envelope = self._fetched(assignment.manifest).read_bytes()
                self._worker.submit(tag, "verified", lambda: self._verify(assignment))
            case Phase.BLOBS if self._manifest is not None:
                own = self._own.wants(self._manifest, self._variant())
                self._fetch([want(blob) for blob in (*self._manifest.blobs_of(self._variant()), *own)])
            case Phase.INSTALLING if self._serves(assignment):  # only what own tensors need was missing
                self._worker.submit(tag, "installed", lambda: self.slots.current)
            case Phase.INSTALLING if self._manifest is not None:
                graph, goldens = (self._fetched(b.digest) for b in self._manifest.blobs_of(self._variant()))
                board, variant = self._config.board, self._variant().name
                files = {GRAPH: graph, GOLDENS: goldens}
                self._worker.submit(
                    tag, "installed", lambda: self.slots.install(self._envelope, files, variant=variant, board=board)
                )
            case Phase.PROBING:
                self._worker.submit(tag, "probed", self._probe)
            case Phase.TRIAL:
                self._worker.submit(tag, "serving", self._activate)
            case Phase.ROLLING_BACK:
                self._worker.submit(tag, "back", lambda: self._roll_back(assignment))

    def _fetch(self, wanted: list[Want]) -> None:
        if self.pull is not None:
            self.pull.close()
        self.pull = Pull(self.blobs, wanted)

    def _fetched(self, digest: str) -> Path:
        return self.blobs / digest

    def _verify(self, assignment: Assignment) -> Manifest:
        manifest = read_manifest(signed.verify(self._envelope, self._config.trusted))
        if (manifest.model, manifest.release) != (assignment.model, assignment.release):
            raise MalformedMessage(
                f"the assignment names {assignment.model} {assignment.release}, "
                f"its manifest is of {manifest.model} {manifest.release}"
            )
        runnable(manifest, self._config.board)
        return manifest

    def _variant(self) -> ReleaseVariant:
        """Return what this device runs of the release; raise ModelRefused when there is nothing it can."""
        if self._manifest is None:
            raise ModelRefused("the manifest is not here: deploy it again")
        return runnable(self._manifest, self._config.board)

    def _probe(self) -> None:
        slot = self._installed()
        variant = next(one for one in slot.manifest().variants if one.name == slot.variant)
        result = probe(slot, slot.variant)
        if not result.ok:
            raise ModelRefused(f"{variant.name}: {result.reason}: {result.detail}")

    def _activate(self) -> None:
        """Load the new release first; only then move the link, then the pointer."""
        slot = self._installed()
        loaded = self._load(slot)
        self.slots.activate(slot)
        self._serving.swap(loaded)

    def _roll_back(self, assignment: Assignment) -> None:
        if self._serves(assignment):
            before = self.slots.previous
            if before is None:
                raise ModelRefused("there is no earlier release to go back to, so it still serves")
            loaded = self._load(before)
            self.slots.rollback()
            self._serving.swap(loaded)

    def _serves(self, assignment: Assignment) -> bool:
        """Return whether the release that `assignment` wants is the one in memory and on the link."""
        slot, running = self.slots.current, self._serving.running
        return (
            slot is not None
            and running is not None
            and running.release == assignment.release
            and digest_of(slot.envelope()) == assignment.manifest
        )

    def _lacks_own(self) -> bool:
        """Return whether this device's own tensors wait for a graph of the current release."""
        slot = self.slots.current
        return slot is not None and self._own.lacks(slot)

    def _installed(self) -> Slot:
        if self._slot is None:
            raise ModelRefused("the release is not whole on the disk: deploy it again")
        return self._slot

    def _withdraw(self) -> None:
        """Take the release that kills the agent off the link, even if nothing serves then."""
        back = self.slots.rollback()
        if back is None:
            (self.slots.root / "current").unlink(missing_ok=True)
        log.warning(
            "the release on trial is withdrawn; %s", f"back to {back.manifest().release}" if back else "nothing serves"
        )

    def _load(self, slot: Slot) -> Loaded:
        """Return what shall serve of the release in `slot`."""
        return self._own.over(slot, serving.load(slot))

    def _load_current(self) -> None:
        """Serve what was installed last; if the disk has spoiled it, the release before it."""
        for _ in range(2):
            slot = self.slots.current
            if slot is None:
                return
            try:
                self._serving.swap(self._load(slot))
                return
            except DeviceError as error:
                log.warning("the release in slot %s cannot serve: %s", slot.name, error)
                if self.slots.rollback() is None:
                    return

    def _save(self) -> None:
        seq = self.machine.record.seq
        if seq in self._envelopes:
            self.journal.envelope, self.journal.received = self._envelopes[seq]
            self.journal.starts = 0
            self._envelopes = {number: kept for number, kept in self._envelopes.items() if number > seq}
        try:
            self.journal.save(self.machine.record)
        except StorageFull as error:
            log.warning("%s", error)
            if self.machine.active:
                self.do(self.machine.outcome("failed", time.monotonic(), reason=error.reason, detail=str(error)))


def runnable(manifest: Manifest, board: str) -> ReleaseVariant:
    """Return the variant for `board`, where there is no onnxruntime the numpy program; raise ModelRefused without."""
    why = only_programs()
    if not why:
        return manifest.variant_for(board)
    found = next((variant for variant in manifest.variants if variant.name == PLAIN), None)
    if found is None:
        names = ", ".join(variant.name for variant in manifest.variants)
        raise ModelRefused(
            f"{manifest.model} {manifest.release} has the variants {names} and none of them is {PLAIN}; {why}"
        )
    return found


def read_assignment(envelope: bytes, config: Config) -> Assignment:
    """Return the assignment in `envelope`; raise WireError unless a trusted key signed it for this device."""
    assignment = from_document(Assignment, signed.verify(envelope, config.trusted))
    if assignment.device != config.device:
        raise MalformedMessage(f"an assignment for {assignment.device} arrived at {config.device}")
    return assignment


def _tag(phase: Phase, assignment: Assignment) -> str:
    return f"{assignment.job}/{assignment.seq}/{phase}"


def free_blobs(folder: Path, keep: set[str]) -> None:
    """Delete blobs that no slot, download or round needs."""
    if freed := download.sweep(folder, keep):
        log.info("freed %d bytes of old blobs", freed)
