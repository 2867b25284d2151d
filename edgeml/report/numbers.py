"""Numbers as people read them."""

from __future__ import annotations

import math


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


def size(count: float) -> str:
    """Return a number of bytes with its unit.

    >>> size(25373), size(8859760), size(512)
    ('25.4 kB', '8.86 MB', '512 bytes')
    """
    if count < 1000:
        return f"{count:.0f} bytes"
    return f"{number(count / 1e3)} kB" if count < 1e6 else f"{number(count / 1e6)} MB"
