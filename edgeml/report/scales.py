"""Numbers to pixels: linear and logarithmic scales with round ticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

APART, APART_UPRIGHT = 70, 40  # pixels between two ticks, at least: labels are wider than high


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` onto pixels from `start` to `end`; logarithmic when `log`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of `value`; what lies outside is drawn at the edge."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        share = math.log(at / low) / math.log(high / low) if self.log else (at - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def ticks(self, apart: float = APART) -> list[float]:
        """Return round values inside the scale, far enough apart to be labelled."""
        most = max(2, int(abs(self.end - self.start) / apart))
        return _log_ticks(self.low, self.high, most) if self.log else _linear_ticks(self.low, self.high, most)


def fit(values: Iterable[float], start: float, end: float, *, log: bool = False, zero: bool = False) -> Scale:
    """Return a scale that holds `values` with some room at both ends; `zero` makes it begin at nought.

    >>> fit([1.0, 9.0], 0, 100).low < 1.0
    True
    """
    finite = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    low, high = (min(finite), max(finite)) if finite else (1.0, 10.0)
    if log:
        return Scale(low / 1.5, max(high, low * 2) * 1.5, start, end, log=True)
    apart = high - low > abs(high) * 1e-6  # nearer together they are one value, and so would be their ticks
    room = (high - low) * 0.08 if apart else abs(high) * 0.05 or 1.0
    return Scale(0.0 if zero and low >= 0 else low - room, high + room, start, end)


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    for factors in ((1, 2, 5), (1, 3), (1,)):
        exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        found = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        inside = [tick for tick in found if low <= tick <= high]
        if len(inside) <= most or factors == (1,):
            break
    every = math.ceil(len(inside) / most) if inside else 1
    return inside[::every] or [low]


def number(value: float) -> str:
    """Return `value` as people read it: three significant digits, thousands separated.

    >>> number(0.00123), number(12345.0), number(0.5), number(0.0)
    ('0.00123', '12,345', '0.5', '0')
    """
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def milliseconds(value: float) -> str:
    """Return a latency with its unit: microseconds below a tenth of a millisecond, seconds above a thousand.

    >>> milliseconds(0.0123), milliseconds(4.5), milliseconds(1500.0)
    ('12.3 µs', '4.5 ms', '1.5 s')
    """
    if value < 0.1:
        return f"{number(value * 1000)} µs"
    return f"{number(value)} ms" if value < 1000 else f"{number(value / 1000)} s"


Format = Callable[[float], str]
