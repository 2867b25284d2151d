"""Federations over virtual devices: the same rounds, tasks and device code as in a fleet, without a broker.

    Fleet (model, rows of every device) + Plan + Conditions -simulate-> Simulated: rounds, parameters, judgements

Thousands of devices fit on one machine; the seed of the plan decides everything, however many processes work.
"""

from edgeml.simulation.conditions import Conditions
from edgeml.simulation.device import ATTACKS, Judged
from edgeml.simulation.fleet import Fleet, RoundTold
from edgeml.simulation.simulate import Simulated, simulate

__all__ = ["ATTACKS", "Conditions", "Fleet", "Judged", "RoundTold", "Simulated", "simulate"]
