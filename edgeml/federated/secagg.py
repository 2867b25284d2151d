"""The server's side of secure aggregation as a pure state machine (Bonawitz and others, CCS 2017, figure 4).

    KEYS > SHARES > MASKED > AGREED > UNMASK > closed      any of them > abandoned, below the threshold

`SecureRound` takes the place of a `Round`: it is fed the same events, and what devices say between. In the end it has
the mean of the updates of those that sent one, and never had any of them. Devices may go at any time: until they have
sent their masked update nothing of them is in the sum, after that all of it.

A server that dies goes on in the same phase: what it asks follows from what it has written down, so it asks the
same again, and never about another set of survivors. Hence `asks` may be sent only once the round is written down.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum

import numpy as np

from edgeml.federated.layouts import Layout
from edgeml.federated.opening import Opener, Unopened
from edgeml.federated.roll import OTHERS, Roll, State
from edgeml.federated.updates import BadUpdate, Update, fault_of
from edgeml_runtime.wire import MalformedMessage, WireError, masking, shamir
from edgeml_runtime.wire.masking import MASKED, halves
from edgeml_runtime.wire.messages import Secure
from edgeml_runtime.wire.secure import Ask, Say, signed_by

KEYS_BYTES, COMMITMENT_BYTES = 2 * masking.KEY_BYTES, 32
SEALED_BYTES = 2 * shamir.SHARE_BYTES + 16  # two shares and Poly1305's tag


class Phase(StrEnum):
    KEYS = "keys"
    SHARES = "shares"
    MASKED = "masked"
    AGREED = "agreed"
    UNMASK = "unmask"


ORDER = tuple(Phase)


class SecureRound(Roll):
    """One round over a fixed cohort whose updates nobody sees; the events are those of `Round`, and `said`."""

    def __init__(
        self,
        id: str,
        asked: Secure,
        *,
        opened: float,
        deadline: float,
        layout: Layout,
        min_rows: int = 1,
    ) -> None:
        """Open it; `deadline` is of the training, after which every phase has `asked.phase_s`."""
        super().__init__(id, frozenset(asked.keys), quorum=asked.threshold, opened=opened)  # updates without values
        self.asked, self.phase, self.target = asked, Phase.KEYS, asked.threshold
        self.deadline, self.min_rows = deadline, min_rows
        self.culprit = ""  # the device whose shares did not open
        self._layout, self._phase_deadline = layout, deadline
        self._expected: dict[Phase, tuple[str, ...]] = {Phase.KEYS: tuple(sorted(self.cohort))}
        self._said: dict[Phase, dict[str, Say]] = {phase: {} for phase in Phase}
        self._sizes: Counter[str] = Counter()
        self._total = np.zeros(layout.length, masking.ring(asked.bits))
        self._asks: dict[str, Ask] = {}  # the last one of every device
        self._outbox: list[Ask] = []

    @property
    def step(self) -> float:
        """What one unit of the sum is worth, where every device weighs the same."""
        return self.asked.bound / masking.whole(self.asked)

    # --- what comes

    def said(self, device: str, say: Say, now: float, *, size: int = 0) -> str:
        """Take what a device says between its keys and its shares of the others; return "" or the fault."""
        if (say.round, say.device) != (self.id, device):
            return self._reject(device, "replayed")  # it was signed, but not for here: anybody may have sent it again
        if say.phase == "refused":
            return self.refuse(device, say.reason[:300], now)
        fault = self._unwelcome(device, Phase(say.phase), now)
        known = self._said[Phase.KEYS].get(device)
        anew = fault == "duplicate" and self.phase is Phase.KEYS and say.phase == "keys" and say != known
        if fault and not anew:  # an agent that was started again has new keys, and nobody has the old ones yet
            return self._reject(device, fault)
        self._sizes[device] += size
        try:
            self._check(device, say)
        except WireError as error:
            return self.invalid(device, error, now)
        if self.phase is Phase.KEYS:
            self.took[device] = now - self.opened
        self._said[self.phase][device] = say
        self._settle(now)
        return ""

    def receive(self, device: str, update: Update, now: float) -> str:
        """Take the masked update of `device`; return "" or the fault."""
        if fault := self._unwelcome(device, Phase.MASKED, now):
            return self._reject(device, fault)
        try:
            masked = self._masked(device, update)
        except WireError as error:
            return self.invalid(device, error, now)
        self._add(device, update, masked)
        self._settle(now)
        return ""

    def _add(self, device: str, update: Update, masked: np.ndarray) -> None:
        self._total += masked
        self.updates[device] = dataclasses.replace(update, delta={})

    def invalid(self, device: str, error: WireError, now: float) -> str:
        """Note that `device` sent something that is none of this round's messages; return the fault."""
        fault = self._unwelcome(device, self.phase, now)
        if not fault:
            self.refused[device] = str(error)
            self._settle(now)
        return self._reject(device, fault or fault_of(error))

    def refuse(self, device: str, reason: str, now: float) -> str:
        """Note that `device` takes no further part; return "" or why that was not noted."""
        if fault := self._unwelcome(device, self.phase, now):
            return self._reject(device, fault)
        self.refused[device] = reason
        self._settle(now)
        return ""

    def tick(self, now: float) -> State:
        """Return the state at `now`, after the phase's deadline had its say."""
        if self.state is State.OPEN and now >= self._phase_deadline:
            if len(self._answered) >= self.asked.threshold:
                self._advance(now)
            else:
                self._end(State.ABANDONED, f"deadline of the phase {self.phase}, quorum missed", now)
        return self.state

    # --- what goes

    @property
    def asking(self) -> bool:
        """Whether `asks` has something to send, once the round is written down."""
        return bool(self._outbox)

    def asks(self) -> list[Ask]:
        """Return what devices are to be asked now, once."""
        fresh, self._outbox = self._outbox, []
        return fresh

    def remind(self, device: str) -> None:
        """Ask a device that is back once more, unless it has answered."""
        if self._silent(device) and device in self._asks and self._asks[device] not in self._outbox:
            self._outbox.append(self._asks[device])

    # --- after a restart

    @property
    def standing(self) -> tuple[dict[str, tuple[str, ...]], float]:
        """Return whom the phases so far have asked, by phase, and when the present one ends; see `stand`."""
        return {phase.value: self._expected[phase] for phase in ORDER if phase in self._expected}, self._phase_deadline

    def stand(self, asked: Mapping[str, tuple[str, ...]], *, phase_deadline: float) -> None:
        """Be in the phase of an earlier server, which had `asked` these devices; `recall` what they said."""
        self._expected = {Phase(phase): tuple(devices) for phase, devices in asked.items()}
        self.phase, self._phase_deadline = ORDER[len(self._expected) - 1], phase_deadline

    def recall(self, device: str, say: Say, *, size: int, took: float) -> None:
        """Take again what an earlier server had checked and written down."""
        self._said[Phase(say.phase)][device] = say
        self._sizes[device] += size
        if say.phase == "keys":
            self.took[device] = took

    def recall_update(self, device: str, update: Update) -> None:
        """Take again a masked update that an earlier server had checked and written down."""
        self._add(device, update, update.delta[MASKED])

    def go_on(self, now: float) -> None:
        """Ask those again who have not answered; end the round when answers are lost that others were told of."""
        for i, phase in enumerate(ORDER[: len(self._expected) - 1]):
            known = self.updates if phase is Phase.MASKED else self._said[phase]
            if lost := sorted(set(self._expected[ORDER[i + 1]]) - known.keys()):
                why = f"the server was started again, and its journal lacks the {phase} of {', '.join(lost)}"
                self._end(State.ABANDONED, why, now)
                return
        if self.phase is not Phase.KEYS:
            self._ask()
            self._outbox = [ask for ask in self._outbox if self._silent(ask.device)]
        self._settle(now)

    def _silent(self, device: str) -> bool:
        return device not in self._answered and device not in self.refused

    # --- checks

    def _unwelcome(self, device: str, phase: Phase, now: float) -> str:
        if device not in self.cohort:
            return "stranger"
        closed = self.tick(now) is not State.OPEN
        if not closed and phase is self.phase and device not in self._answered:
            return "" if device in self._expected[phase] and device not in self.refused else "late"
        known = device in self.updates if phase is Phase.MASKED else device in self._said[phase]
        return "duplicate" if known else "late"

    def _check(self, device: str, say: Say) -> None:
        match self.phase:
            case Phase.KEYS:
                document = masking.keys_document(self.id, device, say.keys)
                good = self._new(device, say.keys) and signed_by(self.asked.keys[device], say.signature, document)
            case Phase.SHARES:
                others = set(self._expected[Phase.SHARES]) - {device}
                sealed = set(map(len, say.shares.values())) <= {SEALED_BYTES}
                good = say.shares.keys() == others and sealed and len(say.commitment) == COMMITMENT_BYTES
            case Phase.AGREED:
                members = {name: self._said[Phase.KEYS][name].keys for name in self._expected[Phase.SHARES]}
                document = masking.survivors_document(self.id, self._expected[Phase.AGREED], members)
                good = signed_by(self.asked.keys[device], say.signature, document)
            case Phase.UNMASK:
                there, all_of = set(self._expected[Phase.AGREED]), set(self._expected[Phase.MASKED])
                sizes = {len(share) for share in (*say.seeds.values(), *say.masks.values())}
                good = say.seeds.keys() <= there and say.masks.keys() <= all_of - there and sizes <= {33}
            case _:
                good = False
        if not good:
            raise MalformedMessage(
                f"the {self.phase} of {device} are not what this round wants: unsigned or incomplete"
            )

    def _new(self, device: str, keys: bytes) -> bool:
        """Return whether these are two keys, and nobody else's: with any other all honest devices would go."""
        others = {half for name, say in self._said[Phase.KEYS].items() if name != device for half in halves(say.keys)}
        mine = halves(keys)
        return len(keys) == KEYS_BYTES and len({*mine, *others}) == len(others) + 2 and all(map(masking.usable, mine))

    def _masked(self, device: str, update: Update) -> np.ndarray:
        array = update.delta.get(MASKED)
        if update.rows < self.min_rows or update.device != device:
            raise BadUpdate("rows", f"{update.rows} rows of {update.device}; need {self.min_rows} of {device}")
        if (
            array is None
            or len(update.delta) != 1
            or array.shape != self._total.shape
            or array.dtype != self._total.dtype
        ):
            held = ", ".join(f"{name} {value.dtype} {value.shape}" for name, value in update.delta.items())[:200]
            raise MalformedMessage(f"{held or 'nothing'}; expected y {self._total.dtype} {self._total.shape}")
        return array

    # --- phases

    @property
    def _answered(self) -> Mapping[str, object]:
        return self.updates if self.phase is Phase.MASKED else self._said[self.phase]

    def _settle(self, now: float) -> None:
        if self.state is not State.OPEN:
            return
        expected = set(self._expected[self.phase])
        able = len(expected - self.refused.keys() | self._answered.keys())
        if able < self.asked.threshold:
            self._end(State.ABANDONED, "quorum impossible", now)
            return
        done = expected <= self._answered.keys() | self.refused.keys() | self.lost_devices
        if done and len(self._answered) >= self.asked.threshold:
            self._advance(now)

    def _advance(self, now: float) -> None:
        there = tuple(sorted(self._answered))
        if self.phase is Phase.UNMASK:
            self._finish(now)
            return
        self.phase = ORDER[ORDER.index(self.phase) + 1]
        self._expected[self.phase] = there
        self._phase_deadline = now + self.asked.phase_s
        self._ask()

    def _ask(self) -> None:
        """Prepare what this phase asks of its devices: it follows from the phases before, and nothing else."""
        asks = {
            Phase.SHARES: self._ask_shares,
            Phase.MASKED: self._ask_masked,
            Phase.AGREED: self._ask_agreement,
            Phase.UNMASK: self._ask_unmasking,
        }[self.phase](self._expected[self.phase])
        self._asks = {ask.device: ask for ask in asks}
        self._outbox = list(asks)

    def _ask_shares(self, there: tuple[str, ...]) -> list[Ask]:
        said = self._said[Phase.KEYS]
        keys = {name: said[name].keys + said[name].signature for name in there}
        return [Ask(round=self.id, device=name, phase="shares", keys=keys) for name in there]

    def _ask_masked(self, there: tuple[str, ...]) -> list[Ask]:
        said = self._said[Phase.SHARES]
        return [
            Ask(round=self.id, device=u, phase="mask", shares={v: said[v].shares[u] for v in there if v != u})
            for u in there
        ]

    def _ask_agreement(self, there: tuple[str, ...]) -> list[Ask]:
        return [Ask(round=self.id, device=name, phase="agree", devices=there) for name in there]

    def _ask_unmasking(self, there: tuple[str, ...]) -> list[Ask]:
        signatures = {name: self._said[Phase.AGREED][name].signature for name in there}
        return [Ask(round=self.id, device=name, phase="unmask", signatures=signatures) for name in there]

    # --- the end

    def _finish(self, now: float) -> None:
        try:
            self.change = self._unmasked()
        except Unopened as error:
            self.culprit = error.device
            self._end(State.ABANDONED, str(error), now)
        except MalformedMessage as error:
            self._end(State.ABANDONED, str(error), now)
        else:
            self._end(State.CLOSED, "all answered" if len(self.updates) == len(self.cohort) else "quorum reached", now)

    def _unmasked(self) -> dict[str, np.ndarray]:
        """Return what the sum stands for; raise MalformedMessage when the masks cannot be taken off."""
        total, there = self._total.copy(), self._expected[Phase.AGREED]
        keys, said = self._said[Phase.KEYS], self._said[Phase.SHARES]
        opener = Opener(self._expected[Phase.SHARES], self._said[Phase.UNMASK], self.asked.threshold)
        for name in there:
            seed = opener.seed(name, said[name].commitment)
            total -= masking.stream(seed, total.size, total.dtype)
        for gone in sorted(set(self._expected[Phase.MASKED]) - set(there)):
            private = opener.mask_key(gone, keys[gone].keys[masking.KEY_BYTES :])
            for name in there:
                mask = masking.pair_mask(private, keys[name].keys[masking.KEY_BYTES :], total.size, dtype=total.dtype)
                total += -mask if name < gone else mask
        weights = sum(self._layout.last(self.asked, self.updates[name].rows) for name in there)
        if int(total[-1]) != weights % 2**self.asked.bits:
            raise MalformedMessage("the masks do not cancel, or a device's weight is not of the rows that it told")
        return self._layout.read(total, self.asked, devices=len(there))

    def _end(self, state: State, why: str, now: float) -> None:
        self.state, self.why, self._ended = state, why, now
        self._outbox, self._asks = [], {}
        sizes = self._sizes
        self.updates = {name: dataclasses.replace(u, size=u.size + sizes[name]) for name, u in self.updates.items()}
        if state is State.ABANDONED:
            self.change = None

    def _reject(self, device: str, fault: str) -> str:
        name = device if device in self.cohort else OTHERS
        self.rejected.setdefault(name, Counter())[fault] += 1
        return fault
