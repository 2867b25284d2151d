"""How fast and how large: measured here through the device's code, predicted for boards, and the choice.

    Variant -measure_here-> Measurement;  OnnxModel x DeviceProfile -predict-> Prediction
    Variants, Verdicts, Predictions -choose-> Choice

A prediction is never one number without its range.
"""

from edgeml.bench.choose import choose, nearest_failure
from edgeml.bench.measure import measure_here, one_query
from edgeml.bench.predict import predict

__all__ = ["choose", "measure_here", "nearest_failure", "one_query", "predict"]
