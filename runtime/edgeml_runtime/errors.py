"""Every deliberate error of the device, drawn as a tree.

    DeviceError
    |- WireError            what arrived cannot be accepted
    |  |- MalformedMessage  wrong version, field, type or size
    |  |- BadSignature      no trusted key signed it
    |  `- BadDigest         the bytes are not the bytes that were promised
    |- ShapeMismatch        rows that do not fit the model
    |- ModelRefused         a model that this device cannot load, or that answers wrongly here
    |- TaskRefused          a task that the owner's policy or the data at hand forbids
    |  |- Unfit             its answer for made-up rows says too much about single ones
    |  `- NotFinite         its answer has NaN or infinite numbers
    |- StorageFull          the disk is full; nothing was changed
    `- AgentRefused         the agent cannot start or go on as it was asked to

Each says what happened, the numbers, and what to change; `exit_code` is what the command ends with.
"""

from __future__ import annotations


class DeviceError(Exception):
    """Root of the tree; `reason` is the short machine-readable name that reports carry."""

    exit_code = 1

    @property
    def reason(self) -> str:
        return type(self).__name__


class WireError(DeviceError):
    pass


class MalformedMessage(WireError):
    pass


class BadSignature(WireError):
    exit_code = 3


class BadDigest(WireError):
    exit_code = 3


class ShapeMismatch(DeviceError):
    pass


class ModelRefused(DeviceError):
    exit_code = 3


class TaskRefused(DeviceError):
    exit_code = 3

    @property
    def reason(self) -> str:
        return TaskRefused.__name__  # reports do not tell its kinds apart; the sentence does


class Unfit(TaskRefused):
    pass


class NotFinite(TaskRefused):
    pass


class StorageFull(DeviceError):
    pass


class AgentRefused(DeviceError):
    exit_code = 4
