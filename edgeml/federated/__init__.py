"""Federated learning on the server, without sockets or clocks: cohort, round, aggregate.

A `Federation` is a sequence of `Round`s; an `Assembly` turns what one device uploads into arrays.
"""

from edgeml.federated.aggregate import AGGREGATORS, Believe, aggregate, apply_delta, least_updates
from edgeml.federated.assembly import Assembly
from edgeml.federated.buffer import Buffer, BufferOptions, Held, Step, Ticket
from edgeml.federated.cohort import Candidate, Cohort, CohortOptions, Patience, choose, deadline_after
from edgeml.federated.federation import Federation
from edgeml.federated.masks import Masks
from edgeml.federated.offers import check_upload, make_offer
from edgeml.federated.plan import Plan
from edgeml.federated.privacy import Privacy
from edgeml.federated.results import RoundResult
from edgeml.federated.roll import Outcome, State
from edgeml.federated.round import Round
from edgeml.federated.secagg import SecureRound
from edgeml.federated.server_step import STEPS, Memory, ServerStep, take
from edgeml.federated.strategy import STRATEGIES, Strategy, strategy
from edgeml.federated.survey import Survey
from edgeml.federated.updates import FAULTS, BadUpdate, Update, check_outputs, check_update, fault_of, mean_told

__all__ = [
    "AGGREGATORS",
    "FAULTS",
    "STEPS",
    "STRATEGIES",
    "Assembly",
    "BadUpdate",
    "Believe",
    "Buffer",
    "BufferOptions",
    "Candidate",
    "Cohort",
    "CohortOptions",
    "Federation",
    "Held",
    "Masks",
    "Memory",
    "Outcome",
    "Patience",
    "Plan",
    "Privacy",
    "Round",
    "RoundResult",
    "SecureRound",
    "ServerStep",
    "State",
    "Step",
    "Strategy",
    "Survey",
    "Ticket",
    "Update",
    "aggregate",
    "apply_delta",
    "check_outputs",
    "check_update",
    "check_upload",
    "choose",
    "deadline_after",
    "fault_of",
    "least_updates",
    "make_offer",
    "mean_told",
    "strategy",
    "take",
]
