"""The gate: does a variant answer like the model it was made from, and how much worse can it be?

    Variant, held-out Rows, the source's Answers -verify-> Verdict

Answers come from the device's own session. Nothing reaches a device without a passed verdict.
"""

from edgeml.verify.answers import run_answers
from edgeml.verify.bootstrap import resampled_drops
from edgeml.verify.evidence import EdgeCases, Evidence, edge_cases
from edgeml.verify.limits import Limits
from edgeml.verify.parity import compare
from edgeml.verify.verdict import verify

__all__ = [
    "EdgeCases",
    "Evidence",
    "Limits",
    "compare",
    "edge_cases",
    "resampled_drops",
    "run_answers",
    "verify",
]
