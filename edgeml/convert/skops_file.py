"""A fitted estimator from a .skops file, which holds no code: only types that are known to be harmless are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import skops.io
from skops.io.exceptions import UnsupportedTypeException, UntrustedTypesFoundException

from edgeml.errors import UnsupportedModel, UserError

HARMLESS = ["numpy.dtype"]  # what encoders of words hold, and skops does not know


def load(path: Path) -> Any:
    """Return what the file holds. Raises UserError for types that are not trusted, UnsupportedModel for odd ones."""
    try:
        return skops.io.load(path, trusted=HARMLESS)
    except UntrustedTypesFoundException as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path.name} holds types that skops does not trust: {reason}; keep to scikit-learn's own"
        ) from error
    except UnsupportedTypeException as error:
        reason = " ".join(str(error).split())[:120]
        raise UnsupportedModel(f"{path.name} is no estimator that can be read: {reason}; save it again") from error
