"""What of a federation must outlive its process: plain facts and arrays out, the same federation in again.

Updates are not here: whoever keeps them feeds them into the resumed round as they once arrived. Time that
passed while nobody served does not count against a round, so a wrong clock cannot end one.

Of a masked round everything is kept that the server has: public keys, encrypted shares that it cannot open, masked
updates, signatures, and the shares it was given in the end. That is what it had in memory, and opens no update.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from edgeml.errors import UserError
from edgeml.federated.buffer import Buffer, Ticket
from edgeml.federated.federation import Federation
from edgeml.federated.layouts import Layout, Mean, Sum
from edgeml.federated.results import RoundResult
from edgeml.federated.round import Check, Round
from edgeml.federated.secagg import SecureRound
from edgeml.federated.server_step import Memory
from edgeml.federated.survey import Survey
from edgeml.federated.updates import Update
from edgeml_runtime.wire.messages import Secure

PARAMETERS, CONTROLS, MEMORY, SUMS = "parameters.", "controls.", "memory.", "sums."
LEAST_SHARE = 0.25  # of its deadline that a resumed round has at least: devices must find the server again


@dataclass(frozen=True, kw_only=True)
class RoundState:
    """An open round, without its updates."""

    id: str
    cohort: tuple[str, ...]
    quorum: int
    target: int
    min_rows: int
    elapsed_s: float
    deadline_s: float
    refused: Mapping[str, str] = field(default_factory=dict)
    rejected: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SecureState:
    """An open round of masked updates, without what devices have said and sent."""

    id: str
    terms: Secure
    asked: Mapping[str, tuple[str, ...]]  # by each phase so far
    min_rows: int
    elapsed_s: float
    deadline_s: float
    left_s: float  # of the present phase
    refused: Mapping[str, str] = field(default_factory=dict)
    rejected: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FederationState:
    """A federation between two events."""

    history: tuple[RoundResult, ...] = ()
    last_round: Mapping[str, int] = field(default_factory=dict)
    durations: tuple[float, ...] = ()
    known: Mapping[str, int] = field(default_factory=dict)  # device -> rows
    round: RoundState | None = None
    masked: SecureState | None = None  # in its place


@dataclass(frozen=True, kw_only=True)
class SurveyState:
    """A survey between two events; its sums are arrays."""

    history: tuple[RoundResult, ...] = ()
    members: tuple[str, ...] = ()
    rows: int = 0
    durations: tuple[float, ...] = ()
    taken: int = 0  # rounds since the study began
    round: RoundState | None = None
    masked: SecureState | None = None  # in its place


@dataclass(frozen=True, kw_only=True)
class BufferState:
    """A buffer, without the updates in it. Times of tickets are ages."""

    version: int
    steps: int
    elapsed_s: float
    tickets: tuple[Ticket, ...] = ()
    seen: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    rejected: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def round_state(round: Round, now: float) -> RoundState:
    """Return what of an open round must be kept."""
    return RoundState(
        id=round.id,
        cohort=tuple(sorted(round.cohort)),
        quorum=round.quorum,
        target=round.target,
        min_rows=round.min_rows,
        elapsed_s=max(0.0, now - round.opened),
        deadline_s=round.deadline - round.opened,
        refused=dict(round.refused),
        rejected={device: dict(counts) for device, counts in round.rejected.items()},
    )


def resume_round(state: RoundState, parameters: Mapping[str, np.ndarray], *, check: Check, now: float) -> Round:
    """Return the round as it was, with at least a quarter of its deadline left."""
    elapsed = min(state.elapsed_s, (1 - LEAST_SHARE) * state.deadline_s)
    again = Round(
        state.id,
        frozenset(state.cohort),
        quorum=state.quorum,
        opened=now - elapsed,
        deadline=now - elapsed + state.deadline_s,
        parameters=parameters,
        min_rows=state.min_rows,
        target=state.target,
        check=check,
    )
    again.refused = dict(state.refused)
    again.rejected = {device: Counter(counts) for device, counts in state.rejected.items()}
    return again


def secure_state(round: SecureRound, now: float) -> SecureState:
    """Return what of an open round of masked updates must be kept beside what came."""
    asked, ends = round.standing
    return SecureState(
        id=round.id,
        terms=round.asked,
        asked=asked,
        min_rows=round.min_rows,
        elapsed_s=max(0.0, now - round.opened),
        deadline_s=round.deadline - round.opened,
        left_s=max(0.0, ends - now),
        refused=dict(round.refused),
        rejected={device: dict(counts) for device, counts in round.rejected.items()},
    )


def resume_secure(state: SecureState, layout: Layout, *, now: float) -> SecureRound:
    """Return the round in the phase it was in, to be told what came; at least a quarter of the phase is left."""
    elapsed = min(state.elapsed_s, (1 - LEAST_SHARE) * state.deadline_s)
    opened, phase_s = now - elapsed, state.deadline_s if len(state.asked) == 1 else state.terms.phase_s
    deadline = opened + state.deadline_s
    again = SecureRound(state.id, state.terms, opened=opened, deadline=deadline, layout=layout, min_rows=state.min_rows)
    again.stand(state.asked, phase_deadline=now + max(state.left_s, LEAST_SHARE * phase_s))
    again.refused = dict(state.refused)
    again.rejected = {device: Counter(counts) for device, counts in state.rejected.items()}
    return again


def state_of(federation: Federation, now: float) -> FederationState:
    """Return the facts of a federation; its arrays are `arrays_of`."""
    return FederationState(
        history=tuple(federation.history),
        last_round=dict(federation.last_round),
        durations=tuple(federation.durations),
        known=dict(federation.known),
        round=round_state(federation.round, now) if isinstance(federation.round, Round) else None,
        masked=secure_state(federation.round, now) if isinstance(federation.round, SecureRound) else None,
    )


def arrays_of(federation: Federation | Buffer) -> dict[str, np.ndarray]:
    """Return the parameters and all that the server's step remembers; they change when a round closes."""
    found = {PARAMETERS + name: value for name, value in federation.parameters.items()}
    if isinstance(federation, Federation):
        found |= {CONTROLS + name: value for name, value in federation.controls.items()}
    for part in dataclasses.fields(federation.memory):
        for name, value in getattr(federation.memory, part.name).items():
            found[f"{MEMORY}{part.name}.{name}"] = value
    return found


