"""From data, or from a finished model, to a verified release: the story of the product.

    data -> train -> convert -> quantize -> verify -> bench -> bundle -> registry -> report

Opening this room costs nothing: a build with nothing changed is answered from its run folder, and
the stages are only imported when there is work for them.
"""

from edgeml.pipeline.plan import STAGES, Plan, plan_build
from edgeml.pipeline.run import build, compile_model, retraining

__all__ = ["STAGES", "Plan", "build", "compile_model", "plan_build", "retraining"]
