"""Why does it not work here? Checks that need nothing but Python, each with the exact way out.

    Machine -CHECKS-> Check (ok, warn or fail, what was found, the command that puts it right)

Nothing here imports onnxruntime or numpy: where they kill the process, the doctor must live to say so.
"""

from edgeml_runtime.doctor.examine import CHECKS, Check, examine
from edgeml_runtime.doctor.machine import Finding, Machine

__all__ = ["CHECKS", "Check", "Finding", "Machine", "examine"]
