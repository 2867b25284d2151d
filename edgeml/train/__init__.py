"""Data sets into fitted scikit-learn pipelines.

    Dataset -> fit -> FittedModel -> answers(rows) -> Answers

Cross-validation on the training rows chooses; the validation and test rows are never fitted on. Every pipeline
holds its own preprocessing and works in float32, so that the converted graph can agree with it.
"""

from edgeml.train.estimators import ESTIMATORS, FEDERABLE
from edgeml.train.search import answers, fit

__all__ = ["ESTIMATORS", "FEDERABLE", "answers", "fit"]
