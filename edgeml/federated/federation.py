"""A sequence of rounds over one model: whom to ask next, what came of it, when it is enough.

Pure like `Round`: the caller sends what `offer` returns, feeds what arrives into the open round and
calls `conclude`. The caller also scores the new parameters, on data that only it has.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from edgeml.artifacts import Task
from edgeml.errors import UserError
from edgeml.federated.aggregate import aggregate, apply_delta, least_updates
from edgeml.federated.cohort import Candidate, candidates_of, choose, deadline_after
from edgeml.federated.combinations import check_plan
from edgeml.federated.layouts import Mean
from edgeml.federated.masks import Masks, at_most, terms
from edgeml.federated.offers import check_upload, make_offer
from edgeml.federated.plan import Plan
from edgeml.federated.privacy import Ledger, adapted, drawn, noised_mean, noised_sum, require_accountant
from edgeml.federated.results import KEYLESS, RoundResult, abandoned, culprits, gave_up
from edgeml.federated.roll import Outcome, State
from edgeml.federated.round import Round
from edgeml.federated.secagg import SecureRound
from edgeml.federated.server_step import Memory, take
from edgeml.federated.updates import Update, mean_told
from edgeml_runtime.wire.messages import TaskOffer
from edgeml_runtime.wire.tasks import LOSS_AFTER, LOSS_BEFORE
from edgeml_runtime.wire.topics import DEVICE_ID

REMEMBERED_DURATIONS = 200  # answers that the adaptive deadline looks back on


class Federation:
    """Rounds of one model; `run` names them and must not be used twice on one broker."""

    def __init__(
        self,
        run: str,
        plan: Plan,
        *,
        model: str,
        parameters: Mapping[str, np.ndarray],
        controls: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        if not DEVICE_ID.fullmatch(f"{run}-{plan.rounds}"):
            raise UserError(f"a federation called {run!r}: use up to 56 characters of A-Z a-z 0-9 _ -")
        check_plan(plan)
        if plan.privacy.where:
            require_accountant()
        rule, byzantine = plan.row.rule, plan.believe.byzantine
        if plan.min_devices < (least := least_updates(rule, plan.believe)):
            raise UserError(
                f"min_devices {plan.min_devices}: {rule} against {byzantine} byzantine devices needs "
                f"{least} updates; raise min_devices, or expect fewer byzantine ones"
            )
        self.run, self.plan, self.model = run, plan, model
        self.parameters: dict[str, np.ndarray] = dict(parameters)
        self.controls: dict[str, np.ndarray] = dict(controls or {})  # SCAFFOLD's c
        self.known: dict[str, int] = {}  # rows to learn from of every device that was ever there, about so many
        self.history: list[RoundResult] = []
        self.round: Round | SecureRound | None = None
        self.memory = Memory()
        self.last_round: dict[str, int] = {}  # device -> number of the last round whose aggregate it is part of
        self.durations: list[float] = []  # seconds from an offer to an update, the newest last
        self._next_clip = 0.0
        self.passed_over: dict[str, str] = {}  # devices that the last draw left out, and why

    @property
    def offered(self) -> dict[str, np.ndarray]:
        """All arrays that devices get, and send back as changes."""
        return {**self.parameters, **self.controls}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of what is offered."""
        return {name: value.shape for name, value in self.offered.items()}

    @property
    def clip_norm(self) -> float:
        """How long an update of the next round may be, with differential privacy."""
        return next((r.next_clip for r in reversed(self.history) if r.next_clip), self.plan.privacy.clip_norm)

    @property
    def closed(self) -> int:
        """How many rounds changed the parameters."""
        return sum(result.state == State.CLOSED.value for result in self.history)

    @property
    def given_up(self) -> bool:
        """Whether the last rounds all missed their quorum."""
        return gave_up(self.history, self.plan.max_abandoned)

    @property
    def ledger(self) -> Ledger:
        """What the rounds so far have told of the devices."""
        found = Ledger()
        for result in self.history if self.plan.privacy.where else ():
            found = found.after(result.asked, closed=result.state == State.CLOSED.value)
        return found

    @property
    def finished(self) -> bool:
        spent = not self.ledger.allows(self.plan.privacy, ())
        return self.round is None and (self.closed >= self.plan.rounds or self.given_up or spent)

    def begin(self, fleet: Mapping[str, int] | Sequence[Candidate], now: float) -> Round | SecureRound | None:
        """Open the next round over devices of `fleet`, candidates or labelled rows by device.

        None when the federation is finished, a round is open, or too few devices may take part; `passed_over`
        then says why.
        """
        if self.finished or self.round is not None:
            return None
        plan, number = self.plan, len(self.history) + 1
        known = candidates_of(fleet)
        self.known |= {one.device: round(one.rows * (1 - plan.held_out)) for one in known}
        ledger = self.ledger
        barred = {one.device: why for one in known if (why := _bar(one, plan, ledger))}
        barred |= culprits(self.history)
        candidates = [
            dataclasses.replace(one, last_round=self.last_round.get(one.device, 0))
            for one in known
            if one.device not in barred
        ]
        quorum, draw = plan.quorum, (plan.seed, number)
        chosen = choose(candidates, plan.cohort, min_rows=plan.min_rows, quorum=quorum, draw=draw)
        self.passed_over = {**chosen.passed_over, **barred}
        asked = drawn(chosen.asked, plan.privacy.sampling)
        if plan.secure is not None and plan.privacy.sampling == 1:  # a second draw would be another chance
            asked, beyond = at_most(asked, draw=draw)
            self.passed_over |= beyond
        if chosen.asked and len(asked) < quorum:
            self._skip(f"{self.run}-{number}", len(asked))
        if len(asked) < quorum:
            return None
        deadline_s = deadline_after(self.durations, plan.patience, longest_s=plan.deadline_s)
        if plan.secure is not None:
            devices = [one for one in candidates if one.device in asked]
            self.round = self._secure(f"{self.run}-{number}", devices, now=now, deadline=now + deadline_s)
            return self.round
        self.round = Round(
            f"{self.run}-{number}",
            asked,
            quorum=quorum,
            opened=now,
            deadline=now + deadline_s,
            parameters=self.offered,
            min_rows=plan.least("training"),
            target=chosen.target if plan.privacy.sampling == 1 else None,
            check=self.checked,
        )
        return self.round

    def _secure(self, round_id: str, devices: Sequence[Candidate], *, now: float, deadline: float) -> SecureRound:
        plan = self.plan
        masks = plan.secure or Masks()
        if plan.privacy.where == "server":  # no value of a clipped update is larger
            masks = dataclasses.replace(masks, bound=plan.privacy.clip_norm)
        rows = 0 if plan.privacy.where else max(one.rows for one in devices)
        keys = {one.device: one.key for one in devices}
        asked = terms(masks, keys, least=plan.quorum, rows=rows)
        least, layout = plan.least("training"), Mean(self.shapes)
        return SecureRound(round_id, asked, opened=now, deadline=deadline, layout=layout, min_rows=least)

    def _skip(self, round_id: str, drew: int) -> None:
        """Write down a round that chance gave too few devices: drawing again would favour those that are drawn."""
        why = f"{drew} devices were drawn, and {self.plan.quorum} are needed: raise sampling"
        self.history.append(abandoned(round_id, why, epsilon=self.ledger.epsilon(self.plan.privacy)))

    def checked(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the changes in an upload, as they were before compression; raise WireError when it has none."""
        return check_upload(arrays, self.plan, self.offered)

    def offer(self, task: Task) -> tuple[TaskOffer, bytes]:
        """Return the offer of the open round, to be signed, and the parameters blob it names."""
        if self.round is None:
            raise UserError(f"federation {self.run}: no round is open; begin one first")
        return make_offer(
            self.plan,
            task,
            parameters=self.offered,
            round=self.round.id,
            model=self.model,
            cohort=self.round.cohort,
            number=len(self.history),
            deadline_s=self.round.deadline - self.round.opened,
            secure=self.round.asked if isinstance(self.round, SecureRound) else None,
        )

    def conclude(self, now: float) -> RoundResult | None:
        """Return the result of the open round once it is over, with `parameters` moved on if it closed."""
        if self.round is None or self.round.tick(now) is State.OPEN:
            return None
        outcome = self.round.outcome
        assert outcome is not None
        if outcome.state is State.CLOSED:
            self._learn(outcome)
        asked, closed = sorted(self.round.cohort), outcome.state is State.CLOSED
        told = () if self.plan.privacy.where else outcome.updates  # losses carry no noise
        result = RoundResult(
            round=outcome.round,
            state=outcome.state.value,
            participants=tuple(update.device for update in outcome.updates),
            loss_before=mean_told(told, LOSS_BEFORE),
            loss=mean_told(told, LOSS_AFTER),
            bytes_up=sum(update.size for update in outcome.updates),
            seconds=outcome.seconds,
            why=outcome.why,
            asked=tuple(asked),
            epsilon=self.ledger.after(asked, closed=closed).epsilon(self.plan.privacy),
            next_clip=self._next_clip if closed else 0.0,
            culprit=self.round.culprit if isinstance(self.round, SecureRound) else "",
        )
        self.history.append(result)
        self.durations = [*self.durations, *outcome.took.values()][-REMEMBERED_DURATIONS:]
        if outcome.state is State.CLOSED:
            self.last_round |= dict.fromkeys(result.participants, len(self.history))
        self.round = None
        return result

    def _change(self, outcome: Outcome) -> Mapping[str, np.ndarray]:
        """Return what the updates of a closed round come to, with the server's noise where the plan has some."""
        privacy, updates = self.plan.privacy, outcome.updates
        if outcome.change is not None and privacy.where == "server":
            assert isinstance(self.round, SecureRound)
            total = {name: value * len(updates) for name, value in outcome.change.items()}
            return noised_sum(total, privacy, count=len(updates), step=self.round.step)
        if outcome.change is not None:
            return {name: np.asarray(value, np.float32) for name, value in outcome.change.items()}
        if privacy.where == "server":
            deltas = [update.delta for update in updates]
            if privacy.adapt:
                privacy, self._next_clip = adapted(deltas, dataclasses.replace(privacy, clip_norm=self.clip_norm))
            return noised_mean(deltas, privacy)
        believe = dataclasses.replace(self.plan.believe, rate=self.plan.learning_rate)
        return aggregate([self._with_steps(update) for update in updates], rule=self.plan.row.rule, believe=believe)

    def _learn(self, outcome: Outcome) -> None:
        """Move the parameters on, and c by what the c_i of the participants moved, as their part of all known rows."""
        row, change, updates = self.plan.row, self._change(outcome), outcome.updates
        moved = {name: change[name] for name in self.parameters}
        step, self.memory = take(row.server, moved, self.memory)
        self.parameters = apply_delta(self.parameters, step)
        present = sum(update.rows for update in updates)
        known = self.known | {update.device: update.rows for update in updates}
        share = np.float32(present / sum(known.values()))
        self.controls = apply_delta(self.controls, {name: share * change[name] for name in self.controls})

    def _with_steps(self, update: Update) -> Update:
        """Count what the gradients of `update` weigh together: its steps, with momentum m (arXiv 2007.07481, 4.1)

        (K - m (1 - m^K) / (1 - m)) / (1 - m). A device that did less than it was asked for says so.
        """
        most, m = self.plan.local_epochs * math.ceil(update.rows / self.plan.batch_size), self.plan.momentum
        told = update.metrics.get("steps", math.inf)
        steps = min(most, told) if told >= 1 else most
        return dataclasses.replace(update, steps=(steps - m * (1 - m**steps) / (1 - m)) / (1 - m))

    def note(self, *, metric: float | None = None, bytes_down: int = 0) -> RoundResult:
        """Fill in what only the caller knows of the last round; return the completed result."""
        if not self.history:
            raise UserError(f"federation {self.run}: no round has ended yet")
        self.history[-1] = dataclasses.replace(self.history[-1], metric=metric, bytes_down=bytes_down)
        return self.history[-1]


def _bar(one: Candidate, plan: Plan, ledger: Ledger) -> str:
    """Return why privacy keeps a device out of the next round, or ""."""
    if plan.secure is not None and not one.key:
        return KEYLESS
    if not ledger.allows(plan.privacy, (one.device,)):
        return f"another round would tell more of it than max_epsilon {plan.privacy.max_epsilon:g}"
    return ""
