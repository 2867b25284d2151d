"""Benchmarks that cannot be fooled: what a model takes on this machine, and what the machine was doing meanwhile.

    Session x inputs x Plan -measure-> Timing        one scenario, timed until it can be believed
    file x inputs -benchmark-> Benchmark             all of it, as one document
    two sessions -versus-> Versus                    which is faster, measured in turns
    file x inputs -tune-> Tuned                      the session settings that are worth it here
    file x inputs -cold_start-> ColdStart            a process's first inference, and its memory
    a device -describe-> dict                        what it is, for a board profile
    file x inputs -operators-> tuple[OperatorTime]   where the time goes, from the runtime's own profile

The same code runs on the workstation and on the board. What the machine does not tell is absent,
never guessed, and a timing that cannot be trusted says so and why.
"""

from edgeml_runtime.architecture import refuse_architecture
from edgeml_runtime.hardware import describe, throttling
from edgeml_runtime.measure.benchmark import Benchmark, benchmark
from edgeml_runtime.measure.cold import ColdStart, cold_start
from edgeml_runtime.measure.conditions import (
    THROTTLED_NOW,
    Conditions,
    Reading,
    environment,
    hardware,
)
from edgeml_runtime.measure.operators import OperatorTime, operators
from edgeml_runtime.measure.overhead import NOTHING, Overhead, overhead
from edgeml_runtime.measure.statistics import bootstrap, confidence_of_median, intervals, order_interval
from edgeml_runtime.measure.timing import QUANTILES, SCENARIOS, Plan, Scenario, Timing, Watch, measure, nobody
from edgeml_runtime.measure.tuning import Trial, Tuned, tune
from edgeml_runtime.measure.versus import Versus, versus

__all__ = [
    "NOTHING",
    "QUANTILES",
    "SCENARIOS",
    "THROTTLED_NOW",
    "Benchmark",
    "ColdStart",
    "Conditions",
    "OperatorTime",
    "Overhead",
    "Plan",
    "Reading",
    "Scenario",
    "Timing",
    "Trial",
    "Tuned",
    "Versus",
    "Watch",
    "benchmark",
    "bootstrap",
    "cold_start",
    "confidence_of_median",
    "describe",
    "environment",
    "hardware",
    "intervals",
    "measure",
    "nobody",
    "operators",
    "order_interval",
    "overhead",
    "refuse_architecture",
    "throttling",
    "tune",
    "versus",
]
