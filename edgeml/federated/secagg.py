"""The server's side of secure aggregation as a pure state machine (Bonawitz and others, CCS 2017, figure 4).

    KEYS > SHARES > MASKED > AGREED > UNMASK > closed      any of them > abandoned, below the threshold

`SecureRound` takes the place of a `Round`: it is fed the same events, and what devices say between. In the end it has
the mean of the updates of those that sent one, and never had any of them. Devices may go at any time: until they have
sent their masked update nothing of them is in the sum, after that all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np

from edgeml.errors import UserError
from edgeml.federated.opening import Opener, Unopened
from edgeml.federated.roll import OTHERS, Roll, State
from edgeml.federated.updates import BadUpdate, Update, fault_of
from edgeml_runtime.wire import MalformedMessage, WireError, masking, shamir
from edgeml_runtime.wire.masking import MASKED, halves
from edgeml_runtime.wire.messages import Secure
from edgeml_runtime.wire.secure import MAX_DEVICES, Ask, Say, signed_by

KEYS_BYTES, COMMITMENT_BYTES = 2 * masking.KEY_BYTES, 32
SEALED_BYTES = 2 * shamir.SHARE_BYTES + 16  # two shares and Poly1305's tag


@dataclass(frozen=True, kw_only=True)
class Masks:
    """How a plan sums updates unseen. `bound` is of every value of an update; larger ones are cut to it."""

    bound: float = 4.0
    bits: Literal[16, 32, 64] = 32  # of a value on the wire
    share: float = 0.67  # of the cohort that must last to the end
    phase_s: float = 15.0

    def __post_init__(self) -> None:
        if not 0.5 < self.share <= 1:
            raise UserError(f"a share of {self.share}: more than half of the cohort must last, at most all of it")
        if not self.bound > 0 or not self.phase_s > 0:
            raise UserError(f"bound {self.bound} and phase_s {self.phase_s} must be above 0")


def terms(masks: Masks, keys: Mapping[str, str], *, least: int, rows: int) -> Secure:
    """Return what a round over the devices of `keys` asks; `rows` weigh 1, 0: all devices the same.

    Raises UserError when so many devices do not fit one round.
    """
    if not 2 <= len(keys) <= MAX_DEVICES:
        raise UserError(
            f"secure aggregation of {len(keys)} devices: it takes 2 to {MAX_DEVICES} at once; "
            f"{'ask more devices' if len(keys) < 2 else 'choose a smaller cohort'}"
        )
    count = len(keys)
    threshold = min(count, max(least, 2, int(masks.share * count) + 1))
    return Secure(
        keys=dict(keys), threshold=threshold, bound=masks.bound, rows=rows, bits=masks.bits, phase_s=masks.phase_s
    )


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
        shapes: Mapping[str, tuple[int, ...]],
        min_rows: int = 1,
    ) -> None:
        """Open it; `deadline` is of the training, after which every phase has `asked.phase_s`."""
        super().__init__(id, frozenset(asked.keys), quorum=asked.threshold, opened=opened)  # updates without values
        self.asked, self.phase, self.target = asked, Phase.KEYS, asked.threshold
        self.deadline, self.min_rows = deadline, min_rows
        self.weight = 0.0
        self.culprit = ""  # the device whose shares did not open
        self._shapes, self._phase_deadline = dict(shapes), deadline
        self._expected: dict[Phase, tuple[str, ...]] = {Phase.KEYS: tuple(sorted(self.cohort))}
        self._said: dict[Phase, dict[str, Say]] = {phase: {} for phase in Phase}
        self._sizes: Counter[str] = Counter()
        self._total = np.zeros(masking.length(shapes), masking.ring(asked.bits))
        self._asks: dict[str, Ask] = {}  # the last one of every device
        self._outbox: list[Ask] = []

    @property
    def step(self) -> float:
        """What one unit of the sum is worth, where every device weighs the same."""
        return self.asked.bound / masking.whole(self.asked)

    # --- what comes

    def said(self, device: str, say: Say, now: float, *, size: int = 0) -> str:
        """Take what a device says between its keys and its shares of the others; return "" or the fault."""
        if say.phase == "refused" and (say.round, say.device) == (self.id, device):
            return self.refuse(device, say.reason[:300], now)
        fault = self._unwelcome(device, Phase(say.phase) if say.phase != "refused" else self.phase, now)
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
        self._total += masked
        self.updates[device] = Update(
            device, update.rows, {}, metrics=update.metrics, size=update.size + self._sizes[device]
        )
        self._settle(now)
        return ""

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

    def asks(self) -> list[Ask]:
        """Return what devices are to be asked now, once."""
        fresh, self._outbox = self._outbox, []
        return fresh

    def ask_of(self, device: str) -> Ask | None:
        """Return the last ask of `device`, to be sent again to one that is back."""
        return self._asks.get(device) if self.state is State.OPEN else None

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
        if (say.round, say.device) != (self.id, device):
            raise MalformedMessage(f"an answer of {say.device} in round {say.round}; expected {device} in {self.id}")
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
        asks = {
            Phase.KEYS: self._ask_shares,
            Phase.SHARES: self._ask_masked,
            Phase.MASKED: self._ask_agreement,
            Phase.AGREED: self._ask_unmasking,
        }[self.phase](there)
        self.phase = ORDER[ORDER.index(self.phase) + 1]
        self._expected[self.phase] = there
        self._phase_deadline = now + self.asked.phase_s
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
            self.change, self.weight = self._unmasked()
        except Unopened as error:
            self.culprit = error.device
            self._end(State.ABANDONED, str(error), now)
        except MalformedMessage as error:
            self._end(State.ABANDONED, str(error), now)
        else:
            self._end(State.CLOSED, "all answered" if len(self.updates) == len(self.cohort) else "quorum reached", now)

    def _unmasked(self) -> tuple[dict[str, np.ndarray], float]:
        """Return the mean and the sum of weights; raise MalformedMessage when the masks cannot be taken off."""
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
        weights = sum(int(masking.fixed({}, self.asked, rows=self.updates[name].rows)[0]) for name in there)
        if int(total[-1]) != weights % 2**self.asked.bits:
            raise MalformedMessage("the masks do not cancel, or a device's weight is not of the rows that it told")
        return masking.mean_of(total, self.asked, self._shapes)

    def _end(self, state: State, why: str, now: float) -> None:
        self.state, self.why, self._ended = state, why, now
        self._outbox, self._asks = [], {}
        if state is State.ABANDONED:
            self.change = None

    def _reject(self, device: str, fault: str) -> str:
        name = device if device in self.cohort else OTHERS
        self.rejected.setdefault(name, Counter())[fault] += 1
        return fault
