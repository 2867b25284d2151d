"""What leaves a device of its training: clipped, with noise, compressed, as the offer and the owner's policy ask.

The owner may ask for more than the server (a shorter update, more noise, sums only), never for less.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeml_runtime.config import Policy
from edgeml_runtime.errors import MalformedMessage
from edgeml_runtime.feedback import Feedback
from edgeml_runtime.wire import compress, gaussian, tensors
from edgeml_runtime.wire.messages import TaskOffer

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Terms:
    """How an update may leave: at most `clip_norm` long (0: any), with noise of `std` on each value."""

    clip_norm: float = 0.0
    std: float = 0.0

    @property
    def private(self) -> bool:
        """Whether other numbers of the training must stay here too."""
        return self.std > 0


def objection(offer: TaskOffer, policy: Policy) -> str:
    """Return why `offer` cannot be answered in the way it asks for and `policy` demands, or ""."""
    numbers = offer.clip_norm, offer.noise
    if not all(math.isfinite(number) and number >= 0 for number in numbers):
        return f"clip_norm {offer.clip_norm:g} and noise {offer.noise:g}: both must be numbers of at least 0"
    try:
        compress.parse(offer.compress)
    except MalformedMessage as error:
        return str(error)
    wanted = bool(offer.compress or offer.clip_norm or offer.noise)
    demanded = bool(policy.clip_norm or policy.noise)
    if offer.kind != "training" and (wanted or demanded):
        who = "the offer asks" if wanted else "the owner's policy asks"
        return f"{who} for clipping, noise or compression, which training has and {offer.kind} not"
    if max(offer.noise, policy.noise) > 0 and not (offer.clip_norm or policy.clip_norm):
        return "noise without a clip_norm protects nothing: give both"
    if offer.secure is not None and offer.compress:
        return f"secure aggregation and {offer.compress} exclude each other: masks cannot be compressed"
    if policy.secure and offer.secure is None:
        return "the owner's policy gives answers to secure aggregation only, and the offer wants to see them"
    return ""


def terms(offer: TaskOffer, policy: Policy) -> Terms:
    """Return the stricter of what `offer` and `policy` ask for."""
    norms = [norm for norm in (offer.clip_norm, policy.clip_norm) if norm > 0]
    clip_norm = min(norms, default=0.0)
    return Terms(clip_norm, max(offer.noise, policy.noise) * clip_norm)


def bounded(update: Arrays, given: Terms) -> dict[str, np.ndarray]:
    """Return `update` clipped and noised by `given`, float32; as it is when nothing is asked."""
    if not given.clip_norm:
        return dict(update)
    short = gaussian.clip(update, given.clip_norm)
    if given.std:
        short = gaussian.blur(short, std=given.std, step=gaussian.grid(given.clip_norm))
    return {name: value.astype(np.float32) for name, value in short.items()}


def packed(update: Arrays, offer: TaskOffer, feedback: Feedback) -> bytes:
    """Return `update` as it travels, by `offer.compress`; what that loses is kept in `feedback` for the next round."""
    if not offer.compress:
        return tensors.pack(update)
    rng = np.random.default_rng(secrets.randbits(128))
    encoded = compress.encode(update, offer.compress, residual=feedback.before(offer.round), rng=rng)
    feedback.after(offer.round, encoded.residual)
    return tensors.pack(encoded.arrays)


def told(metrics: Mapping[str, float], offer: TaskOffer, given: Terms) -> dict[str, float]:
    """Return what may be said beside the update: no losses where the update itself is hidden or noised."""
    return {} if given.private or offer.secure else dict(metrics)
