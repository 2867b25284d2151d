"""Updates in fewer bytes: half precision, 8 bits, the largest values, signs; what is lost comes next time.

    ""               as it is, one float32 array per parameter
    fp16, int8       2 or 1 bytes a value; int8:stochastic rounds up or down by chance, right on average
    topk:0.05        the 5 % of largest magnitude, as float16 with their places
    sign             1 bit a value (arXiv 1901.09847)

An encoded update is at most three arrays over all parameters, one after the other by sorted name: `q` the values, `s`
float32 what they are multiplied by (one per parameter; topk: one in all), `i` the places of topk, increasing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edgeml_runtime.errors import MalformedMessage

Arrays = dict[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]
VALUES, SCALES, PLACES = "q", "s", "i"
STOCHASTIC = "stochastic"


@dataclass(frozen=True)
class Encoded:
    """What travels, and what was lost: to be added to the next update (error feedback, arXiv 1809.07599)."""

    arrays: Arrays
    residual: Arrays  # float32, by parameter; empty when nothing is lost by design


@dataclass(frozen=True)
class _Layout:
    """All parameters as one vector: sorted names, and how many values each has."""

    shapes: Shapes

    @property
    def names(self) -> list[str]:
        return sorted(self.shapes)

    @property
    def sizes(self) -> list[int]:
        return [math.prod(self.shapes[name]) for name in self.names]

    @property
    def total(self) -> int:
        return sum(self.sizes)

    def join(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        parts = [np.asarray(arrays[name], np.float32).ravel() for name in self.names]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def split(self, flat: np.ndarray) -> Arrays:
        ends = np.cumsum(self.sizes)[:-1]
        parts = zip(self.names, np.split(flat, ends), strict=True) if self.names else ()
        return {name: part.reshape(self.shapes[name]).astype(np.float32, copy=False) for name, part in parts}

    def per_parameter(self, of: Callable[[np.ndarray], float], flat: np.ndarray) -> np.ndarray:
        """Return of(its magnitudes) for every parameter, float32; 0 for one without values."""
        parts = np.split(np.abs(flat), np.cumsum(self.sizes)[:-1]) if self.names else []
        return np.array([of(part) if part.size else 0.0 for part in parts], np.float32)

    def spread(self, scales: np.ndarray) -> np.ndarray:
        """Return each parameter's scale for each of its values."""
        return np.repeat(scales, self.sizes)


@dataclass(frozen=True)
class Method:
    """A way to compress, as `parse` read it."""

    name: str
    fraction: float = 1.0  # topk
    stochastic: bool = False  # int8

    def count(self, total: int) -> int:
        """Return how many of `total` values topk keeps."""
        return min(total, max(1, math.ceil(self.fraction * total)))


def parse(spec: str) -> Method:
    """Return the method that `spec` names; raise MalformedMessage when there is none of that name.

    >>> parse("topk:0.05")
    Method(name='topk', fraction=0.05, stochastic=False)
    """
    name, _, option = spec.partition(":")
    if spec in ("", *CODECS) and name != "topk":
        return Method(name)
    if name == "int8" and option == STOCHASTIC:
        return Method(name, stochastic=True)
    if name == "topk" and (fraction := _number(option)) is not None and 0 < fraction <= 1:
        return Method(name, fraction)
    raise MalformedMessage(
        f'compress {spec[:40]!r}: write "", fp16, int8, int8:stochastic, topk:FRACTION (above 0, at most 1) or sign'
    )


def encode(
    update: Mapping[str, np.ndarray],
    spec: str,
    *,
    residual: Mapping[str, np.ndarray] | None = None,
    rng: np.random.Generator | None = None,
) -> Encoded:
    """Return `update` + `residual`, float32 by parameter, as `spec` writes them, and the new residual.

    Of `residual` only what has a parameter's shape counts. `rng` is for int8:stochastic. Raises MalformedMessage when
    a value is not finite, or for an unknown `spec`.
    """
    method = parse(spec)
    if not method.name:
        return Encoded({name: np.asarray(value, np.float32) for name, value in update.items()}, {})
    layout = _Layout({name: value.shape for name, value in update.items()})
    left = residual or {}
    kept = {n: left[n] if n in left and left[n].shape == s else np.zeros(s) for n, s in layout.shapes.items()}
    flat = layout.join(update) + layout.join(kept)
    if broken := int(np.count_nonzero(~np.isfinite(flat))):
        raise MalformedMessage(f"{broken} of {flat.size} values of the update are not finite: it cannot be compressed")
    arrays = CODECS[method.name].pack(flat, layout, method=method, rng=rng or np.random.default_rng())
    sent = CODECS[method.name].unpack(arrays, layout, method)
    return Encoded(arrays, layout.split(flat - sent))


def decode(arrays: Mapping[str, np.ndarray], spec: str, shapes: Shapes) -> Arrays:
    """Return the update in `arrays` for parameters of these `shapes`, float32 by parameter.

    Holds a few float32 per value of the parameters and no more, whatever arrives. Raises MalformedMessage for an array
    that is missing, unknown, of another type or size than `spec` and `shapes` give, for places out of order, and for
    values that are not finite.
    """
    method, layout = parse(spec), _Layout(shapes)
    if not method.name:
        return dict(arrays)
    codec = CODECS[method.name]
    expected = {VALUES, SCALES} | ({PLACES} if method.name == "topk" else set())
    if wrong := sorted(arrays.keys() ^ expected):
        kind = "missing from" if wrong[0] in expected else "unknown in"
        raise MalformedMessage(f"array {wrong[0][:40]!r} is {kind} an update compressed by {spec}")
    flat = codec.unpack(arrays, layout, method)
    if broken := int(np.count_nonzero(~np.isfinite(flat))):
        raise MalformedMessage(f"{broken} of {flat.size} values of the update are not finite")
    return layout.split(flat)


