"""A fitted estimator from a .skops file, which holds no code: only types that are known to be harmless are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import skops.io
from skops.io.exceptions import UnsupportedTypeException, UntrustedTypesFoundException

from edgeml.errors import UnsupportedModel, UserError

HARMLESS = ["numpy.dtype"]  # what encoders of words hold, and skops does not know


def load(path: Path, *, trust: bool = False) -> Any:
    """Return what the file holds; `trust` takes types that skops does not vouch for, such as the trees of a forest.

    Raises UserError for such types without `trust`, UnsupportedModel for odd ones.
    """
    try:
        more = skops.io.get_untrusted_types(file=path) if trust else []
        return skops.io.load(path, trusted=[*HARMLESS, *more])
    except UntrustedTypesFoundException as error:
        types = ", ".join(skops.io.get_untrusted_types(file=path))[:160]
        raise UserError(
            f"{path.name} holds types that skops does not vouch for ({types}): give --trust if you made the file"
        ) from error
    except UnsupportedTypeException as error:
        reason = " ".join(str(error).split())[:120]
        raise UnsupportedModel(f"{path.name} is no estimator that can be read: {reason}; save it again") from error
