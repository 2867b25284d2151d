"""Sizes that micro-models are drawn from: those of vision, speech and sensor networks."""

from __future__ import annotations

import random
from collections.abc import Callable

SIZES = (3, 4, 5, 6, 7, 10, 13, 14, 20, 26, 28, 40, 52, 56, 80, 112)
CHANNELS = (16, 24, 32, 40, 48, 64, 80, 96, 116, 128, 160, 192, 256, 320, 512, 768)
DEPTHWISE = (8, 16, 24, 32, 40, 48, 64, 72, 96, 116, 120, 128, 144, 192, 240, 256, 384, 512, 576)
WIDE = (32, 64, 96, 128, 160, 192, 256, 320, 384, 480, 512, 576, 672, 768, 960, 1152)
MOST_WARM = 6 << 20  # bytes touched between runs that leave weights in the last cache, but in no nearer one
UNEVEN = (11, 12, 22, 36, 44, 58, 72, 88, 92, 116, 120, 132, 184, 200, 264)
MOST_COLD = 256 << 20  # bytes: no larger cache is swept
PLAIN = (6, 10, 11, 18, 22, 26, 30, 42, 58, 62, 90, 118, 170, 232, 234)  # most get no blocked layout
LEAST_MACS, MOST_MACS, MOST_ELEMENTS = 2e5, 8e7, 1.2e6
Built = tuple[bytes, tuple[int, ...]]
Build = Callable[[random.Random, int], Built]  # with the bytes to touch before the kernel, where weights matter
