"""Named arrays as safetensors bytes; arrays of strings travel as JSON in a uint8 tensor.

safetensors is read without executing anything, which pickle and .npz with objects are not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import safetensors
import safetensors.numpy

from edgeml_runtime.errors import MalformedMessage

_STRINGS = ":strings"  # suffix of a tensor that holds UTF-8 JSON of a nested list of strings


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return `arrays` as safetensors bytes; object and str arrays are taken as strings.

    >>> unpack(pack({"c": np.array([["red"]], dtype=object)}))["c"].tolist()
    [['red']]
    """
    plain = {}
    for name, array in arrays.items():
        if array.dtype.kind in "OU":
            text = json.dumps(array.tolist(), ensure_ascii=False).encode()
            plain[name + _STRINGS] = np.frombuffer(text, dtype=np.uint8)
        else:
            plain[name] = np.asarray(array, order="C")  # ascontiguousarray would make a 0-d array 1-d
    return bytes(safetensors.numpy.save(plain))


def unpack(data: bytes) -> dict[str, np.ndarray]:
    """Return the arrays that `pack` was given; raise MalformedMessage when `data` is something else."""
    try:
        plain = safetensors.numpy.load(data)
        return {
            name.removesuffix(_STRINGS): np.array(json.loads(array.tobytes()), dtype=object)
            if name.endswith(_STRINGS)
            else array
            for name, array in plain.items()
        }
    except (safetensors.SafetensorError, ValueError, KeyError, RecursionError) as error:
        raise MalformedMessage(f"{len(data):,} bytes that are not safetensors: {error}") from error
