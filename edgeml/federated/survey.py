"""A study over a fleet: rounds whose answers are added up, until the last sum gives the result. Pure, as `Federation`.

What is exact is exact for the devices that were asked: those that answered the first round are asked in every later
one, and where one of them is missing the study begins again with the ones that are there. Under masks it does not:
the same sum without one device would tell what that device answered. The question is put again, or left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeml.artifacts import Task
from edgeml.errors import DataError, UserError
from edgeml.federated.cohort import Candidate, CohortOptions, candidates_of, choose, deadline_after
from edgeml.federated.layouts import Sum
from edgeml.federated.masks import at_most, ranges_of, terms
from edgeml.federated.offers import make_offer
from edgeml.federated.plan import Plan
from edgeml.federated.results import KEYLESS, RoundResult, abandoned, culprits, gave_up
from edgeml.federated.roll import Outcome, State
from edgeml.federated.round import Round
from edgeml.federated.secagg import SecureRound
from edgeml.federated.updates import Update, check_outputs
from edgeml_runtime.wire.masked_sums import length
from edgeml_runtime.wire.messages import TaskOffer
from edgeml_runtime.wire.tasks import KEEP

if TYPE_CHECKING:
    from edgeml.tasks.study import Study

ITEM_BYTES = 8  # the widest number of an answer
SLACK_BYTES = 16 << 10


class Survey:
    """Rounds of one study; `run` names them and must not be used twice on one broker."""

    def __init__(self, run: str, plan: Plan, *, model: str, study: Study) -> None:
        self.run, self.model = run, model
        self.plan = dataclasses.replace(plan, compress="", strategy="fedavg")
        self.study, self._first = study, study
        self.history: list[RoundResult] = []
        self.round: Round | SecureRound | None = None
        self.sums: list[dict[str, np.ndarray]] = []  # of every round since the study began (again)
        self.members: frozenset[str] = frozenset()  # who answered its first round
        self.rows = 0  # of the members
        self.passed_over: Mapping[str, str] = {}
        self.last_round: dict[str, int] = {}
        self.durations: list[float] = []

    @property
    def parameters(self) -> dict[str, np.ndarray]:
        """Nothing: what a study found is its result."""
        return {}

    @property
    def closed(self) -> int:
        """How many questions have their sums."""
        return len(self.sums)

    @property
    def given_up(self) -> bool:
        """Whether the last rounds were all abandoned."""
        return gave_up(self.history, self.plan.max_abandoned)

    @property
    def finished(self) -> bool:
        return self.round is None and (self.study.done or self.given_up)

    def begin(self, fleet: Mapping[str, int] | Sequence[Candidate], now: float) -> Round | SecureRound | None:
        """Open the next round: over all devices that may take part, or over those that answered the first."""
        if self.finished or self.round is not None:
            return None
        plan, number = self.plan, len(self.history) + 1
        known, barred = self._able(candidates_of(fleet))
        options = dataclasses.replace(plan.cohort, target=0)
        if self.members:
            known = [one for one in known if one.device in self.members]
            options = CohortOptions()
        quorum, draw = max(plan.min_devices, len(self.members)), (plan.seed, number)
        chosen = choose(known, options, min_rows=plan.min_rows, quorum=quorum, draw=draw)
        asked, beyond = at_most(chosen.asked, draw=draw) if plan.secure else (chosen.asked, {})
        self.passed_over = {**chosen.passed_over, **barred, **beyond}
        if not asked:
            return None
        deadline = now + deadline_after(self.durations, plan.patience, longest_s=plan.deadline_s)
        if plan.secure is not None:
            keys, outputs = {one.device: one.key for one in known if one.device in asked}, self.study.task().outputs
            self.round = SecureRound(
                f"{self.run}-{number}",
                terms(plan.secure, keys, least=quorum, rows=0, ranges=ranges_of(outputs, plan.secure)),
                opened=now,
                deadline=deadline,
                layout=Sum(outputs),
                min_rows=plan.least(self.study.kind),
            )
            return self.round
        self.round = Round(
            f"{self.run}-{number}",
            asked,
            quorum=quorum,
            opened=now,
            deadline=deadline,
            parameters={},
            min_rows=plan.least(self.study.kind),
            check=self.checked,
        )
        return self.round

    def _able(self, known: Sequence[Candidate]) -> tuple[list[Candidate], dict[str, str]]:
        """Return the devices that could take part in a masked round, all in an open one, and why not the others."""
        if self.plan.secure is None:
            return list(known), {}
        barred = {one.device: KEYLESS for one in known if not one.key} | culprits(self.history)
        return [one for one in known if one.device not in barred], barred

    def checked(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs that the present task declares; raise WireError for anything else."""
        return check_outputs(arrays, self.study.task().outputs)

    def offer(self, task: Task) -> tuple[TaskOffer, bytes]:
        """Return the offer of the open round's `task`, to be signed, and the parameters blob it names."""
        if self.round is None:
            raise UserError(f"survey {self.run}: no round is open; begin one first")
        offer, blob = make_offer(
            self.plan,
            task,
            parameters=task.parameters,
            round=self.round.id,
            model=self.model,
            cohort=self.round.cohort,
            number=len(self.history),
            deadline_s=self.round.deadline - self.round.opened,
            secure=self.round.asked if isinstance(self.round, SecureRound) else None,
        )
        numbers = sum(int(np.prod(s, initial=1)) for name, (_, s) in task.outputs.items() if not name.startswith(KEEP))
        if isinstance(self.round, SecureRound):
            numbers = length(task.outputs)
        return dataclasses.replace(offer, max_update_bytes=numbers * ITEM_BYTES + SLACK_BYTES), blob

    def conclude(self, now: float) -> RoundResult | None:
        """Return the result of the open round once it is over; what it gave has gone into the study."""
        if self.round is None or self.round.tick(now) is State.OPEN:
            return None
        outcome = self.round.outcome
        assert outcome is not None
        result = RoundResult(
            round=outcome.round,
            state=outcome.state.value,
            participants=tuple(update.device for update in outcome.updates),
            loss_before=None,
            loss=None,
            bytes_up=sum(update.size for update in outcome.updates),
            seconds=outcome.seconds,
            why=outcome.why,
            culprit=self.round.culprit if isinstance(self.round, SecureRound) else "",
        )
        if outcome.state is State.CLOSED:
            result = self._take(outcome, result)
            self.durations += outcome.took.values()
        if result.state == State.ABANDONED.value and self.members:
            self._restart()
        self.history.append(result)
        self.round = None
        return result

    def skip(self, why: str) -> RoundResult:
        """Write down a round that could not begin, for this reason; in the open, others may then begin the study."""
        self.history.append(abandoned(f"{self.run}-{len(self.history) + 1}", why))
        self._restart()
        return self.history[-1]

    def _restart(self) -> None:
        if self.plan.secure is not None:
            return
        self.study, self.sums, self.members, self.rows = self._first, [], frozenset(), 0

    def replay(self, sums: Sequence[Mapping[str, np.ndarray]]) -> None:
        """Take the sums of an earlier process: the study asks what it would have asked there."""
        for one in sums:
            self.study = self.study.take(one)
        self.sums = [dict(one) for one in sums]

    def result(self) -> Any:
        """Return what the study found; raise UserError while it is not done."""
        return self.study.result()

    def _take(self, outcome: Outcome, result: RoundResult) -> RoundResult:
        updates = outcome.updates
        sums = self._added(updates) if outcome.change is None else dict(outcome.change)
        try:
            self.study = self.study.take(sums)
        except DataError as error:
            return dataclasses.replace(result, state=State.ABANDONED.value, why=str(error))
        self.sums.append(sums)
        if not self.members:
            self.members, self.rows = frozenset(result.participants), sum(update.rows for update in updates)
        return result

    def _added(self, updates: Sequence[Update]) -> dict[str, np.ndarray]:
        """Return the sums of answers that are seen one by one, the same whoever came first."""
        sums: dict[str, np.ndarray] = {}
        for update in sorted(updates, key=lambda one: one.device):
            own = {name: value.astype(np.float64) for name, value in update.delta.items()}
            own |= self.study.beside(own)
            sums = {name: sums.get(name, np.float64(0)) + value for name, value in own.items()}
        return sums
