"""The one coordinator loop: transport to rollouts, block requests, federated rounds and telemetry.

It decides nothing itself: `rollout` and `federated` are pure, the registry is the queue and the memory,
so a server that is killed goes on where it was when it is started again.
"""

from edgeml.server.coordinator import Coordinator
from edgeml.server.learner import Finding, Findings, Learner, Retrain
from edgeml.server.serve import parse_address, serve

__all__ = ["Coordinator", "Finding", "Findings", "Learner", "Retrain", "parse_address", "serve"]