@dataclass(frozen=True)
class _Codec:
    pack: Callable[..., Arrays]  # (flat, layout, *, method, rng)
    unpack: Callable[[Mapping[str, np.ndarray], _Layout, Method], np.ndarray]


def _pack_half(flat: np.ndarray, layout: _Layout, *, method: Method, rng: np.random.Generator) -> Arrays:
    scales = layout.per_parameter(np.max, flat)
    return {VALUES: _ratio(flat, layout.spread(scales)).astype(np.float16), SCALES: scales}


def _unpack_half(arrays: Mapping[str, np.ndarray], layout: _Layout, method: Method) -> np.ndarray:
    values = _array(arrays, VALUES, np.float16, size=layout.total)
    return _scaled(values, layout.spread(_scales(arrays, len(layout.names))))


def _pack_int8(flat: np.ndarray, layout: _Layout, *, method: Method, rng: np.random.Generator) -> Arrays:
    scales = layout.per_parameter(np.max, flat) / np.float32(127)
    steps = _ratio(flat, layout.spread(scales))
    whole = np.floor(steps + rng.random(steps.shape)) if method.stochastic else np.rint(steps)
    return {VALUES: np.clip(whole, -127, 127).astype(np.int8), SCALES: scales}


def _unpack_int8(arrays: Mapping[str, np.ndarray], layout: _Layout, method: Method) -> np.ndarray:
    values = _array(arrays, VALUES, np.int8, size=layout.total)
    return _scaled(values, layout.spread(_scales(arrays, len(layout.names))))


def _pack_topk(flat: np.ndarray, layout: _Layout, *, method: Method, rng: np.random.Generator) -> Arrays:
    count = method.count(flat.size)
    places = np.sort(np.argpartition(np.abs(flat), flat.size - count)[flat.size - count :]) if count else np.zeros(0)
    kept = flat[places.astype(np.intp)]
    scale = np.array([np.max(np.abs(kept), initial=0.0)], np.float32)
    values = _ratio(kept, np.repeat(scale, kept.size)).astype(np.float16)
    return {VALUES: values, SCALES: scale, PLACES: places.astype(_places(flat.size))}


def _unpack_topk(arrays: Mapping[str, np.ndarray], layout: _Layout, method: Method) -> np.ndarray:
    count = method.count(layout.total)
    values = _array(arrays, VALUES, np.float16, size=count)
    places = _array(arrays, PLACES, _places(layout.total), size=count).astype(np.int64)
    if np.any(np.diff(places) <= 0) or (count and places[-1] >= layout.total):
        raise MalformedMessage(f"the {count} places of topk are not increasing numbers below {layout.total}")
    flat = np.zeros(layout.total, np.float32)
    flat[places] = _scaled(values, np.repeat(_scales(arrays, 1), count))
    return flat


def _pack_sign(flat: np.ndarray, layout: _Layout, *, method: Method, rng: np.random.Generator) -> Arrays:
    return {VALUES: np.packbits(flat >= 0), SCALES: layout.per_parameter(_mean, flat)}


def _unpack_sign(arrays: Mapping[str, np.ndarray], layout: _Layout, method: Method) -> np.ndarray:
    packed = _array(arrays, VALUES, np.uint8, size=-(-layout.total // 8))
    signs = np.unpackbits(packed, count=layout.total).astype(np.float32) * 2 - 1
    return _scaled(signs, layout.spread(_scales(arrays, len(layout.names))))


CODECS: dict[str, _Codec] = {
    "fp16": _Codec(_pack_half, _unpack_half),
    "int8": _Codec(_pack_int8, _unpack_int8),
    "topk": _Codec(_pack_topk, _unpack_topk),
    "sign": _Codec(_pack_sign, _unpack_sign),
}


def _mean(magnitudes: np.ndarray) -> float:
    return float(np.mean(magnitudes, dtype=np.float64))


def _ratio(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return values / scales, and 0 where the scale is 0."""
    return np.asarray(np.divide(values, scales, out=np.zeros_like(values), where=scales > 0))


def _scaled(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by the caller
        return np.asarray(values.astype(np.float32) * scales)


def _scales(arrays: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    scales = _array(arrays, SCALES, np.float32, size=count)
    if not np.all((scales >= 0) & np.isfinite(scales)):
        raise MalformedMessage(f"{count} scales, and some are not finite numbers of at least 0")
    return scales


def _array(arrays: Mapping[str, np.ndarray], name: str, dtype: type[np.generic], *, size: int) -> np.ndarray:
    array = arrays[name]
    if array.dtype != dtype or array.shape != (size,):
        raise MalformedMessage(
            f"array {name!r} of the update is {array.dtype} {array.shape}; expected {np.dtype(dtype)} ({size},)"
        )
    return array


def _places(total: int) -> type[np.generic]:
    return np.uint16 if total <= 1 << 16 else np.uint32


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