def resume(federation: Federation, state: FederationState, arrays: Mapping[str, np.ndarray], *, now: float) -> None:
    """Bring a fresh `federation` of the same plan to where `state` and `arrays` were taken.

    Raises UserError when they are of another model.
    """
    parameters = _parameters(arrays, federation.parameters, run=federation.run)
    federation.parameters, federation.memory = parameters, _memory(arrays)
    federation.controls, federation.known = _part(arrays, CONTROLS), dict(state.known)
    federation.history = list(state.history)
    federation.last_round, federation.durations = dict(state.last_round), list(state.durations)
    if state.round is not None:
        federation.round = resume_round(state.round, federation.offered, check=federation.checked, now=now)
    if state.masked is not None:
        federation.round = resume_secure(state.masked, Mean(federation.shapes), now=now)


def survey_state(survey: Survey, now: float) -> SurveyState:
    """Return the facts of a survey; its arrays are `survey_arrays`."""
    return SurveyState(
        history=tuple(survey.history),
        members=tuple(sorted(survey.members)),
        rows=survey.rows,
        durations=tuple(survey.durations),
        taken=len(survey.sums),
        round=round_state(survey.round, now) if isinstance(survey.round, Round) else None,
        masked=secure_state(survey.round, now) if isinstance(survey.round, SecureRound) else None,
    )


def survey_arrays(survey: Survey) -> dict[str, np.ndarray]:
    """Return the sums of every round since the study began."""
    return {f"{SUMS}{i}.{name}": value for i, sums in enumerate(survey.sums) for name, value in sums.items()}


def resume_survey(survey: Survey, state: SurveyState, arrays: Mapping[str, np.ndarray], *, now: float) -> None:
    """Bring a fresh `survey` of the same study to where it was; raise DataError when the sums do not fit it."""
    survey.replay([_part(arrays, f"{SUMS}{i}.") for i in range(state.taken)])
    survey.history, survey.durations = list(state.history), list(state.durations)
    survey.members, survey.rows = frozenset(state.members), state.rows
    if state.round is not None:
        survey.round = resume_round(state.round, {}, check=survey.checked, now=now)
    if state.masked is not None:
        survey.round = resume_secure(state.masked, Sum(survey.study.task().outputs), now=now)


def buffer_state(buffer: Buffer, now: float) -> BufferState:
    """Return the facts of a buffer; its arrays are `arrays_of`."""
    return BufferState(
        version=buffer.version,
        steps=buffer.steps,
        elapsed_s=max(0.0, now - buffer.began),
        tickets=tuple(
            dataclasses.replace(one, asked=now - one.asked, deadline=one.deadline - now)
            for one in buffer.tickets.values()
        ),
        seen=dict(buffer.seen),
        refused=dict(buffer.refused),
        rejected={device: dict(counts) for device, counts in buffer.rejected.items()},
    )


def resume_buffer(
    buffer: Buffer,
    state: BufferState,
    arrays: Mapping[str, np.ndarray],
    *,
    held: Iterable[tuple[Update, int]],
    run: str,
    now: float,
) -> None:
    """Bring a fresh `buffer` to where it was, `held` being the updates in it with the versions they are of.

    Raises UserError when they are of another model.
    """
    buffer.parameters, buffer.memory = _parameters(arrays, buffer.parameters, run=run), _memory(arrays)
    buffer.version, buffer.steps = state.version, state.steps
    most = (1 - LEAST_SHARE) * buffer.deadline_s
    buffer.began = now - min(state.elapsed_s, most)
    for update, version in held:
        buffer.tickets[update.device] = Ticket(device=update.device, version=version, asked=now, deadline=now + most)
        buffer.receive(update, version=version)
    least = LEAST_SHARE * buffer.deadline_s
    buffer.tickets = {
        one.device: dataclasses.replace(one, asked=now - one.asked, deadline=now + max(one.deadline, least))
        for one in state.tickets
    }
    buffer.seen, buffer.refused = dict(state.seen), dict(state.refused)
    buffer.rejected = {device: Counter(counts) for device, counts in state.rejected.items()}


def _memory(arrays: Mapping[str, np.ndarray]) -> Memory:
    parts = {part.name: _part(arrays, f"{MEMORY}{part.name}.") for part in dataclasses.fields(Memory)}
    return Memory(**parts)


def _parameters(
    arrays: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], *, run: str
) -> dict[str, np.ndarray]:
    parameters = _part(arrays, PARAMETERS)
    shapes = {name: value.shape for name, value in parameters.items()}
    if shapes != {name: value.shape for name, value in expected.items()}:
        raise UserError(
            f"federation {run}: its journal has {len(shapes)} parameters that are not those of the model "
            f"({len(expected)}): the model or the code has changed; ask for the federation again"
        )
    return parameters


def _part(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
